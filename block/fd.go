package block

import (
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A handle is an open file. Unlike os.File it reads and writes just what it
// is told to, which O_DIRECT needs; like os.File it keeps the descriptor open
// while a call uses it, so that a Close cannot hand its number to another
// file under a running write.
type handle struct {
	f  *os.File
	rc syscall.RawConn
}

func openHandle(path string, flags int, mode os.FileMode) (*handle, error) {
	f, err := os.OpenFile(path, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, err
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &handle{f, rc}, nil
}

func (h *handle) Close() error {
	if h == nil {
		return nil
	}
	return h.f.Close()
}

// do calls f with the descriptor, again while it is interrupted.
func (h *handle) do(f func(fd int) error) error {
	var err error
	if e := h.rc.Control(func(fd uintptr) {
		for {
			if err = f(int(fd)); err != unix.EINTR {
				return
			}
		}
	}); e != nil {
		return e
	}
	return err
}

// pread reads from off into p until want bytes are there. A transfer by
// O_DIRECT has len(p) rounded up beyond what the device still holds. It
// returns io.EOF when the device ends before want.
func (h *handle) pread(p []byte, off int64, want int) (n int, err error) {
	for n < want {
		var m int
		err := h.do(func(fd int) (err error) {
			m, err = unix.Pread(fd, p[n:], off+int64(n))
			return err
		})
		switch {
		case err != nil:
			return n, err
		case m == 0:
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// preadCached reads what lies in the page cache, without waiting for a device.
func (h *handle) preadCached(p []byte, off int64) (n int, err error) {
	err = h.do(func(fd int) error {
		var err error
		n, err = unix.Preadv2(fd, [][]byte{p}, off, unix.RWF_NOWAIT)
		return err
	})
	return max(n, 0), err
}

func (h *handle) pwrite(p []byte, off int64) error {
	for len(p) > 0 {
		var m int
		err := h.do(func(fd int) (err error) {
			m, err = unix.Pwrite(fd, p, off)
			return err
		})
		switch {
		case err != nil:
			return err
		case m == 0:
			return io.ErrShortWrite
		}
		p, off = p[m:], off+int64(m)
	}
	return nil
}

// drop takes clean pages out of the page cache.
func (h *handle) drop(off int64, n int) {
	_ = h.do(func(fd int) error { return unix.Fadvise(fd, off, int64(n), unix.FADV_DONTNEED) })
}

func (h *handle) stat() (unix.Stat_t, error) {
	var st unix.Stat_t
	err := h.do(func(fd int) error { return unix.Fstat(fd, &st) })
	return st, err
}

// seek is lseek for SEEK_DATA and SEEK_HOLE, whose answers do not depend on
// the file's position.
func (h *handle) seek(off int64, whence int) (at int64, err error) {
	err = h.do(func(fd int) error {
		var err error
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	return at, err
}

func (h *handle) fallocate(mode uint32, e Extent) error {
	return h.do(func(fd int) error { return unix.Fallocate(fd, mode, e.Offset, e.Length) })
}

// deviceSize returns the size in bytes of a block device.
func (h *handle) deviceSize() (int64, error) {
	var size uint64
	err := h.ioctl(unix.BLKGETSIZE64, unsafe.Pointer(&size))
	return int64(size), err
}

// sectorSizes returns the logical and physical sector size of a block device
// in bytes.
func (h *handle) sectorSizes() (logical, physical int, err error) {
	var l, p int32
	if err := h.ioctl(unix.BLKSSZGET, unsafe.Pointer(&l)); err != nil {
		return 0, 0, err
	}
	if err := h.ioctl(unix.BLKPBSZGET, unsafe.Pointer(&p)); err != nil {
		p = l
	}
	return int(l), int(p), nil
}

// readOnly reports whether the kernel lets nobody write to a block device.
func (h *handle) readOnly() (bool, error) {
	var ro int32
	err := h.ioctl(unix.BLKROGET, unsafe.Pointer(&ro))
	return ro != 0, err
}

func (h *handle) ioctl(req uintptr, arg unsafe.Pointer) error {
	return h.do(func(fd int) error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg)); e != 0 {
			return e
		}
		return nil
	})
}
