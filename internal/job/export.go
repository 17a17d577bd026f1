package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"platter/image"
	"platter/internal/export"
	"platter/internal/export/nbd"
)

// ExportFormats are those that Export writes, the first one by default.
func ExportFormats() []string { return []string{"qcow2", "vmdk", "vhdx", "vdi", "raw"} }

// ExportOptions say which image becomes a file, and of what format.
type ExportOptions struct {
	Image  string
	Target string // a file that does not exist yet
	Format string
}

// An ExportReport tells of the file that was made.
type ExportReport struct {
	Image   *image.Manifest `json:"image"`
	Target  string          `json:"target"`
	Format  string          `json:"format"`
	Bytes   int64           `json:"bytes"` // that the file takes on its disk
	Notices []string        `json:"notices,omitempty"`
	Elapsed time.Duration   `json:"elapsed_ns"`
}

// Export writes an image to a disk file of a format of virtual machines, by
// qemu-img, which reads it over NBD. Every block is checked on its way. The
// file has its name only when it is whole and durable.
func Export(ctx context.Context, env *Env, opts ExportOptions) (*ExportReport, error) {
	start := time.Now()
	if !slices.Contains(ExportFormats(), opts.Format) {
		return nil, fmt.Errorf("export: %w: format %q: want one of %v", ErrUsage, opts.Format, ExportFormats())
	}
	if _, err := os.Lstat(opts.Target); err == nil {
		return nil, fmt.Errorf("export to %s: %w: remove it first, or name another file", opts.Target, fs.ErrExist)
	}
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		return nil, fmt.Errorf("export: %w: install Debian's package qemu-utils", err)
	}
	o, err := offer(ctx, env, &OfferOptions{Image: opts.Image})
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	defer o.close()
	report := &ExportReport{Image: o.image, Target: opts.Target, Format: opts.Format, Notices: imageNotices(o.image)}
	dir, err := os.MkdirTemp(filepath.Dir(opts.Target), ".platter-export-")
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "disk")
	if err := convert(ctx, env, o, tool, opts.Format, dir, made); err != nil {
		return nil, fmt.Errorf("export image %s to %s: %w", o.image.ID, opts.Target, err)
	}
	if report.Bytes, err = settle(made, opts.Target); err != nil {
		return nil, fmt.Errorf("export to %s: %w", opts.Target, err)
	}
	report.Elapsed = time.Since(start)
	return report, nil
}

// convert has qemu-img read the image from a socket in dir.
func convert(ctx context.Context, env *Env, o *offered, tool, format, dir, made string) error {
	socket := filepath.Join(dir, "nbd")
	l, err := listen(ctx, &NBDOptions{Unix: socket}, false)
	if err != nil {
		return err
	}
	counts := new(counters)
	stop := env.report("export", o.image.Volume, "write", o.image.Size, counts, func() int64 { return 0 })
	defer stop()
	var failed error // what the server says is more than what its client hears
	serve, end := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	s := &nbd.Server{Device: &counting{o.disk, counts}, Log: func(err error) { failed = errors.Join(failed, err) }, MaxConnections: 1}
	group.Go(func() error { return s.Serve(serve, l) })
	group.Go(func() error {
		defer end()
		cmd := exec.CommandContext(ctx, tool, "convert", "-f", "raw", "-O", format, "-W", "-m", "8",
			"nbd+unix:///?socket="+socket, made)
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("qemu-img: %w: %s", err, bytes.TrimSpace(said.Bytes()))
		}
		return nil
	})
	err = group.Wait()
	if failed != nil && err != nil {
		return failed
	}
	return err
}

// counting counts what is read of a disk as done.
type counting struct {
	export.Device
	counts *counters
}

func (c *counting) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := c.Device.ReadAt(ctx, p, off)
	c.counts.done.Add(int64(n))
	return n, err
}

// settle makes a file durable and gives it its name, which nothing may have.
// It returns what the file takes on its disk in bytes.
func settle(made, name string) (int64, error) {
	f, err := os.Open(made)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := errors.Join(f.Chmod(0o600), f.Sync()); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE); err != nil {
		return 0, err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return 0, err
	}
	return st.Blocks * 512, errors.Join(dir.Sync(), dir.Close())
}
