package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const page = 4096 // bytes of a write, and what buffers of O_DIRECT begin on

// overhead writes at random places, 4 KiB at a time past the page cache, by turns
// with the tracer and without, and prints what it costs: on the disk that dir is on,
// and on one in memory, where nothing else takes time.
func overhead(ctx context.Context, p *platter, pairs int, turn time.Duration) error {
	const size = 1 << 30
	file := filepath.Join(p.dir, "file")
	if err := fill(file, size); err != nil {
		return err
	}
	if err := compare(ctx, p, "a file on a disk", file, size, pairs, turn); err != nil {
		return err
	}
	memory := filepath.Join("/dev/shm", filepath.Base(p.dir))
	defer os.Remove(memory)
	if err := fill(memory, size); err != nil {
		return err
	}
	out, err := exec.Command("losetup", "--find", "--show", memory).Output()
	if err != nil {
		return fmt.Errorf("attach a loop device to %s: %w", memory, err)
	}
	dev := strings.TrimSpace(string(out))
	defer command("losetup", "--detach", dev)
	return compare(ctx, p, "a loop device in memory", dev, size, pairs, turn)
}

func compare(ctx context.Context, p *platter, name, dev string, size int64, pairs int, turn time.Duration) error {
	if _, err := hammer(ctx, dev, size, 2*turn); err != nil {
		return err
	}
	var shares, with, without []float64
	for n := range pairs {
		var rate [2]float64
		for k := range rate {
			traced := (k+n)%2 == 1
			r, err := p.hammer(ctx, dev, size, turn, traced)
			if err != nil {
				return err
			}
			if traced {
				rate[1] = r
			} else {
				rate[0] = r
			}
		}
		without, with = append(without, rate[0]), append(with, rate[1])
		shares = append(shares, 100*(rate[0]-rate[1])/rate[0])
	}
	for _, all := range [][]float64{shares, with, without} {
		slices.Sort(all)
	}
	mid := (pairs - 1) / 2
	fmt.Printf("Random writes of 4 KiB to %s, O_DIRECT, one after the other: %.0f a second without the tracer, %.0f with it (medians of %d turns of %v each): %.1f %% fewer; of pairs the median is %.1f %%, half of them between %.1f and %.1f.\n",
		name, without[mid], with[mid], pairs, turn, 100*(without[mid]-with[mid])/without[mid], shares[mid], shares[pairs/4], shares[pairs-1-pairs/4])
	return nil
}

// hammer lets the tracer run, or not, while it hammers.
func (p *platter) hammer(ctx context.Context, dev string, size int64, turn time.Duration, traced bool) (float64, error) {
	if !traced {
		return hammer(ctx, dev, size, turn)
	}
	if _, err := p.run(ctx, "tracker", "run"); err != nil {
		return 0, err
	}
	rate, err := hammer(ctx, dev, size, turn)
	_, stop := p.run(context.WithoutCancel(ctx), "tracker", "stop")
	return rate, errors.Join(err, stop)
}

// hammer returns how many writes a second a device took.
func hammer(ctx context.Context, dev string, size int64, turn time.Duration) (float64, error) {
	fd, err := unix.Open(dev, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", dev, err)
	}
	defer unix.Close(fd)
	buf, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buf)
	start := time.Now()
	dice := rand.New(rand.NewPCG(uint64(start.UnixNano()), 1))
	n := 0
	for ; time.Since(start) < turn && ctx.Err() == nil; n++ {
		if _, err := unix.Pwrite(fd, buf, dice.Int64N(size/page)*page); err != nil {
			return 0, fmt.Errorf("write %s: %w", dev, err)
		}
	}
	return float64(n) / time.Since(start).Seconds(), ctx.Err()
}
