package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// File systems without RENAME_NOREPLACE get a link.
func TestRenameByLink(t *testing.T) {
	dir := t.TempDir()
	o := OS().(*osFS)
	o.noReplace.Store(true)
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	for _, path := range []string{a, b} {
		if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Rename(a, b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("rename over another: got %v, want ErrExist", err)
	}
	if err := o.Rename(a, c); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(a); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old name is left: %v", err)
	}
	// The link was made and its answer lost.
	if err := os.Link(c, a); err != nil {
		t.Fatal(err)
	}
	if err := o.Rename(c, a); err != nil {
		t.Errorf("repeated rename: %v", err)
	}
	if got, err := os.ReadFile(a); err != nil || string(got) != a {
		t.Errorf("got %q, %v, want %q", got, err, a)
	}
}

// Kernels before 6.5 are asked by mincore.
func TestCachedWithoutCachestat(t *testing.T) {
	path, data := filepath.Join(OnDisk(t), "f"), make([]byte, 1<<20+100)
	o := OS().(*osFS)
	w, err := o.Create(path, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data[1:]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Sync(), w.Close()); err != nil {
		t.Fatal(err)
	}
	f, err := o.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := f.(*reader)
	const off, length = 70001, 500000
	for _, old := range []bool{true, false} {
		o.noCachestat.Store(old)
		if r.cached(off, length) {
			t.Errorf("mincore %v: dropped pages pass for cached", old)
		}
	}
	if _, err := r.osFile.ReadAt(data[:length], off); err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{true, false} {
		o.noCachestat.Store(old)
		if !r.cached(off, length) {
			t.Errorf("mincore %v: pages just read do not pass for cached", old)
		}
	}
	o.noCachestat.Store(true)
	if n, err := r.ReadAt(data[:length], off); n != length || err != nil || !bytes.Equal(data[:length], make([]byte, length)) {
		t.Errorf("read: %d, %v", n, err)
	}
}
