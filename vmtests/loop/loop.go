// Package loop attaches files as block devices, with a device for each
// partition. It needs root and loop devices; Unavailable says if they lack.
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// A Device is an attached loop device.
type Device struct {
	Path string // such as /dev/loop3
	ctx  context.Context
}

// Options choose how a file is attached.
type Options struct {
	SectorSize int  // bytes; 512 if zero
	ReadOnly   bool // the device refuses writes
}

// Attach makes file a block device with its partitions. Detach ends it.
func Attach(ctx context.Context, file string, o Options) (*Device, error) {
	args := []string{"--find", "--show"}
	if o.SectorSize != 0 {
		args = append(args, "--sector-size", fmt.Sprint(o.SectorSize))
	}
	if o.ReadOnly {
		args = append(args, "--read-only")
	}
	out, err := run(ctx, "losetup", append(args, file)...)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", file, err)
	}
	// Detaching must work after ctx has ended.
	d := &Device{Path: strings.TrimSpace(out), ctx: context.WithoutCancel(ctx)}
	if err := d.Scan(); err != nil {
		return nil, errors.Join(err, d.Detach())
	}
	return d, nil
}

// Scan reads the partition table again and makes the partitions' devices.
// Kernels without partition parsers are told of each partition by partx.
func (d *Device) Scan() error {
	run(d.ctx, "partx", "--delete", d.Path) // there may be none
	out, err := run(d.ctx, "partx", "--show", "--noheadings", "--output", "NR", d.Path)
	if err != nil || strings.TrimSpace(out) == "" {
		return nil // no table
	}
	if _, err := run(d.ctx, "partx", "--add", d.Path); err != nil {
		return fmt.Errorf("add partitions of %s: %w", d.Path, err)
	}
	return nil
}

// Partition returns the path of partition n, from 1.
func (d *Device) Partition(n int) string { return fmt.Sprintf("%sp%d", d.Path, n) }

// Flush writes the device's cached data back and forgets the clean rest, so
// that the whole disk shows what was written by way of a partition.
func (d *Device) Flush() error {
	_, err := run(d.ctx, "blockdev", "--flushbufs", d.Path)
	return err
}

// Detach ends the device and its partitions. Their file system must not be
// mounted.
func (d *Device) Detach() error {
	run(d.ctx, "partx", "--delete", d.Path) // there may be none
	if _, err := run(d.ctx, "losetup", "--detach", d.Path); err != nil {
		return fmt.Errorf("detach %s: %w", d.Path, err)
	}
	return nil
}

// Mount calls f with a directory where dev is mounted, and unmounts it.
func Mount(ctx context.Context, dev string, f func(dir string) error) error {
	dir, err := os.MkdirTemp("", "platter-mount-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if _, err := run(ctx, "mount", dev, dir); err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	err = f(dir)
	_, unmount := run(context.WithoutCancel(ctx), "umount", dir)
	return errors.Join(err, unmount)
}

// Unavailable says why loop devices cannot be used here; empty if they can.
func Unavailable(ctx context.Context) string {
	f, err := os.CreateTemp("", "platter-loop-")
	if err != nil {
		return err.Error()
	}
	defer os.Remove(f.Name())
	if err := errors.Join(f.Truncate(1<<20), f.Close()); err != nil {
		return err.Error()
	}
	d, err := Attach(ctx, f.Name(), Options{})
	if err != nil {
		return err.Error()
	}
	if err := d.Detach(); err != nil {
		return err.Error()
	}
	return ""
}

func run(ctx context.Context, name string, args ...string) (string, error) {
	var out, complaint strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}
