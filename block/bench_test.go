package block

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkTarget writes a file of data and holes in turn and makes it
// durable, past the page cache and through it.
func BenchmarkTarget(b *testing.B) {
	const size, stretch = 512 << 20, 8 << 20
	for _, piece := range []int{64 << 10, 1 << 20} {
		for _, mode := range []string{"direct", "buffered"} {
			b.Run(mode+map[int]string{64 << 10: "/64KiB", 1 << 20: "/1MiB"}[piece], func(b *testing.B) {
				b.SetBytes(size / 2)
				before := cpuTime()
				defer func() { b.ReportMetric((cpuTime()-before).Seconds()*1e3/float64(b.N), "cpu-ms/op") }()
				for b.Loop() {
					path := filepath.Join(b.TempDir(), "file")
					tg, err := OpenTarget(path, TargetOptions{Size: size})
					if err != nil {
						b.Fatal(err)
					}
					if mode == "buffered" {
						tg.direct.Close()
						tg.direct = nil
					}
					inParallel(b, size, stretch, piece, func(p []byte, off int64) error {
						_, err := tg.WriteAt(p, off)
						return err
					})
					if err := tg.Sync(); err != nil {
						b.Fatal(err)
					}
					tg.Close()
					os.Remove(path)
				}
			})
		}
	}
}

// BenchmarkSource reads a file, warm and cold.
func BenchmarkSource(b *testing.B) {
	const size = 256 << 20
	path := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(path, noise(1, size), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, mode := range []string{"warm", "cold"} {
		b.Run(mode, func(b *testing.B) {
			b.SetBytes(size)
			src, err := Open(path, OpenOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer src.Close()
			if mode == "cold" {
				s := src.(*source)
				_ = s.buffered.do(func(fd int) error { return s.buffered.f.Sync() })
				s.buffered.drop(0, 0)
			}
			before := cpuTime()
			defer func() { b.ReportMetric((cpuTime()-before).Seconds()*1e3/float64(b.N), "cpu-ms/op") }()
			for b.Loop() {
				inParallel(b, size, size, 1<<20, func(p []byte, off int64) error {
					_, err := src.ReadAt(context.Background(), p, off)
					return err
				})
			}
		})
	}
}

// cpuTime is what the process has used so far. On a busy machine it tells more
// than the clock.
func cpuTime() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// inParallel calls f from four goroutines for every second stretch of size
// bytes, in pieces.
func inParallel(b *testing.B, size, stretch int64, piece int, f func(p []byte, off int64) error) {
	var wg sync.WaitGroup
	pieces := make(chan int64)
	for range 4 {
		wg.Go(func() {
			p, err := AllocAligned(piece)
			if err != nil {
				b.Error(err)
				return
			}
			defer FreeAligned(p)
			for off := range pieces {
				if err := f(p, off); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for start := int64(0); start < size; start += 2 * stretch {
		for off := start; off < min(size, start+stretch); off += int64(piece) {
			pieces <- off
		}
	}
	close(pieces)
	wg.Wait()
}
