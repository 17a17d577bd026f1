package reflink

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"platter/block"
)

// Flags of an extent, from the kernel's fiemap.h.
const (
	extentLast   = 0x1
	Unwritten    = 0x800
	extentMerged = 0x1000
	extentShared = 0x2000
	// Plain are the flags that an extent may have whose place says what its
	// bytes are. Others (unknown, not allocated yet, encoded, encrypted, not
	// aligned, inline, packed) do not: several parts of an encoded extent,
	// above all, are all said to be at its beginning.
	Plain = extentLast | extentMerged | extentShared
)

// A Piece is an extent of a file, and where its filesystem has it, in bytes.
type Piece struct {
	block.Extent
	Physical int64
	Flags    uint32
}

// Cut returns the part of e from off on.
func (e Piece) Cut(off int64) Piece {
	if n := off - e.Offset; n > 0 {
		e.Offset, e.Length, e.Physical = off, e.Length-n, e.Physical+n
	}
	return e
}

// BatchExtents is how many extents the kernel is asked for at most at a time: 56
// bytes each.
const BatchExtents = 1024

// The kernel's struct fiemap: header, then extents.
type fiemap struct {
	start, length uint64
	flags, mapped uint32
	count, _      uint32
	extents       [BatchExtents]struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
}

const (
	fsIocFiemap = 0xc020660b // _IOWR('f', 11, struct fiemap) without extents
	flagSync    = 0x1
)

// A Layout reads where a file's extents lie, from left to right.
type Layout struct {
	Size int64 // of the file, in bytes
	f    *os.File
	want uint32 // extents at a time
	buf  *fiemap
}

// NewLayout returns that of an open file, to be asked for so many extents at a
// time.
func NewLayout(f *os.File, want uint32) (*Layout, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &Layout{info.Size(), f, want, new(fiemap)}, nil
}

// Next appends the extents from off on to list, some of them, and returns how
// far they go: what lies between them up to there is holes.
func (l *Layout) Next(off int64, list []Piece) ([]Piece, int64, error) {
	m := l.buf
	m.start, m.length, m.flags, m.count, m.mapped = uint64(off), uint64(l.Size-off), flagSync, l.want, 0
	if err := l.ioctl(); err != nil {
		return nil, 0, fmt.Errorf("ask where %s lies from %d: %w", l.f.Name(), off, err)
	}
	if m.mapped == 0 {
		return list, l.Size, nil
	}
	end := off
	for i, x := range m.extents[:min(m.mapped, l.want)] {
		e := Piece{block.Extent{Offset: int64(x.logical), Length: int64(x.length)}, int64(x.physical), x.flags}
		if e.Length <= 0 || e.End() <= end || i > 0 && e.Offset < end {
			return nil, 0, fmt.Errorf("ask where %s lies from %d: extent %v after %d is out of order", l.f.Name(), off, e.Extent, end)
		}
		end = e.End()
		list = append(list, e.Cut(off))
	}
	if m.extents[min(m.mapped, l.want)-1].flags&extentLast != 0 {
		end = l.Size
	}
	return list, min(end, l.Size), nil
}

func (l *Layout) ioctl() error {
	rc, err := l.f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = rc.Control(func(fd uintptr) {
		for errno = unix.EINTR; errno == unix.EINTR; {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, fsIocFiemap, uintptr(unsafe.Pointer(l.buf)))
		}
	})
	runtime.KeepAlive(l.buf)
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}
