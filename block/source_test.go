package block

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// readAll reads a source in pieces, its data extents only, and returns the
// whole device.
func readAll(t *testing.T, src Source, piece int) []byte {
	t.Helper()
	size := src.Info().Size
	all := make([]byte, size)
	pool, err := NewPool(1, piece)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for off := int64(0); ; {
		e, err := src.Data(off)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Offset < off || e.Length <= 0 || e.Offset%pageSize != 0 || e.End()%pageSize != 0 && e.End() != size {
			t.Fatalf("Data(%d) = %v on a device of %d bytes", off, e, size)
		}
		for at := e.Offset; at < e.End(); at += int64(piece) {
			b, err := pool.Get(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			p := b[:min(int64(piece), e.End()-at)]
			n, err := src.ReadAt(context.Background(), p, at)
			if err != nil || n != len(p) {
				t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(p), at, n, err)
			}
			copy(all[at:], p)
			pool.Put(p)
		}
		off = e.End()
	}
}

func open(t *testing.T, path string) *source {
	t.Helper()
	src, err := Open(path, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src.(*source)
}

func TestFilesOfAnySizeReadBack(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 4095, 4096, 4097, 12345, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 777} {
		path := filepath.Join(t.TempDir(), "file")
		want := noise(uint64(size), size)
		writeFile(t, path, want, 0)
		for _, state := range []string{"warm", "cold"} {
			src := open(t, path)
			if state == "cold" {
				evict(t, path)
			}
			equal(t, state, readAll(t, src, 1<<20), want)
			equal(t, state+" in pieces", readAll(t, src, 64<<10), want)
			if err := src.Check(); err != nil {
				t.Error(err)
			}
			if err := src.Still(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestHolesAreNotData(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	sparse(t, path, 64<<20+100)
	want := make([]byte, 64<<20+100)
	for _, at := range []int64{0, 10<<20 + 5000, 63 << 20} {
		b := noise(uint64(at), 9000)
		writeFile(t, path, b, at)
		copy(want[at:], b)
	}
	src := open(t, path)
	equal(t, "file", readAll(t, src, 1<<20), want)
	var data int64
	for off := int64(0); ; {
		e, err := src.Data(off)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data += e.Length
		off = e.End()
	}
	if data > 1<<20 {
		t.Errorf("data extents of %d bytes for 27000 written", data)
	}
}

func TestColdFileStaysOutOfPageCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	want := noise(1, 8<<20)
	writeFile(t, path, want, 0)
	evict(t, path)
	src := open(t, path)
	if !src.Direct() {
		t.Skip("NOT TESTED: no O_DIRECT here")
	}
	before := cached(src)
	equal(t, "file", readAll(t, src, 1<<20), want)
	if after := cached(src); after > before+16 {
		t.Errorf("pages in the cache: %d before, %d after", before, after)
	}
}

// evict drops a file's pages from the cache.
func evict(t *testing.T, path string) {
	t.Helper()
	run1(t, "dd", "if="+path, "iflag=nocache", "count=0", "status=none")
}

func cached(s *source) (pages int) {
	vec := make([]byte, roundUp(len(s.resident.mem), pageSize)/pageSize)
	if len(vec) > 0 && mincore(s.resident.mem, vec) == nil {
		for _, v := range vec {
			pages += int(v & 1)
		}
	}
	return pages
}

func TestPartlyCachedFileReadsRight(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	want := noise(2, 4<<20+1234)
	writeFile(t, path, want, 0)
	for _, warm := range []Extent{{0, 200 << 10}, {1<<20 + 8192, 300 << 10}, {4<<20 - 100<<10, 101<<10 + 210}, {50 << 10, 4096}} {
		evict(t, path)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(make([]byte, warm.Length), warm.Offset); err != nil {
			t.Fatal(err)
		}
		f.Close()
		equal(t, warm.String(), readAll(t, open(t, path), 1<<20), want)
	}
}

func TestFilesWithoutDirectReadsStayOutOfPageCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	want := noise(11, 4<<20+99)
	writeFile(t, path, want, 0)
	for _, state := range []string{"cold", "warm"} {
		src := open(t, path)
		if err := src.direct.Close(); err != nil {
			t.Fatal(err)
		}
		src.direct = nil
		if state == "cold" {
			evict(t, path)
		} else {
			readFile(t, path)
		}
		before := cached(src)
		equal(t, state, readAll(t, src, 1<<20), want)
		// What was there stays, but for a few pages that the kernel may want
		// back at any time; what was not there is gone again.
		if after := cached(src); after > before+1 || state == "warm" && after < before/2 {
			t.Errorf("%s: pages in the cache: %d before, %d after", state, before, after)
		}
	}
}

func TestDevicesWithoutDirectReadsReadBack(t *testing.T) {
	dev, _ := loopDisk(t, 1<<20+512, 512)
	want := noise(12, 1<<20+512)
	writeFile(t, dev, want, 0)
	src := open(t, dev)
	h, err := openHandle(dev, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	src.direct.Close()
	src.direct, src.buffered = nil, h
	equal(t, dev, readAll(t, src, 64<<10), want)
	if src.Direct() {
		t.Error("says that it reads past the page cache")
	}
	if err := src.Check(); err != nil {
		t.Error(err)
	}
}

func TestDevicesReadBack(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		size := int64(5<<20 + 3*4096)
		if sector == 512 {
			size += 512
		}
		dev, file := loopDisk(t, size, sector)
		want := noise(uint64(sector), int(size))
		writeFile(t, dev, want, 0)
		src := open(t, dev)
		if !src.Direct() {
			t.Errorf("sector %d: not read past the page cache", sector)
		}
		info := src.Info()
		if info.Size != size || info.LogicalSector != sector {
			t.Errorf("got %d bytes in sectors of %d, want %d in %d", info.Size, info.LogicalSector, size, sector)
		}
		equal(t, dev, readAll(t, src, 1<<20), want)
		equal(t, file, readFile(t, file), want)
		if err := errors.Join(src.Check(), src.Still()); err != nil {
			t.Error(err)
		}
	}
}

func TestBuffersNeedNotBeAligned(t *testing.T) {
	dev, _ := loopDisk(t, 1<<20, 4096)
	want := noise(9, 1<<20)
	writeFile(t, dev, want, 0)
	for _, path := range []string{dev} {
		src := open(t, path)
		for _, e := range []Extent{{0, 1}, {4096, 4095}, {8192, 4097}, {12345, 54321}} {
			p := make([]byte, e.Length+1)[1:]
			if _, err := src.ReadAt(context.Background(), p, e.Offset); err != nil {
				t.Fatal(err)
			}
			equal(t, e.String(), p, want[e.Offset:e.End()])
		}
	}
}

func TestShrunkFileIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, noise(3, 1<<20), 0)
	src := open(t, path)
	if err := os.Truncate(path, 300_000); err != nil {
		t.Fatal(err)
	}
	if err := src.Check(); !errors.Is(err, ErrResized) {
		t.Errorf("Check() = %v, want ErrResized", err)
	}
	p, _ := AllocAligned(1 << 20)
	defer FreeAligned(p)
	if n, err := src.ReadAt(context.Background(), p, 0); !errors.Is(err, ErrResized) || n >= len(p) {
		t.Errorf("ReadAt = %d, %v, want ErrResized", n, err)
	}
}

func TestResizedDeviceIsNoticed(t *testing.T) {
	for _, size := range []int64{512 << 10, 2 << 20} {
		dev, file := loopDisk(t, 1<<20, 512)
		src := open(t, dev)
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		run1(t, "losetup", "-c", dev)
		if err := src.Check(); !errors.Is(err, ErrResized) {
			t.Errorf("Check() = %v, want ErrResized", err)
		}
		if size > 1<<20 {
			continue
		}
		p, _ := AllocAligned(1 << 20)
		defer FreeAligned(p)
		if _, err := src.ReadAt(context.Background(), p, 0); !errors.Is(err, ErrResized) {
			t.Errorf("ReadAt = %v, want ErrResized", err)
		}
	}
}

func TestWritesWhileReadingAreNoticed(t *testing.T) {
	dev, _ := loopDisk(t, 1<<20, 512)
	src := open(t, dev)
	writeFile(t, dev, noise(4, 4096), 8192)
	if err := src.Still(); err == nil {
		t.Error("a write to the device went unnoticed")
	}
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, noise(5, 4096), 0)
	src = open(t, path)
	writeFile(t, path, noise(6, 4096), 0)
	if err := src.Still(); err == nil {
		t.Error("a write to the file went unnoticed")
	}
}

func TestOpenRefusesWhatIsNoDisk(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir:           "a directory",
		"/dev/null":   "a character device",
		dir + "/none": "no such file",
	} {
		_, err := Open(path, OpenOptions{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("Open(%s) = %v, want something with %q", path, err, want)
		}
	}
}

func TestCancelledReadStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, noise(7, 4096), 0)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := open(t, path).ReadAt(ctx, make([]byte, 4096), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestReadPastTheEndFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, noise(8, 5000), 0)
	src := open(t, path)
	for _, e := range []Extent{{4096, 905}, {8192, 1}, {-4096, 1}, {1 << 62, 1}} {
		if _, err := src.ReadAt(context.Background(), make([]byte, e.Length), e.Offset); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("ReadAt(%v) = %v, want unexpected EOF", e, err)
		}
	}
}
