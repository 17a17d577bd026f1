package catalog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guardFS stands between Pebble and the disk. Pebble ends the process, or
// hangs, when a write to its log fails: on a full disk, say. A cache must not
// do that to a backup. So the first failed write marks the catalog as failed
// and freezes the directory: nothing after it reaches the disk, and Pebble is
// told that all is well until it is closed. No caller believes it, as every
// call looks at the mark first; and the next Open finds what a crash at that
// moment would have left, which Pebble recovers from.
type guardFS struct {
	vfs.FS
	frozen *freezer
}

// freezer freezes the directory at the first error.
type freezer struct {
	state *failure
	done  atomic.Bool
}

// failed reports whether err is a failed write. What Pebble expects to happen,
// and answers itself, is none.
func (z *freezer) failed(op, name string, err error) bool {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
		return false
	}
	z.state.set(ErrFailed, fmt.Sprintf("%s %s: %v", op, name, err))
	z.done.Store(true)
	return true
}

// do runs an operation unless the directory is frozen.
func (g guardFS) do(op, name string, f func() error) error {
	if g.frozen.done.Load() {
		return nil
	}
	if err := f(); !g.frozen.failed(op, name, err) {
		return err
	}
	return nil
}

// open opens a file for writing, or one that leads nowhere.
func (g guardFS) open(op, name string, f func() (vfs.File, error)) (vfs.File, error) {
	var file vfs.File
	err := g.do(op, name, func() (err error) {
		file, err = f()
		return err
	})
	if err != nil {
		return nil, err
	}
	if file == nil {
		return &nowhere{name: g.PathBase(name)}, nil
	}
	return &guardFile{File: file, frozen: g.frozen, name: name}, nil
}

func (g guardFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return g.open("create", name, func() (vfs.File, error) { return g.FS.Create(name, category) })
}

func (g guardFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return g.open("open", name, func() (vfs.File, error) { return g.FS.OpenReadWrite(name, category, opts...) })
}

func (g guardFS) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return g.open("reuse", name, func() (vfs.File, error) { return g.FS.ReuseForWrite(old, name, category) })
}

func (g guardFS) OpenDir(name string) (vfs.File, error) {
	return g.open("open", name, func() (vfs.File, error) { return g.FS.OpenDir(name) })
}

func (g guardFS) Link(old, name string) error {
	return g.do("link", name, func() error { return g.FS.Link(old, name) })
}

func (g guardFS) Remove(name string) error {
	return g.do("remove", name, func() error { return g.FS.Remove(name) })
}

func (g guardFS) RemoveAll(name string) error {
	return g.do("remove", name, func() error { return g.FS.RemoveAll(name) })
}

func (g guardFS) Rename(old, name string) error {
	return g.do("rename", name, func() error { return g.FS.Rename(old, name) })
}

func (g guardFS) MkdirAll(name string, perm os.FileMode) error {
	return g.do("make", name, func() error { return g.FS.MkdirAll(name, perm) })
}

func (g guardFS) Unwrap() vfs.FS { return g.FS }

// guardFile is a file open for writing, or a directory.
type guardFile struct {
	vfs.File
	frozen *freezer
	name   string
}

func (f *guardFile) do(op string, run func() error) error {
	return guardFS{frozen: f.frozen}.do(op, f.name, run)
}

func (f *guardFile) Write(p []byte) (int, error) {
	return len(p), f.do("write", func() error { _, err := f.File.Write(p); return err })
}

func (f *guardFile) WriteAt(p []byte, off int64) (int, error) {
	return len(p), f.do("write", func() error { _, err := f.File.WriteAt(p, off); return err })
}

func (f *guardFile) Preallocate(off, n int64) error {
	return f.do("allocate", func() error { return f.File.Preallocate(off, n) })
}

func (f *guardFile) Sync() error { return f.do("sync", f.File.Sync) }

func (f *guardFile) SyncData() error { return f.do("sync", f.File.SyncData) }

func (f *guardFile) SyncTo(n int64) (full bool, err error) {
	err = f.do("sync", func() (err error) {
		full, err = f.File.SyncTo(n)
		return err
	})
	return full, err
}

// Close closes the file even when the directory is frozen.
func (f *guardFile) Close() error {
	f.frozen.failed("close", f.name, f.File.Close())
	return nil
}

// nowhere is a file that keeps nothing but its length.
type nowhere struct {
	name string
	size int64
}

func (n *nowhere) Write(p []byte) (int, error) {
	n.size += int64(len(p))
	return len(p), nil
}

func (n *nowhere) WriteAt(p []byte, off int64) (int, error) {
	n.size = max(n.size, off+int64(len(p)))
	return len(p), nil
}

func (n *nowhere) Read([]byte) (int, error)                { return 0, io.EOF }
func (n *nowhere) ReadAt([]byte, int64) (int, error)       { return 0, io.EOF }
func (n *nowhere) Close() error                            { return nil }
func (n *nowhere) Preallocate(int64, int64) error          { return nil }
func (n *nowhere) Prefetch(int64, int64) error             { return nil }
func (n *nowhere) Sync() error                             { return nil }
func (n *nowhere) SyncTo(int64) (fullSync bool, err error) { return true, nil }
func (n *nowhere) SyncData() error                         { return nil }
func (n *nowhere) Fd() uintptr                             { return vfs.InvalidFd }
func (n *nowhere) Stat() (vfs.FileInfo, error)             { return nowhereInfo{n.name, n.size}, nil }

type nowhereInfo struct {
	name string
	size int64
}

func (i nowhereInfo) Name() string           { return i.name }
func (i nowhereInfo) Size() int64            { return i.size }
func (i nowhereInfo) Mode() os.FileMode      { return 0o600 }
func (i nowhereInfo) ModTime() time.Time     { return time.Time{} }
func (i nowhereInfo) IsDir() bool            { return false }
func (i nowhereInfo) Sys() any               { return nil }
func (i nowhereInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
