package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"platter/image"
	"platter/image/repo"
	"platter/internal/export/adapt"
	"platter/internal/export/boot"
	"platter/internal/export/nbd"
)

// ErrNotBooted means that an image was started and no system came up on it
// (exit 3).
var ErrNotBooted = errors.New("not booted")

// BootOptions say which image to start, and in what machine.
type BootOptions struct {
	Image    string
	Firmware string // bios or uefi; empty for what the image starts by
	Bus      string // of the disk: virtio, sata or nvme; empty is virtio
	Memory   int64  // of the machine in bytes, beside the job's own
	Limit    time.Duration
	Picture  string // a PNG file to make of the last screen; none if empty
	Emulate  bool   // do without KVM
	Adapt    bool   // start it as restore with --adapt would leave it
}

// A BootReport tells whether an image came up.
type BootReport struct {
	Image    *image.Manifest `json:"image"`
	Firmware string          `json:"firmware"`
	Bus      string          `json:"bus"`
	boot.Result
	Picture string        `json:"picture,omitempty"` // the file that was made of the screen
	Adapted *adapt.Report `json:"adapted,omitempty"`
}

// Boot starts an image in an emulated machine, without a network, and waits
// for a login prompt. What the machine writes is forgotten. What came of it the
// repository keeps with the image, and a picture of the last screen. The error
// wraps ErrNotBooted, beside the report, when no prompt came.
func Boot(ctx context.Context, env *Env, opts BootOptions) (*BootReport, error) {
	o, err := offer(ctx, env, &OfferOptions{Image: opts.Image, Writable: true})
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	defer o.close()
	var adapted *adapt.Report
	if opts.Adapt {
		how := AdaptOptions{Hardware: true, Firmware: opts.Firmware}
		if adapted, err = how.apply(ctx, env, o.image, o.over); err != nil {
			return nil, fmt.Errorf("boot image %s: %w", o.image.ID, err)
		}
	}
	began, err := env.Repo.Store.Now(ctx)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	dir, err := os.MkdirTemp("", "platter-boot-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	machine := machineOf(o.image, &opts, filepath.Join(dir, "nbd"))
	l, err := listen(ctx, &NBDOptions{Unix: machine.Socket}, false)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	var failed []error // what the disk could not give: the repository's fault, not the image's
	serve, end := context.WithCancel(ctx)
	var result *boot.Result
	group, machineCtx := errgroup.WithContext(ctx)
	s := &nbd.Server{Device: o.disk, Log: func(err error) { failed = append(failed, err) }}
	group.Go(func() error { return s.Serve(serve, l) })
	group.Go(func() (err error) {
		defer end()
		result, err = boot.Try(machineCtx, machine)
		return err
	})
	err = group.Wait()
	if len(failed) > 0 {
		return nil, fmt.Errorf("boot image %s: %w", o.image.ID, failed[0])
	}
	if err != nil {
		return nil, fmt.Errorf("boot image %s: %w", o.image.ID, err)
	}
	report := &BootReport{Image: o.image, Firmware: string(machine.Firmware), Bus: machine.Bus, Result: *result, Adapted: adapted}
	if !opts.Adapt { // that says nothing of the image itself
		env.noteBoot(ctx, report, began)
	}
	if opts.Picture != "" && result.Picture != nil {
		if err := os.WriteFile(opts.Picture, result.Picture, 0o644); err != nil {
			return report, fmt.Errorf("boot image %s: picture of the screen: %w", o.image.ID, err)
		}
		report.Picture = opts.Picture
	}
	if result.Verdict != boot.Booted {
		return report, fmt.Errorf("boot image %s by %s: %w: %s", o.image.ID, machine.Firmware, ErrNotBooted, result.Reason)
	}
	return report, nil
}

// machineOf is a machine that suits an image.
func machineOf(m *image.Manifest, opts *BootOptions, socket string) boot.Options {
	machine := boot.Options{
		Socket: socket, Firmware: boot.Firmware(opts.Firmware), Bus: opts.Bus, Sector: m.Device.LogicalSector,
		Memory: int(opts.Memory >> 20), CPUs: 2, Limit: opts.Limit, Emulate: opts.Emulate,
	}
	if machine.Bus == "" {
		machine.Bus = "virtio"
	}
	if machine.Firmware == "" {
		machine.Firmware = boot.BIOS
		if m.Device.Firmware == "uefi" {
			machine.Firmware = boot.UEFI
		}
	}
	return machine
}

// reasonKept is how much of a machine's words the repository keeps, in bytes.
const reasonKept = 500

// noteBoot keeps what came of a start where every machine sees it. An image in a
// repository that cannot be written to is started all the same.
func (env *Env) noteBoot(ctx context.Context, r *BootReport, began time.Time) {
	if !env.Repo.Keys.Writer().MayCollect() {
		return // nobody would believe it
	}
	note := repo.Boot{
		Time: began.UTC(), Verdict: string(r.Verdict), Reason: strings.ToValidUTF8(r.Reason[:min(len(r.Reason), reasonKept)], ""),
		Elapsed: r.Elapsed, Firmware: r.Firmware, Bus: r.Bus, KVM: r.KVM,
	}
	if err := env.Repo.NoteBoot(ctx, env.Repo.ManifestName(r.Image), note, r.Result.Picture); err != nil {
		env.warn("what came of the start is not kept: %v", err)
	}
}

// Screen returns the picture that was kept of an image's last start, a PNG.
func Screen(ctx context.Context, env *Env, m *image.Manifest) ([]byte, error) {
	name := env.Repo.ManifestName(m)
	checks, err := env.Repo.Checks(ctx)
	if err != nil {
		return nil, err
	}
	b := checks[name].Boot
	if b == nil {
		return nil, fmt.Errorf("picture of image %s: it was never started", m.ID)
	}
	png, err := env.Repo.Screen(ctx, name, b)
	if err != nil {
		return nil, fmt.Errorf("picture of image %s: %w", m.ID, err)
	}
	return png, nil
}
