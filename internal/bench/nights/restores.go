package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// restores measures going back to the newest image by the tracer after a change,
// and writing the whole disk: by a restore, with and without reading back, by
// qemu-img from a qcow2, and by nothing but writes one after the other.
func restores(ctx context.Context, p *platter, size, changed int64, n int) error {
	defer os.RemoveAll(filepath.Join(p.dir, "repo"))
	defer os.RemoveAll(filepath.Join(p.dir, "state"))
	return withBareDisk(p.dir, size, func(dev, root string) error {
		for _, args := range [][]string{{"init", "--no-encryption", "-q"}, {"tracker", "run"}, {"backup", dev, "--volume", "back", "--all-blocks", "-q"}} {
			if _, err := p.run(ctx, args...); err != nil {
				return err
			}
		}
		defer p.run(context.WithoutCancel(ctx), "tracker", "stop")
		copied := filepath.Join(p.dir, "copy.qcow2")
		defer os.Remove(copied)
		if err := command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-W", "-m", "16", dev, copied); err != nil {
			return err
		}
		dice := rand.New(rand.NewPCG(3, 4))
		platter := func(args ...string) func() error {
			return func() error {
				_, err := p.run(ctx, append([]string{"restore", "back", dev, "--yes", "-q"}, args...)...)
				return err
			}
		}
		var back []time.Duration
		for range n {
			if err := mounted(dev, root, func() error { return change(filepath.Join(root, "file"), changed, dice) }); err != nil {
				return err
			}
			took, err := timed(platter("--in-place"))
			if err != nil {
				return err
			}
			back = append(back, took)
			if _, err := p.run(ctx, "backup", dev, "--volume", "back", "--all-blocks", "-q"); err != nil {
				return err
			}
		}
		whole := []struct {
			name string
			f    func() error
			took []time.Duration
		}{
			{name: "a restore, read back", f: platter()},
			{name: "a restore without reading back", f: platter("--no-read-back")},
			{name: "qemu-img convert from a qcow2", f: func() error {
				return command("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", "-t", "none", "-W", "-m", "16", copied, dev)
			}},
			{name: "plain writes of 1 MiB, past the page cache, one after the other", f: func() error { return overwrite(dev, size) }},
		}
		for range n {
			for i := range whole {
				unix.Sync()
				took, err := timed(whole[i].f)
				if err != nil {
					return fmt.Errorf("%s: %w", whole[i].name, err)
				}
				whole[i].took = append(whole[i].took, took)
			}
		}
		fmt.Printf("A disk of %d GiB, nine tenths of it data that cannot be compressed; medians of %d.\n\n| | wall s | min … max | of it a rollback takes |\n|---|---|---|---|\n", size>>30, n)
		slices.Sort(back)
		mid := back[(n-1)/2].Seconds()
		fmt.Printf("| rollback of %.1f MB that changed, by the tracer, read back | %.2f | %.2f … %.2f | |\n", mb(changed), mid, back[0].Seconds(), back[n-1].Seconds())
		for _, w := range whole {
			slices.Sort(w.took)
			all := w.took[(n-1)/2].Seconds()
			fmt.Printf("| %s | %.2f | %.2f … %.2f | %.2f × |\n", w.name, all, w.took[0].Seconds(), w.took[n-1].Seconds(), mid/all)
		}
		fmt.Println()
		return nil
	})
}

func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// overwrite writes a device from front to end, durably.
func overwrite(dev string, size int64) error {
	fd, err := unix.Open(dev, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dev, err)
	}
	defer unix.Close(fd)
	buf, err := unix.Mmap(-1, 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	rand.NewChaCha8([32]byte{7}).Read(buf)
	for off := int64(0); off < size; off += mib {
		if _, err := unix.Pwrite(fd, buf, off); err != nil {
			return fmt.Errorf("write %s at %d: %w", dev, off, err)
		}
	}
	return unix.Fsync(fd)
}
