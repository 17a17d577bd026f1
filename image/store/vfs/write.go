package vfs

import (
	"os"

	"golang.org/x/sys/unix"
	"platter/image/store"
)

const (
	// streamMin is the length from which a file stays out of the page cache.
	streamMin = 1 << 20
	// sliceSize is how much is written at a time: enough to keep a disk busy,
	// and no more dirty pages than twice this where O_DIRECT is refused.
	sliceSize = 4 << 20
)

// writer appends to a new file. Every slice that is aligned in memory, in the
// file and in length goes by O_DIRECT; from the first that is not, the rest
// goes through the page cache and is dropped from it.
type writer struct {
	osFile
	off    int64
	stream bool
	direct bool
	// Written through the page cache from here on, and not dropped before
	// dropped.
	buffered, dropped int64
}

func (o *osFS) Create(path string, size int64) (File, error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL | unix.O_NOFOLLOW
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	w := &writer{osFile: osFile{f}, stream: size >= streamMin}
	if w.stream {
		w.direct = w.setDirect(true) == nil
	}
	return w, nil
}

func (w *writer) setDirect(on bool) error {
	flags, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(w.Fd(), unix.F_SETFL, flags)
	return err
}

func (w *writer) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		slice := p[done:min(done+sliceSize, len(p))]
		if w.direct && !w.fits(slice) {
			if whole := len(slice) &^ (store.Align - 1); whole > 0 && w.fits(slice[:whole]) {
				slice = slice[:whole]
			} else if err := w.leaveDirect(); err != nil {
				return done, err
			}
		}
		n, err := w.write(slice)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// fits reports whether O_DIRECT takes p at the file's end.
func (w *writer) fits(p []byte) bool {
	return w.off%store.Align == 0 && len(p)%store.Align == 0 && store.IsAligned(p)
}

func (w *writer) write(p []byte) (int, error) {
	n, err := w.WriteAt(p, w.off)
	if w.direct && n == 0 && unsupported(err) {
		// A file system may take the flag and then not the writes.
		if err := w.leaveDirect(); err != nil {
			return 0, err
		}
		n, err = w.WriteAt(p, w.off)
	}
	w.off += int64(n)
	if err == nil && w.stream && !w.direct {
		w.drop()
	}
	return n, err
}

func (w *writer) leaveDirect() error {
	w.direct = false
	w.buffered, w.dropped = w.off, w.off
	return w.setDirect(false)
}

// drop starts writing back what was just written, and drops what was written
// before it from the page cache. All of it is a hint: errors that matter are
// kept by the kernel for Sync.
func (w *writer) drop() {
	fd := int(w.Fd())
	if behind := w.buffered - w.dropped; behind >= sliceSize {
		const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		unix.SyncFileRange(fd, w.dropped, behind, wait)
		unix.Fadvise(fd, w.dropped, behind, unix.FADV_DONTNEED)
		w.dropped = w.buffered
	}
	if fresh := w.off - w.buffered; fresh >= sliceSize {
		unix.SyncFileRange(fd, w.buffered, fresh, unix.SYNC_FILE_RANGE_WRITE)
		w.buffered = w.off
	}
}

func (w *writer) Sync() error {
	if err := w.osFile.Sync(); err != nil {
		return err
	}
	if w.stream && !w.direct {
		unix.Fadvise(int(w.Fd()), w.dropped, 0, unix.FADV_DONTNEED)
	}
	return nil
}
