package block

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func target(t *testing.T, path string, opts TargetOptions) *Target {
	t.Helper()
	tg, err := OpenTarget(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tg.Close() })
	return tg
}

// targets calls f with a used device of each sector size and a file, all of
// size bytes, and with what each of them holds.
func targets(t *testing.T, size int64, f func(t *testing.T, tg *Target, path string, old []byte)) {
	old := noise(77, int(size))
	for _, sector := range []int{512, 4096} {
		if size%int64(sector) != 0 {
			continue
		}
		t.Run(map[int]string{512: "512", 4096: "4096"}[sector], func(t *testing.T) {
			dev, _ := loopDisk(t, size, sector)
			writeFile(t, dev, old, 0)
			f(t, target(t, dev, TargetOptions{Size: size}), dev, old)
		})
	}
	t.Run("file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		writeFile(t, path, old, 0)
		f(t, target(t, path, TargetOptions{Size: size, InPlace: true}), path, old)
	})
	t.Run("buffered", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		writeFile(t, path, old, 0)
		tg := target(t, path, TargetOptions{Size: size, InPlace: true})
		tg.direct.Close()
		tg.direct = nil
		f(t, tg, path, old)
	})
}

func TestWritesLandWhereTheyShould(t *testing.T) {
	extents := []Extent{{0, 4096}, {8192, 65536}, {100_000, 1}, {100_352, 512}, {131_000, 9000}, {200_001, 4095}, {1<<20 - 1, 1}, {1<<20 - 5000, 4000}, {300_000, 0}}
	targets(t, 1<<20, func(t *testing.T, tg *Target, path string, want []byte) {
		want = bytes.Clone(want)
		for i, e := range extents {
			b, err := AllocAligned(int(e.Length) + 4096)
			if err != nil {
				t.Fatal(err)
			}
			defer FreeAligned(b)
			skip := i % 2 // every second buffer is not aligned
			p := b[skip : skip+int(e.Length)]
			copy(p, noise(uint64(i), len(p)))
			if n, err := tg.WriteAt(p, e.Offset); err != nil || n != len(p) {
				t.Fatalf("WriteAt(%v) = %d, %v", e, n, err)
			}
			copy(want[e.Offset:], p)
			got := make([]byte, e.Length)
			if _, err := tg.ReadAt(got, e.Offset); err != nil {
				t.Fatal(err)
			}
			equal(t, "read "+e.String(), got, p)
		}
		if err := tg.Sync(); err != nil {
			t.Fatal(err)
		}
		equal(t, path, readFile(t, path), want)
	})
}

func TestZeroReallyReadsZero(t *testing.T) {
	extents := []Extent{{0, 4096}, {10_000, 1}, {65_536, 131_072}, {300_001, 100_003}, {1<<20 - 700, 700}, {500_000, 0}}
	targets(t, 1<<20, func(t *testing.T, tg *Target, path string, want []byte) {
		want = bytes.Clone(want)
		for _, e := range extents {
			if err := tg.Zero(context.Background(), e); err != nil {
				t.Fatal(err)
			}
			clear(want[e.Offset:e.End()])
		}
		got := make([]byte, len(want))
		if _, err := tg.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		equal(t, "target", got, want)
		equal(t, path, readFile(t, path), want)
	})
}

func TestZeroFallsBackWhenTheDeviceCannot(t *testing.T) {
	targets(t, 1<<20, func(t *testing.T, tg *Target, path string, want []byte) {
		for _, off := range []bool{true, false} {
			tg.zero.noUnmap.Store(true)
			tg.zero.noZeroOut.Store(off)
			e := Extent{123_456, 400_000}
			if off {
				e.Offset += 450_000
			}
			if err := tg.Zero(context.Background(), e); err != nil {
				t.Fatal(err)
			}
			clear(want[e.Offset:e.End()])
		}
		equal(t, path, readFile(t, path), want)
	})
}

func TestZeroHeedsItsContext(t *testing.T) {
	targets(t, 1<<20, func(t *testing.T, tg *Target, path string, want []byte) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err := tg.Zero(ctx, Extent{0, 1 << 20})
		if !tg.file && !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	})
}

func TestTransfersOutsideTheTargetFail(t *testing.T) {
	targets(t, 1<<20, func(t *testing.T, tg *Target, path string, want []byte) {
		for _, e := range []Extent{{1 << 20, 1}, {1<<20 - 1, 2}, {-1, 1}, {1 << 62, 8}} {
			if _, err := tg.WriteAt(make([]byte, e.Length), e.Offset); err == nil {
				t.Errorf("WriteAt(%v) succeeded", e)
			}
			if err := tg.Zero(context.Background(), e); err == nil {
				t.Errorf("Zero(%v) succeeded", e)
			}
		}
		if err := tg.Zero(context.Background(), Extent{1, 1<<63 - 1}); err == nil {
			t.Error("Zero of an overflowing extent succeeded")
		}
		if n, err := tg.ReadAt(make([]byte, 10), 1<<20-4); n != 4 || err != io.EOF {
			t.Errorf("ReadAt over the end = %d, %v, want 4, EOF", n, err)
		}
		equal(t, path, readFile(t, path), want)
	})
}

func TestNewFileIsSparsePrivateAndOfTheImagesSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	p, err := PlanTarget(path, TargetOptions{Size: 10<<20 + 123})
	if err != nil {
		t.Fatal(err)
	}
	if !p.Create || !p.File || p.Old != "" {
		t.Errorf("plan = %+v", p)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatalf("planning made the file: %v", err)
	}
	tg, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tg.Close()
	want := make([]byte, 10<<20+123)
	tail := noise(1, 60_000)
	copy(want[len(want)-len(tail):], tail)
	if _, err := tg.WriteAt(tail, int64(len(want)-len(tail))); err != nil {
		t.Fatal(err)
	}
	if err := tg.Sync(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	equal(t, path, readFile(t, path), want)
	e, err := tg.Data(0)
	if err != nil || e.Offset < 9<<20 {
		t.Errorf("Data(0) = %v, %v", e, err)
	}
	if _, err := p.Open(); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Open of the plan = %v, want that it exists", err)
	}
}

func TestOldContentOfAFileDoesNotShow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old")
	writeFile(t, path, noise(1, 100_000), 0)
	p, err := PlanTarget(path, TargetOptions{Size: 50_000})
	if err != nil {
		t.Fatal(err)
	}
	if p.Create || p.Old == "" {
		t.Errorf("plan = %+v", p)
	}
	if n := len(readFile(t, path)); n != 100_000 {
		t.Fatalf("planning changed the file to %d bytes", n)
	}
	tg, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tg.Close()
	equal(t, path, readFile(t, path), make([]byte, 50_000))
}

func TestSwappedTargetIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	writeFile(t, path, noise(1, 5000), 0)
	p, err := PlanTarget(path, TargetOptions{Size: 5000})
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	writeFile(t, other, noise(2, 5000), 0)
	before := sum(t, other)
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(); !errors.Is(err, ErrRefused) {
		t.Errorf("Open = %v, want ErrRefused", err)
	}
	if err := os.Rename(path, other); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, path); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(); err == nil {
		t.Error("a link put in the target's place was followed")
	}
	if sum(t, other) != before {
		t.Error("the other file was written to")
	}
}

func TestReattachedLoopIsAnotherDevice(t *testing.T) {
	dev, file := loopDisk(t, 1<<20, 512)
	p, err := PlanTarget(dev, TargetOptions{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	run1(t, "losetup", "-d", dev)
	other := filepath.Join(t.TempDir(), "other")
	writeFile(t, other, noise(3, 1<<20), 0)
	before := sum(t, other)
	run1(t, "losetup", dev, other)
	if _, err := p.Open(); !errors.Is(err, ErrRefused) {
		t.Errorf("Open = %v, want ErrRefused", err)
	}
	if sum(t, other) != before {
		t.Error("the other device was written to")
	}
	_ = file
}

func TestTwoRestoresToOneTarget(t *testing.T) {
	dev, _ := loopDisk(t, 1<<20, 512)
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, noise(1, 1000), 0)
	for _, target := range []string{dev, path} {
		first, err := OpenTarget(target, TargetOptions{Size: 1000, InPlace: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenTarget(target, TargetOptions{Size: 1000, InPlace: true}); !errors.Is(err, ErrRefused) {
			t.Errorf("second restore to %s: %v, want ErrRefused", target, err)
		}
		first.Close()
	}
}

func TestMistypedDeviceIsNotCreated(t *testing.T) {
	_, err := PlanTarget("/dev/no-such-disk", TargetOptions{Size: 1})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "platter devices") {
		t.Errorf("got %v, want ErrRefused with advice", err)
	}
}

func TestFailedSyncIsFinal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	tg := target(t, path, TargetOptions{Size: 8192})
	good := tg.direct
	bad, err := openHandle("/dev/full", os.O_RDWR, 0) // has no fsync
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	tg.direct = bad
	if err := tg.Sync(); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("Sync = %v", err)
	}
	tg.direct = good
	for what, err := range map[string]error{
		"Sync":  tg.Sync(),
		"Zero":  tg.Zero(context.Background(), Extent{0, 4096}),
		"Write": func() error { _, err := tg.WriteAt(make([]byte, 4096), 0); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "may be lost") {
			t.Errorf("%s after a failed sync = %v", what, err)
		}
	}
}

func TestFullDiskNamesFileAndRemedy(t *testing.T) {
	dir := t.TempDir()
	run1(t, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir)
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	path := filepath.Join(dir, "file")
	tg := target(t, path, TargetOptions{Size: 4 << 20})
	defer tg.Close()
	_, err := tg.WriteAt(make([]byte, 2<<20), 65536)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), path+" at 65536") || !strings.Contains(err.Error(), "make room") {
		t.Errorf("WriteAt = %v", err)
	}
}

func TestRereadOfATableIsANotice(t *testing.T) {
	dev, _ := loopDisk(t, 1<<20, 512)
	// The kernel reads tables of loop devices only when asked at attaching.
	if err := target(t, dev, TargetOptions{}).RereadTable(); err != nil && !errors.Is(err, ErrReread) {
		t.Errorf("device: %v", err)
	}
	if err := target(t, filepath.Join(t.TempDir(), "file"), TargetOptions{}).RereadTable(); err != nil {
		t.Errorf("file: %v", err)
	}
}

func TestReserveTakesSpaceAndShowsZeros(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	target, err := OpenTarget(path, TargetOptions{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := target.Reserve(Extent{Offset: 1 << 20, Length: 2 << 20}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	if _, err := target.ReadAt(b, 2<<20); err != nil || !bytes.Equal(b, make([]byte, 4096)) {
		t.Errorf("reserved space reads as %x, %v; want zeros", b[:8], err)
	}
	if target.Size() != 8<<20 {
		t.Errorf("size %d after reserving, want %d", target.Size(), 8<<20)
	}
	if err := target.Reserve(Extent{Offset: 1 << 20, Length: 1 << 60}); err == nil {
		t.Error("more than there is was reserved")
	}
}
