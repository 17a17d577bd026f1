package block

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Error names device, offset and cause: `read /dev/vdb at 1048576:
// input/output error`.
func (e *ReadError) Error() string {
	return fmt.Sprintf("read %s at %d: %v", e.Path, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *ReadError) Unwrap() error { return e.Err }

// ReadAt fills p from off. Room between len(p) and the next multiple of 4096
// of its capacity may be overwritten, at the odd tail of a file.
func (s *source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if off < 0 || off > s.info.Size || int64(len(p)) > s.info.Size-off {
		return 0, fmt.Errorf("read %s at %d: %d bytes there, %d wanted: %w", s.path, off, s.info.Size-off, len(p), io.ErrUnexpectedEOF)
	}
	n, err := s.read(p, off)
	if err != nil {
		return n, s.readError(err, Extent{off + int64(n), int64(len(p) - n)})
	}
	return n, nil
}

// read takes from the page cache what is there, and the rest from the device.
func (s *source) read(p []byte, off int64) (n int, err error) {
	if !s.resident.known() {
		return s.readCold(p, off)
	}
	for _, run := range s.resident.runs(off, len(p)) {
		part, at := p[n:n+run.length:capOf(p, n, run.length)], off+int64(n)
		var m int
		if run.cached {
			m, err = s.buffered.preadCached(part, at)
		}
		// What was in the cache a moment ago may have left it.
		if m < run.length {
			m = roundDown(max(m, 0), pageSize)
			var rest int
			rest, err = s.readCold(part[m:], at+int64(m))
			m += rest
		}
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// capOf leaves the last run of a read the room beyond its end.
func capOf(p []byte, n, length int) int {
	if n+length == len(p) {
		return cap(p)
	}
	return n + length
}

// readCold reads what should not enter the page cache. Where O_DIRECT is
// refused it goes through the cache, and is dropped from it again: before, too,
// on a device, whose cache may be older than what a filesystem wrote to it.
func (s *source) readCold(p []byte, off int64) (n int, err error) {
	if s.direct != nil {
		n, err = s.readDirect(p, off)
		// Some filesystems refuse only when it comes to reading.
		if !errors.Is(err, unix.EINVAL) || s.buffered == nil {
			return n, err
		}
	}
	if s.info.Kind != KindFile {
		s.buffered.drop(off, len(p))
	}
	n, err = s.buffered.pread(p, off, len(p))
	s.buffered.drop(off, n)
	return n, err
}

// readDirect reads past the page cache, over a buffer of its own if p cannot
// be used.
func (s *source) readDirect(p []byte, off int64) (int, error) {
	unit := s.unit()
	head := int(off % int64(unit))
	whole := roundUp(head+len(p), unit)
	if head == 0 && aligned(p) && cap(p) >= whole {
		return s.direct.pread(p[:whole], off, len(p))
	}
	buf := scratch(whole)
	n, err := s.direct.pread(buf, off-int64(head), head+len(p))
	return copy(p, buf[min(head, n):n]), err
}

// unit returns what offset and length of a direct read must be multiples of.
// A file may be read beyond its end, so it takes what suits every filesystem;
// a device ends on a sector, which may be less than a page.
func (s *source) unit() int {
	if s.info.Kind == KindFile {
		return pageSize
	}
	return s.info.LogicalSector
}

// readError says what a failed read means for the caller.
func (s *source) readError(err error, e Extent) error {
	// Only a range that the device itself calls unreadable may be tolerated.
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EILSEQ) || errors.Is(err, unix.EREMOTEIO) {
		if e2 := s.Check(); e2 != nil {
			return e2
		}
		return &ReadError{Path: s.path, Extent: e, Err: err}
	}
	if err == io.EOF {
		if size, e2 := s.size(); e2 == nil && size != s.info.Size {
			return fmt.Errorf("read %s at %d: %w: from %d to %d bytes", s.path, e.Offset, ErrResized, s.info.Size, size)
		}
		return fmt.Errorf("read %s at %d: %w", s.path, e.Offset, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read %s at %d: %w", s.path, e.Offset, explain(err))
}

// Data returns the first range at or after off that may hold anything but
// zeros, in whole pages but for the end of the device.
func (s *source) Data(off int64) (Extent, error) {
	if off < 0 || off >= s.info.Size {
		return Extent{}, io.EOF
	}
	if s.info.Kind != KindFile {
		return Extent{off, s.info.Size - off}, nil
	}
	e, err := dataOf(s.buffered, off, s.info.Size)
	if err != nil && err != io.EOF {
		return e, fmt.Errorf("find data of %s at %d: %w", s.path, off, err)
	}
	return e, err
}

// dataOf finds the first data of a file between off and size.
func dataOf(h *handle, off, size int64) (Extent, error) {
	start, err := h.seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data from off to the end
		return Extent{}, io.EOF
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return Extent{off, size - off}, nil // a filesystem without holes
	case err != nil:
		return Extent{}, err
	}
	end, err := h.seek(start, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) {
		end = size // cut off meanwhile: the read will say so
	} else if err != nil {
		return Extent{}, err
	}
	start = max(off, roundDown(start, pageSize))
	end = min(size, roundUp(end, pageSize))
	if start >= end {
		return Extent{}, io.EOF
	}
	return Extent{start, end - start}, nil
}
