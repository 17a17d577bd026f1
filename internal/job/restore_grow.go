package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
	programs "platter/block/command"
)

// Grown tells what became of a partition's filesystem after the partition grew.
type Grown struct {
	Partition  block.Partition `json:"partition"`
	Filesystem string          `json:"filesystem,omitempty"` // what was done, "" if nothing
}

// growers are the tools that enlarge a filesystem, which are looked for before
// anything is written. A content without a line here grows with its partition
// only, and the plan says what is to be done.
func growers() map[string][]string {
	ext := []string{"e2fsck", "resize2fs"}
	return map[string][]string{
		"ext2": ext, "ext3": ext, "ext4": ext,
		"xfs":   {"xfs_growfs"},
		"btrfs": {"btrfs"},
		"swap":  {"mkswap"},
	}
}

// packageOf returns where Debian has a tool.
func packageOf(tool string) string {
	return map[string]string{
		"e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "xfs_growfs": "xfsprogs", "btrfs": "btrfs-progs", "mkswap": "util-linux",
	}[tool]
}

// planGrow says what --grow will do, or why it cannot.
func planGrow(p *block.Partition) (step string, err error) {
	tools, ok := growers()[p.Content]
	switch {
	case !ok && p.Content == "LVM2_member":
		return "leave the physical volume in it to you: pvresize, then lvextend -r", nil
	case !ok && p.Content == "crypto_LUKS":
		return "leave what is encrypted in it to you: cryptsetup resize, then enlarge the filesystem in it", nil
	case !ok:
		return "", fmt.Errorf("%w: --grow cannot enlarge %s: restore without --grow, and enlarge it by its own system's tools", ErrUsage, contentName(p.Content))
	}
	for _, name := range tools {
		if _, err := programs.Find(name); err != nil {
			return "", fmt.Errorf("%w: --grow needs %s to enlarge %s, and it is not installed: install Debian's package %s, or restore without --grow", ErrUsage, name, p.Content, packageOf(name))
		}
	}
	return fmt.Sprintf("enlarge the %s in it by %s", p.Content, strings.Join(tools, " and ")), nil
}

func contentName(c string) string {
	if c == "" {
		return "what the last partition holds, which is nothing known"
	}
	return c
}

// growFilesystem has the filesystem of a partition that was enlarged take the
// room. The image is complete by then, and the error says so.
func growFilesystem(ctx context.Context, opts *RestoreOptions, report *RestoreReport) (err error) {
	p := report.Plan.Fit.Grown
	if p == nil {
		return nil
	}
	report.Grown = &Grown{Partition: *p}
	if report.Grown.Filesystem, err = grow(ctx, opts.Target, p); err != nil {
		return fmt.Errorf("restore to %s: the image is all there, and the partition was enlarged: %w", opts.Target, err)
	}
	return nil
}

// grow enlarges one filesystem.
func grow(ctx context.Context, disk string, p *block.Partition) (done string, err error) {
	tools := growers()[p.Content]
	if tools == nil {
		return "", nil
	}
	dev, detach, err := block.Attach(disk, p.Extent)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, detach()) }()
	ctx, cancel := context.WithTimeout(ctx, 24*time.Hour)
	defer cancel()
	switch p.Content {
	case "ext2", "ext3", "ext4":
		// It replays the journal; 1 and 2 mean that what it found is mended.
		if _, err := programs.Run(ctx, "e2fsck", "-f", "-p", dev); err != nil {
			if code := exitCode(err); code != 1 && code != 2 {
				return "", err
			}
		}
		_, err = programs.Run(ctx, "resize2fs", dev)
	case "xfs":
		err = whileMounted(dev, "xfs", "nouuid", func(dir string) error {
			_, err := programs.Run(ctx, "xfs_growfs", "-d", dir)
			return err
		})
	case "btrfs":
		err = whileMounted(dev, "btrfs", "", func(dir string) error {
			_, err := programs.Run(ctx, "btrfs", "filesystem", "resize", "max", dir)
			return err
		})
	case "swap":
		err = growSwap(ctx, dev)
	}
	if err != nil {
		return "", fmt.Errorf("enlarge the %s of partition %d, which is as it was in the image: %w", p.Content, p.Number, err)
	}
	return "the " + p.Content + " was enlarged", nil
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// whileMounted mounts a filesystem where nobody else sees it, for f.
func whileMounted(dev, kind, options string, f func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "platter-grow-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount(dev, dir, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	return f(dir)
}

// growSwap makes swap anew with the UUID and the label that it had.
func growSwap(ctx context.Context, dev string) error {
	args := []string{}
	for flag, tag := range map[string]string{"-U": "UUID", "-L": "LABEL"} {
		out, err := programs.Run(ctx, "blkid", "-p", "-o", "value", "-s", tag, dev)
		if v := strings.TrimSpace(string(out)); err == nil && v != "" {
			args = append(args, flag, v)
		}
	}
	_, err := programs.Run(ctx, "mkswap", append(args, dev)...)
	return err
}
