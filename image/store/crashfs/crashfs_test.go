package crashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"platter/image/store/crashfs"
	"platter/image/store/storetest"
	"platter/image/store/vfs"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, f *crashfs.FS, path string, p []byte, sync bool) {
	t.Helper()
	h, err := f.Create(path, int64(len(p)))
	must(t, err)
	_, err = h.Write(p)
	must(t, err)
	if sync {
		must(t, h.Sync())
	}
	must(t, h.Close())
}

// content returns what path holds, nil when it is not there.
func content(t *testing.T, f vfs.FS, path string) []byte {
	t.Helper()
	h, err := f.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	must(t, err)
	st, err := h.Stat()
	must(t, err)
	p := make([]byte, st.Size)
	_, err = h.ReadAt(p, 0)
	must(t, err)
	return p
}

// outcomes counts, over many crash states, what describe says of each.
func outcomes(f *crashfs.FS, describe func(*crashfs.FS) string) map[string]int {
	seen := make(map[string]int)
	for after := range f.States(1, 300) {
		seen[describe(after)]++
	}
	return seen
}

func wantOutcomes(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	for _, w := range want {
		if got[w] == 0 {
			t.Errorf("no crash leaves %q: %v", w, got)
		}
		delete(got, w)
	}
	if len(got) > 0 {
		t.Errorf("crashes leave what they must not: %v", got)
	}
}

func names(t *testing.T, f *crashfs.FS) string {
	t.Helper()
	list, err := f.ReadDir("/")
	must(t, err)
	s := ""
	for _, e := range list {
		s += e.Name
	}
	return s
}

func TestNamesNeedSyncOfDirectory(t *testing.T) {
	f := crashfs.New()
	write(t, f, "/a", []byte("x"), true)
	write(t, f, "/b", []byte("x"), true)
	wantOutcomes(t, outcomes(f, func(g *crashfs.FS) string { return names(t, g) }), "", "a", "b", "ab")

	must(t, f.SyncDir("/"))
	wantOutcomes(t, outcomes(f, func(g *crashfs.FS) string { return names(t, g) }), "ab")

	must(t, f.Remove("/a"))
	wantOutcomes(t, outcomes(f, func(g *crashfs.FS) string { return names(t, g) }), "b", "ab")
}

func TestRenameIsOneChange(t *testing.T) {
	f := crashfs.New()
	write(t, f, "/a", []byte("x"), true)
	must(t, f.SyncDir("/"))
	must(t, f.Rename("/a", "/b"))
	wantOutcomes(t, outcomes(f, func(g *crashfs.FS) string { return names(t, g) }), "a", "b")

	f = crashfs.New()
	write(t, f, "/a", []byte("x"), true)
	must(t, f.Rename("/a", "/b"))
	wantOutcomes(t, outcomes(f, func(g *crashfs.FS) string { return names(t, g) }), "", "a", "b")
}

func TestDirectoryNeedsSyncOfParent(t *testing.T) {
	f := crashfs.New()
	must(t, f.Mkdir("/d"))
	write(t, f, "/d/x", []byte("x"), true)
	must(t, f.SyncDir("/d"))
	describe := func(g *crashfs.FS) string { return names(t, g) + string(content(t, g, "/d/x")) }
	wantOutcomes(t, outcomes(f, describe), "", "dx")
	must(t, f.SyncDir("/"))
	wantOutcomes(t, outcomes(f, describe), "dx")
}

func TestContentNeedsSyncOfFile(t *testing.T) {
	f, data := crashfs.New(), storetest.Bytes(1, 20000)
	h, err := f.Create("/a", 0)
	must(t, err)
	must(t, f.SyncDir("/"))
	_, err = h.Write(data[:5000])
	must(t, err)
	must(t, h.Sync())
	_, err = h.Write(data[5000:])
	must(t, err)
	got := outcomes(f, func(g *crashfs.FS) string {
		p := content(t, g, "/a")
		switch {
		case len(p) < 5000 || len(p) > len(data) || !bytes.Equal(p[:5000], data[:5000]):
			return "synced bytes lost"
		case len(p) == 5000:
			return "tail lost"
		case bytes.Equal(p, data):
			return "whole"
		case bytes.Equal(p, data[:len(p)]):
			return "shorter"
		case bytes.Equal(p[5000:], make([]byte, len(p)-5000)):
			return "zeros"
		}
		return "torn"
	})
	wantOutcomes(t, got, "tail lost", "whole", "shorter", "zeros", "torn")
	must(t, h.Sync())
	wantOutcomes(t, outcomes(f, func(g *crashfs.FS) string {
		return fmt.Sprint(bytes.Equal(content(t, g, "/a"), data))
	}), "true")
}

func TestStatesAreSeparate(t *testing.T) {
	f := crashfs.New()
	write(t, f, "/a", []byte("old"), true)
	must(t, f.SyncDir("/"))
	write(t, f, "/b", []byte("b"), false)
	for after := range f.States(1, 10) {
		must(t, after.Remove("/a"))
		write(t, after, "/c", []byte("c"), false)
	}
	if got := names(t, f); got != "ab" {
		t.Errorf("names are %q after states were changed, want ab", got)
	}
	for after := range f.States(1, 10) {
		if got := string(content(t, after, "/a")); got != "old" {
			t.Errorf("%s: content %q, want old", after, got)
		}
	}
}

func TestStatesRepeat(t *testing.T) {
	f := crashfs.New()
	for i := range 8 {
		write(t, f, fmt.Sprintf("/%d", i), storetest.Bytes(uint64(i), 3000), i%2 == 0)
	}
	describe := func(seed uint64) string {
		s := ""
		for after := range f.States(seed, 30) {
			for i := range 8 {
				s += fmt.Sprintf("%s %x\n", after, content(t, after, fmt.Sprintf("/%d", i)))
			}
		}
		return s
	}
	if first, again := describe(1), describe(1); first != again {
		t.Error("the same seed gives other states")
	}
	if describe(1) == describe(2) {
		t.Error("another seed gives the same states")
	}
}

func TestNothingToLoseIsOneState(t *testing.T) {
	f := crashfs.New()
	write(t, f, "/a", []byte("x"), true)
	must(t, f.SyncDir("/"))
	n := 0
	for range f.States(1, 50) {
		n++
	}
	if n != 1 {
		t.Errorf("%d states, want 1", n)
	}
}

func TestCrashAfter(t *testing.T) {
	for n := range 5 {
		f := crashfs.New()
		f.CrashAfter(n)
		steps := []func() error{
			func() error { return f.Mkdir("/d") },
			func() error { return f.SyncDir("/") },
			func() error { _, err := f.Create("/a", 0); return err },
			func() error { return f.Rename("/a", "/b") },
			func() error { return f.Remove("/b") },
		}
		for i, step := range steps {
			if err := step(); errors.Is(err, crashfs.ErrCrashed) != (i >= n) {
				t.Errorf("crash after %d: step %d returned %v", n, i, err)
			}
		}
		if f.Ops() != n {
			t.Errorf("crash after %d: %d calls counted", n, f.Ops())
		}
		_, err := f.Stat("/")
		if !errors.Is(err, crashfs.ErrCrashed) {
			t.Errorf("crash after %d: stat returned %v", n, err)
		}
	}
}

func TestDroppedSyncs(t *testing.T) {
	f := crashfs.New()
	f.Drop(crashfs.SyncDir, 1)
	f.Drop(crashfs.Sync, 2)
	write(t, f, "/a", []byte("x"), true)
	must(t, f.SyncDir("/"))
	wantOutcomes(t, outcomes(f, func(g *crashfs.FS) string { return names(t, g) }), "", "a")
	write(t, f, "/b", []byte("x"), true)
	must(t, f.SyncDir("/"))
	got := outcomes(f, func(g *crashfs.FS) string { return string(content(t, g, "/b")) })
	if got["x"] == 0 || got[""] == 0 || got["\x00"] == 0 {
		t.Errorf("a dropped sync of a file leaves %v", got)
	}
}

func TestFailedSyncIsNotMendedByTheNext(t *testing.T) {
	f := crashfs.New()
	f.Fail(crashfs.Sync, 1, syscall.EIO)
	f.Fail(crashfs.SyncDir, 1, syscall.EIO)
	h, err := f.Create("/a", 0)
	must(t, err)
	_, err = h.Write([]byte("x"))
	must(t, err)
	for _, sync := range []func() error{h.Sync, func() error { return f.SyncDir("/") }} {
		if err := sync(); !errors.Is(err, syscall.EIO) {
			t.Errorf("got error %v, want EIO", err)
		}
		must(t, sync())
	}
	got := outcomes(f, func(g *crashfs.FS) string { return names(t, g) + string(content(t, g, "/a")) })
	if got[""] == 0 || got["a"] == 0 || got["ax"] == 0 {
		t.Errorf("failed syncs leave %v", got)
	}
}

func TestSetFree(t *testing.T) {
	f := crashfs.New()
	f.SetFree(10)
	write(t, f, "/a", make([]byte, 10), true)
	h, err := f.Create("/b", 0)
	must(t, err)
	if n, err := h.Write([]byte("x")); n != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %d, %v, want ENOSPC", n, err)
	}
	must(t, f.Remove("/a"))
	if n, err := h.Write(make([]byte, 11)); n != 10 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %d, %v, want 10 and ENOSPC", n, err)
	}
}

func TestExploreReportsTheCrash(t *testing.T) {
	f := crashfs.New()
	points := 0
	err := f.Explore(7, 1, func() error {
		write(t, f, "/a", []byte("x"), true)
		return f.SyncDir("/")
	}, func(*crashfs.FS) error { points++; return nil })
	must(t, err)
	if points != 5 { // create, write, sync, sync directory, end
		t.Errorf("%d points looked at, want 5", points)
	}
	broken := errors.New("broken")
	err = f.Explore(7, 3, func() error { return f.Remove("/a") }, func(after *crashfs.FS) error {
		if names(t, after) == "a" {
			return nil
		}
		return broken
	})
	want := `crash at the end, state all kept, seed 7: broken`
	if !errors.Is(err, broken) || err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func BenchmarkStates(b *testing.B) {
	f := crashfs.New()
	for d := range 16 {
		f.Mkdir(fmt.Sprintf("/%d", d))
		for i := range 16 {
			h, _ := f.Create(fmt.Sprintf("/%d/%d", d, i), 0)
			h.Write(make([]byte, 8192))
			h.Sync()
			h.Close()
		}
		f.SyncDir(fmt.Sprintf("/%d", d))
	}
	f.SyncDir("/")
	h, _ := f.Create("/x", 0)
	h.Write(make([]byte, 8192))
	for b.Loop() {
		for range f.States(1, 10) {
		}
	}
}
