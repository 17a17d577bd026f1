package vfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"platter/image/store"
)

// OS returns the machine's own file system.
//
// Files of a MiB or more are written past the page cache, by O_DIRECT where
// buffers allow it, else written back and dropped slice by slice. Long reads
// go past it too unless it holds what they ask for. Up to four reads at a time
// that are not aligned to 4096 bytes borrow a buffer of a little over 1 MiB
// each; others wait for one.
func OS() FS {
	f := &osFS{bounce: make(chan []byte, bounceBuffers)}
	for range bounceBuffers {
		f.bounce <- nil
	}
	return f
}

const (
	bounceBuffers = 4
	// A read of 1 MiB anywhere is one read of the disk.
	bounceSize = 1<<20 + 2*store.Align
)

type osFS struct {
	bounce chan []byte // nil until first used
	// Set once the kernel has refused them.
	noCachestat, noReplace atomic.Bool
}

func (o *osFS) Open(path string) (File, error) {
	// O_NONBLOCK: a FIFO under the name must not hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &reader{osFile: osFile{f}, fs: o}, nil
}

func (o *osFS) Mkdir(path string) error { return os.Mkdir(path, 0o700) }

func (o *osFS) Remove(path string) error {
	// Not os.Remove, which removes empty directories as well.
	if err := ignoringEINTR(func() error { return unix.Unlink(path) }); err != nil {
		return &fs.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}

func (o *osFS) Rename(from, to string) error {
	if !o.noReplace.Load() {
		err := ignoringEINTR(func() error {
			return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		})
		switch {
		case err == nil:
			return nil
		case !unsupported(err):
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		o.noReplace.Store(true)
	}
	return linkAndRemove(from, to)
}

// linkAndRemove is a rename without replacing for file systems that have only
// links, as NFS. A crash between the two steps leaves both names; the old one
// is that of a temporary file.
func linkAndRemove(from, to string) error {
	if err := os.Link(from, to); err != nil {
		// A server may have made the link and its answer been lost: the
		// repeated request then finds the name taken, by this very file.
		if !sameFile(from, to) {
			return err
		}
	}
	return os.Remove(from)
}

func sameFile(a, b string) bool {
	x, err := os.Lstat(a)
	if err != nil {
		return false
	}
	y, err := os.Lstat(b)
	return err == nil && os.SameFile(x, y)
}

func (o *osFS) SyncDir(path string) error {
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if unsupported(err) {
		// Some network file systems sync directories only as a whole.
		err = ignoringEINTR(func() error { return unix.Syncfs(int(d.Fd())) })
	}
	if err != nil {
		return &fs.PathError{Op: "fsync", Path: path, Err: err}
	}
	return nil
}

func (o *osFS) ReadDir(path string) ([]Entry, error) {
	list, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, len(list))
	for i, e := range list {
		entries[i] = Entry{Name: e.Name(), Kind: kind(e.Type())}
	}
	return entries, nil
}

func (o *osFS) Stat(path string) (Info, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return Info{}, err
	}
	return info(st), nil
}

func (o *osFS) Touch(path string) (time.Time, error) {
	// A new time asks for no space, so that a full disk can tell it too.
	now := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	err := ignoringEINTR(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, path, now, 0) })
	if err != nil {
		return time.Time{}, &fs.PathError{Op: "touch", Path: path, Err: err}
	}
	st, err := os.Stat(filepath.Clean(path))
	if err != nil {
		return time.Time{}, err
	}
	return st.ModTime(), nil
}

// osFile is what readers and writers share.
type osFile struct{ *os.File }

func (f osFile) Stat() (Info, error) {
	st, err := f.File.Stat()
	if err != nil {
		return Info{}, err
	}
	return info(st), nil
}

func info(st fs.FileInfo) Info {
	return Info{Kind: kind(st.Mode()), Size: st.Size(), Modified: st.ModTime()}
}

func kind(m fs.FileMode) Kind {
	switch {
	case m.IsRegular():
		return Regular
	case m.IsDir():
		return Directory
	}
	return Other
}

// unsupported reports whether err says that the kernel or the file system has
// no such call, rather than that it went wrong.
func unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
