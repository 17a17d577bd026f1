package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"platter/block"
	programs "platter/block/command"
	"platter/image"
	"platter/internal/export/adapt"
	"platter/internal/export/overlay"
)

// AdaptOptions say what of an image is changed before it is a disk again.
type AdaptOptions struct {
	Hardware bool     // its system starts on other hardware
	Firmware string   // of that: bios or uefi; "" is what the image starts by
	NewIDs   bool     // new identities of disk, partitions and filesystems
	Reset    []string // of ResetMachineID and ResetNetwork
	// Machine says that this machine is the one that will start from the target,
	// so that its firmware is told of it.
	Machine bool
}

// What of a system can be reset.
const (
	ResetMachineID = "machine-id"
	ResetNetwork   = "network"
)

func (o *AdaptOptions) any() bool {
	return o.Hardware || o.Firmware != "" || o.NewIDs || len(o.Reset) > 0
}

// check says what does not go together.
func (o *AdaptOptions) check() error {
	for _, r := range o.Reset {
		if r != ResetMachineID && r != ResetNetwork {
			return fmt.Errorf("%w: --reset %s: want %s or %s", ErrUsage, r, ResetMachineID, ResetNetwork)
		}
	}
	if o.Firmware != "" && !o.Hardware {
		return fmt.Errorf("%w: --firmware goes with --adapt", ErrUsage)
	}
	return nil
}

// apply changes an overlay of an image.
func (o *AdaptOptions) apply(ctx context.Context, env *Env, m *image.Manifest, over *overlay.Disk) (*adapt.Report, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	var failed error // what of the image could not be had
	opts := adapt.Options{
		Table: m.Device.Table, Sector: sectorOf(&m.Device), Serial: m.Device.Serial,
		Hardware: o.Hardware, Firmware: o.Firmware, NewIDs: o.NewIDs,
		ResetMachineID: slices.Contains(o.Reset, ResetMachineID), ResetNetwork: slices.Contains(o.Reset, ResetNetwork),
		Dir: temporaryDir, Tree: "/",
		Log: func(err error) {
			env.warn("%v", err)
			failed = firstDamage(failed, err)
		},
	}
	if name, ok := strings.CutPrefix(m.Device.Path, "/dev/"); ok {
		opts.Disk = name
	}
	r, err := adapt.Apply(ctx, over, opts)
	if failed != nil { // the kernel calls it an input error, or has not met it
		return nil, failed
	}
	return r, err
}

// sectorOf is the size of the sectors that a device's table counts in.
func sectorOf(d *block.Info) int {
	switch {
	case d.Table != nil && d.Table.SectorSize > 0:
		return d.Table.SectorSize
	case d.LogicalSector > 0:
		return d.LogicalSector
	}
	return 512
}

// adapt makes the image what it is to be, on an overlay of it. Nothing is
// written to the target for it.
func (w *wanted) adapt(ctx context.Context, env *Env, opts *RestoreOptions) error {
	where := func(err error) error {
		return fmt.Errorf("restore image %.8s of %s to %s: %w", w.image.ID, w.image.Volume, opts.Target, err)
	}
	switch {
	case w.part != nil:
		return where(fmt.Errorf("%w: one partition cannot be adapted: restore the whole image", ErrUsage))
	case opts.InPlace:
		return where(fmt.Errorf("%w: --in-place gives back what was there, and cannot adapt it: restore without --in-place", ErrUsage))
	}
	over, err := overlay.Temporary(&honest{w.disk, w.image}, temporaryDir)
	if err != nil {
		return where(err)
	}
	w.over = over
	if w.adapted, err = opts.Adapt.apply(ctx, env, w.image, over); err != nil {
		return where(err)
	}
	w.source.disk = over
	if err := w.look(0); err != nil {
		return where(err)
	}
	return nil
}

// writeAdapted writes what was changed of the image, and at the end the first
// blocks, changed or not, so that the disk starts as it is to be or not at all.
func (r *restorer) writeAdapted(ctx context.Context) error {
	r.stage = "the image was written, but not all that was changed of it: the first MiB is still zero, so that nothing starts from it; restore again"
	first, _ := r.ends()
	edge := min(first*int64(r.image.BlockSize), r.wanted.region.Length)
	copied := func(f func(e block.Extent) error) error {
		for at := edge; ; {
			e, err := r.wanted.over.Written(at)
			if err == io.EOF || err == nil && e.Offset >= r.wanted.region.Length {
				return nil
			} else if err != nil {
				return err
			}
			from, end := max(e.Offset, edge), min(e.End(), r.wanted.region.Length)
			if err := f(block.Extent{Offset: from, Length: end - from}); err != nil {
				return err
			}
			at = end
		}
	}
	write := func(e block.Extent) error {
		return r.eachAdapted(ctx, e, func(want []byte, off int64) error {
			if err := r.throttle.wait(ctx, len(want)); err != nil {
				return err
			}
			_, err := r.device.WriteAt(want, off)
			r.written.data.Add(int64(len(want)))
			return err
		})
	}
	start := block.Extent{Length: edge}
	if err := errors.Join(copied(write), r.device.Sync()); err != nil {
		return err
	}
	if err := errors.Join(write(start), r.device.Sync()); err != nil {
		return err
	}
	r.stage = "all was written, but what was changed of the image was not read back"
	if r.opts.NoReadBack {
		return nil
	}
	check := func(e block.Extent) error {
		got := make([]byte, chunkSize)
		return r.eachAdapted(ctx, e, func(want []byte, off int64) error {
			if n, err := r.device.ReadAt(got[:len(want)], off); n < len(want) {
				return err
			}
			if !bytes.Equal(got[:len(want)], want) {
				r.stage = "do not trust the target: it does not keep what is written to it"
				return fmt.Errorf("read back %s at %d: %d bytes %w", r.opts.Target, off, len(want), errNotKept)
			}
			return nil
		})
	}
	if err := copied(check); err != nil {
		return err
	}
	return check(start)
}

// eachAdapted calls f for parts of an extent of the changed image.
func (r *restorer) eachAdapted(ctx context.Context, e block.Extent, f func(want []byte, off int64) error) error {
	buf := make([]byte, chunkSize)
	for off := e.Offset; off < e.End(); off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), e.End()-off)]
		if _, err := r.wanted.over.ReadAt(ctx, p, off); err != nil {
			return damaged(r.image, err)
		}
		if err := f(p, off); err != nil {
			return err
		}
	}
	return nil
}

// bootEntry tells the firmware of the machine that this one is, where it is
// UEFI, of the disk. What goes wrong is said: the disk is all there, and
// firmware finds its fallback boot loader.
func (w *wanted) bootEntry(ctx context.Context, opts *RestoreOptions, report *RestoreReport) {
	if !opts.Adapt.Hardware || !opts.Adapt.Machine || report.Plan.Target.Kind != block.KindDisk || w.table == nil {
		return
	}
	if _, err := os.Stat("/sys/firmware/efi/efivars"); err != nil {
		return
	}
	for _, p := range w.table.Partitions {
		if p.Content != "vfat" || !strings.EqualFold(p.Type, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B") {
			continue
		}
		label := path.Base(w.image.Volume)
		_, err := programs.Run(ctx, "efibootmgr", "--quiet", "--create", "--disk", opts.Target, "--part", fmt.Sprint(p.Number), "--label", label, "--loader", `\EFI\BOOT\BOOTX64.EFI`)
		if err != nil {
			report.Notices = append(report.Notices, fmt.Sprintf("the firmware was not told of the disk, and may find it by itself: %v", err))
			return
		}
		report.Adapted = append(report.Adapted, fmt.Sprintf("the firmware starts partition %d as %q", p.Number, label))
		return
	}
}
