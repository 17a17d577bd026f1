package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"platter/image/store"
	"platter/image/store/storetest"
	"platter/image/store/vfs"
)

// filesystems are where the tests run: that of the temporary directory, and
// one in memory that knows no O_DIRECT or does it its own way.
func filesystems(t *testing.T, test func(t *testing.T, dir string)) {
	t.Run("disk", func(t *testing.T) { test(t, t.TempDir()) })
	t.Run("memory", func(t *testing.T) {
		dir, err := os.MkdirTemp("/dev/shm", "platter-test-")
		if err != nil {
			t.Skipf("SKIP: no file system in memory: %v", err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		test(t, dir)
	})
}

func write(t *testing.T, path string, parts ...[]byte) {
	t.Helper()
	var size int64
	for _, p := range parts {
		size += int64(len(p))
	}
	f, err := vfs.OS().Create(path, size)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if n, err := f.Write(p); n != len(p) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(p), err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWriteWhateverAlignment(t *testing.T) {
	filesystems(t, func(t *testing.T, dir string) {
		big := storetest.Bytes(1, 12<<20+300)
		for name, parts := range map[string][][]byte{
			"whole":     {big},
			"aligned":   {big[:4096], big[4096 : 8<<20]},
			"odd first": {big[:100], big[4096 : 10<<20]},
			"odd last":  {big[:9<<20], big[:1]},
			"skewed":    {big[1 : 9<<20]},
			"odd amid":  {big[:1<<20], big[:5000], big[:5<<20], big[:4096]},
			"small":     {big[:5000]},
			"empty":     {},
		} {
			path := filepath.Join(dir, name)
			write(t, path, parts...)
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, bytes.Join(parts, nil)) {
				t.Errorf("%s: %d bytes that differ from those written, %v", name, len(got), err)
			}
		}
	})
}

// cached returns how much of a file the page cache holds, in bytes.
func cached(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0); err != nil {
		t.Skipf("SKIP: cachestat: %v (needs Linux 6.5)", err)
	}
	return int64(st.Cache) * int64(os.Getpagesize())
}

func TestLargeFilesStayOutOfPageCache(t *testing.T) {
	dir := vfs.OnDisk(t)
	const size = 32 << 20
	big, buffer := storetest.Bytes(1, size+1), store.AllocAligned(size)
	for name, parts := range map[string][][]byte{
		"direct":   {big[:size]},
		"odd tail": {big[:size], big[:77]},
		"buffered": {big[1 : size+1]},
	} {
		path := filepath.Join(dir, name)
		write(t, path, parts...)
		if got := cached(t, path); got > 64<<10 {
			t.Errorf("%s: %d bytes in the page cache after a write", name, got)
		}
		for _, p := range [][]byte{buffer[:size], buffer[1:size], buffer[1 : 1<<20]} {
			readUncached(t, path, p, 0)
			readUncached(t, path, p[:len(p)/2], 12345)
		}
		if got := cached(t, path); got > 64<<10 {
			t.Errorf("%s: %d bytes in the page cache after reads", name, got)
		}
	}
	path := filepath.Join(dir, "small")
	write(t, path, big[:100000])
	if got := cached(t, path); got < 50000 {
		t.Errorf("small: %d bytes in the page cache, want most of 100000", got)
	}
}

// readUncached reads a file that the page cache does not hold and compares.
func readUncached(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want = want[off:min(off+int64(len(p)), int64(len(want)))]
	dropCache(t, path)
	f, err := vfs.OS().Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.ReadAt(p, off)
	if n != len(want) || err != nil && (err != io.EOF || n == len(p)) || !bytes.Equal(p[:n], want) {
		t.Fatalf("read %d at %d: got %d bytes, want %d, or others; %v", len(p), off, n, len(want), err)
	}
}

func dropCache(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

func TestReadFromPageCacheOrPastIt(t *testing.T) {
	filesystems(t, func(t *testing.T, dir string) {
		path, data := filepath.Join(dir, "f"), storetest.Bytes(1, 3<<20+1234)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, drop := range []bool{false, true} {
			f, err := vfs.OS().Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			buffer := store.AllocAligned(4 << 20)
			for _, skew := range []int{0, 1, 4096} {
				for _, off := range []int{0, 1, 4096, 1 << 20, len(data) - 1, len(data) - 200000, len(data)} {
					for _, n := range []int{1, 4096, 128 << 10, 128<<10 + 1, 1 << 20, 1<<20 + 100, 3 << 20} {
						if drop {
							dropCache(t, path)
						}
						p := buffer[skew:][:n]
						want := data[off:min(off+n, len(data))]
						got, err := f.ReadAt(p, int64(off))
						if got != len(want) || !bytes.Equal(p[:got], want) {
							t.Fatalf("read %d at %d, skew %d: got %d bytes, want %d, or others", n, off, skew, got, len(want))
						}
						if short := got < n; short != (err == io.EOF) || !short && err != nil {
							t.Fatalf("read %d at %d: got %d bytes and error %v", n, off, got, err)
						}
					}
				}
			}
		}
	})
}

func TestConcurrentUnalignedReads(t *testing.T) {
	path, data := filepath.Join(t.TempDir(), "f"), storetest.Bytes(1, 8<<20)
	write(t, path, data)
	f, err := vfs.OS().Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var wg sync.WaitGroup
	for w := range 10 { // more than there are buffers
		wg.Go(func() {
			p := make([]byte, 3<<20)
			for i := range 4 {
				off := w*100001 + i*500003
				if n, err := f.ReadAt(p, int64(off)); n != len(p) || err != nil || !bytes.Equal(p, data[off:][:n]) {
					t.Errorf("read at %d: %d, %v, or other bytes", off, n, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestRenameNeverReplaces(t *testing.T) {
	filesystems(t, func(t *testing.T, dir string) {
		fsys := vfs.OS()
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		write(t, a, []byte("a"))
		write(t, b, []byte("b"))
		if err := fsys.Rename(a, b); !errors.Is(err, fs.ErrExist) {
			t.Errorf("rename over another: got %v, want ErrExist", err)
		}
		if got, _ := os.ReadFile(b); string(got) != "b" {
			t.Errorf("b holds %q", got)
		}
		if err := os.Remove(b); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Rename(a, b); err != nil {
			t.Error(err)
		}
		if err := fsys.Rename(a, b); err == nil {
			t.Errorf("rename of a missing file: no error")
		}
		if got, _ := os.ReadFile(b); string(got) != "a" {
			t.Errorf("b holds %q, want a", got)
		}
	})
}

func TestOpenRefusesAllButRegularFiles(t *testing.T) {
	dir := t.TempDir()
	file, link, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	write(t, file, []byte("x"))
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, fifo, dir, "/dev/null"} {
		if _, err := vfs.OS().Open(path); !errors.Is(err, vfs.ErrNotRegular) {
			t.Errorf("open %s: got %v, want ErrNotRegular", path, err)
		}
		if st, err := vfs.OS().Stat(path); err != nil || st.Kind == vfs.Regular {
			t.Errorf("stat %s: got %+v, %v", path, st, err)
		}
	}
	if _, err := vfs.OS().Create(link, 1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over a link: got %v, want ErrExist", err)
	}
	if err := vfs.OS().Remove(dir); err == nil {
		t.Errorf("remove took a directory")
	}
}

func TestTouchTellsTheTime(t *testing.T) {
	filesystems(t, func(t *testing.T, dir string) {
		before := time.Now().Add(-time.Second)
		got, err := vfs.OS().Touch(dir)
		if err != nil || got.Before(before) || got.After(time.Now().Add(time.Second)) {
			t.Errorf("got %v, %v, the machine's clock says %v", got, err, time.Now())
		}
	})
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := vfs.OS().Mkdir(dir); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/f", []byte("x"))
	for path, want := range map[string]fs.FileMode{dir: 0o700, dir + "/f": 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v, want %v", path, st.Mode(), err, want)
		}
	}
	if err := vfs.OS().SyncDir(dir); err != nil {
		t.Error(err)
	}
}
