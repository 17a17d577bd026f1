package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"platter/image/store"
)

// directMin is the length from which a read goes past the page cache. Shorter
// ones are looked up again more often, and read-ahead serves them.
const directMin = 128 << 10

// reader reads one file. It opens the file a second time, for O_DIRECT, when
// the first long read needs it.
type reader struct {
	osFile
	fs *osFS

	once   sync.Once
	direct *os.File // nil where O_DIRECT is refused
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if len(p) < directMin || r.cached(off, int64(len(p))) {
		return r.osFile.ReadAt(p, off)
	}
	r.once.Do(r.openDirect)
	if r.direct != nil {
		n, err := r.readDirect(p, off)
		if !unsupported(err) {
			return n, err
		}
	}
	n, err := r.osFile.ReadAt(p, off)
	unix.Fadvise(int(r.Fd()), off, int64(n), unix.FADV_DONTNEED)
	return n, err
}

func (r *reader) openDirect() {
	// By the open file and not by its name, which may be gone.
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", r.Fd()), os.O_RDONLY|unix.O_DIRECT, 0)
	if err == nil {
		r.direct = f
	}
}

func (r *reader) readDirect(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		rest, at := p[done:], off+int64(done)
		if whole := len(rest) &^ (store.Align - 1); whole > 0 && at%store.Align == 0 && store.IsAligned(rest) {
			n, err := r.pread(rest[:whole], at)
			done += n
			if err != nil {
				return done, err
			}
			continue
		}
		n, err := r.readBounced(rest, at)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readBounced reads the beginning of p, at least one byte of it, through an
// aligned buffer.
func (r *reader) readBounced(p []byte, off int64) (int, error) {
	b := <-r.fs.bounce
	if b == nil {
		b = store.AllocAligned(bounceSize)
	}
	defer func() { r.fs.bounce <- b }()

	start := off &^ (store.Align - 1)
	skip := int(off - start)
	want := min(bounceSize, (skip+len(p)+store.Align-1)&^(store.Align-1))
	n, err := r.pread(b[:want], start)
	if err != nil {
		return 0, err
	}
	if n <= skip {
		return 0, io.EOF
	}
	return copy(p, b[skip:n]), nil
}

// pread reads once. Unlike os.File's ReadAt it does not ask again after a
// short read, at an offset that O_DIRECT may refuse.
func (r *reader) pread(p []byte, off int64) (n int, err error) {
	err = ignoringEINTR(func() error {
		n, err = unix.Pread(int(r.direct.Fd()), p, off)
		return err
	})
	if err != nil {
		return 0, &fs.PathError{Op: "read", Path: r.Name(), Err: err}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// cached reports whether the page cache holds the whole range. Asking is far
// cheaper than RWF_NOWAIT, which starts to read ahead what it does not find.
func (r *reader) cached(off, length int64) bool {
	if !r.fs.noCachestat.Load() {
		var st unix.Cachestat_t
		err := unix.Cachestat(uint(r.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(length)}, &st, 0)
		if err == nil {
			return int64(st.Cache) >= pages(off, length)
		}
		r.fs.noCachestat.Store(true) // Linux before 6.5
	}
	return r.mapped(off, length)
}

// mapped is cached for older kernels: it maps the range, touches nothing, and
// asks mincore.
func (r *reader) mapped(off, length int64) bool {
	page := int64(os.Getpagesize())
	start := off &^ (page - 1)
	m, err := unix.Mmap(int(r.Fd()), start, int(off+length-start), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return false
	}
	defer unix.Munmap(m)
	in := make([]byte, pages(off, length))
	if err := mincore(m, in); err != nil {
		return false
	}
	for _, b := range in {
		if b&1 == 0 {
			return false
		}
	}
	return true
}

// pages returns how many pages of the machine a range touches.
func pages(off, length int64) int64 {
	page := int64(os.Getpagesize())
	return (off+length+page-1)/page - off/page
}

func (r *reader) Close() error {
	r.once.Do(func() {}) // from now on none is opened
	if r.direct != nil {
		r.direct.Close()
	}
	return r.osFile.Close()
}
