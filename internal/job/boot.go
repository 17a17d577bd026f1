package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"platter/image"
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
}

// A BootReport tells whether an image came up.
type BootReport struct {
	Image    *image.Manifest `json:"image"`
	Firmware string          `json:"firmware"`
	boot.Result
}

// Boot starts an image in an emulated machine, without a network, and waits
// for a login prompt. What the machine writes is forgotten. The error wraps
// ErrNotBooted, beside the report, when none came.
func Boot(ctx context.Context, env *Env, opts BootOptions) (*BootReport, error) {
	o, err := offer(ctx, env, &OfferOptions{Image: opts.Image, Writable: true})
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	defer o.close()
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
	group, ctx := errgroup.WithContext(ctx)
	s := &nbd.Server{Device: o.disk, Log: func(err error) { failed = append(failed, err) }}
	group.Go(func() error { return s.Serve(serve, l) })
	group.Go(func() (err error) {
		defer end()
		result, err = boot.Try(ctx, machine)
		return err
	})
	err = group.Wait()
	if len(failed) > 0 {
		return nil, fmt.Errorf("boot image %s: %w", o.image.ID, failed[0])
	}
	if err != nil {
		return nil, fmt.Errorf("boot image %s: %w", o.image.ID, err)
	}
	report := &BootReport{Image: o.image, Firmware: string(machine.Firmware), Result: *result}
	if result.Verdict != boot.Booted {
		return report, fmt.Errorf("boot image %s by %s: %w: %s", o.image.ID, machine.Firmware, ErrNotBooted, result.Reason)
	}
	return report, nil
}

// machineOf is a machine that suits an image.
func machineOf(m *image.Manifest, opts *BootOptions, socket string) boot.Options {
	machine := boot.Options{
		Socket: socket, Firmware: boot.Firmware(opts.Firmware), Bus: opts.Bus, Sector: m.Device.LogicalSector,
		Memory: int(opts.Memory >> 20), CPUs: 2, Limit: opts.Limit, Picture: opts.Picture, Emulate: opts.Emulate,
	}
	if machine.Firmware == "" {
		machine.Firmware = boot.BIOS
		if m.Device.Firmware == "uefi" {
			machine.Firmware = boot.UEFI
		}
	}
	return machine
}
