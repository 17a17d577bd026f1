package live

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/cbt"
	"platter/cbt/trace"
)

// maxExtents bounds the list of what is left.
const maxExtents = 1 << 15

// A residue is the part of a device that was read in a freeze. It is a Source
// of that part alone.
type residue struct {
	device  block.Source
	info    block.Info
	unit    int64  // extents are rounded to
	buf     []byte // locked into memory
	extents []block.Extent
	swap    []block.Extent
}

func (r *residue) open(device block.Source, bytes int, blockSize int64) (err error) {
	r.device, r.info = device, device.Info()
	// What is handed on as a set is rounded as sets are.
	probe := cbt.NewSet(r.info.Size)
	probe.Add(block.Extent{Length: 1})
	e, _ := probe.Next(0)
	r.unit = max(blockSize, e.Length)
	r.extents = make([]block.Extent, 0, maxExtents)
	if r.buf, err = block.AllocAligned(bytes); err != nil {
		return err
	}
	if err := unix.Mlock(r.buf); err != nil {
		return fmt.Errorf("lock %d bytes into memory: %w", bytes, err)
	}
	return nil
}

func (r *residue) close() error { return block.FreeAligned(r.buf) }

// fill reads what is marked in the session's generations from a number on. It
// asks for no memory.
func (r *residue) fill(ctx context.Context, s *trace.Session, from uint64) error {
	list, ok := s.Residue(from, r.extents[:0])
	if !ok {
		return errTooMuch
	}
	r.extents = merge(list, r.unit, r.info.Size)
	at := int64(0)
	for _, e := range r.extents {
		if at+e.Length > int64(len(r.buf)) {
			return errTooMuch
		}
		if _, err := r.device.ReadAt(ctx, r.buf[at:at+e.Length], e.Offset); err != nil {
			return err
		}
		at += e.Length
	}
	return nil
}

// merge rounds extents outward to units, sorts them and joins those that touch,
// in place.
func merge(list []block.Extent, unit, size int64) []block.Extent {
	for i, e := range list {
		from := e.Offset / unit * unit
		list[i] = block.Extent{Offset: from, Length: min(size, (e.End()+unit-1)/unit*unit) - from}
	}
	slices.SortFunc(list, func(a, b block.Extent) int {
		return int(min(1, max(-1, a.Offset-b.Offset)))
	})
	n := 0
	for _, e := range list {
		if n > 0 && e.Offset <= list[n-1].End() {
			list[n-1].Length = max(list[n-1].End(), e.End()) - list[n-1].Offset
			continue
		}
		list[n] = e
		n++
	}
	return list[:n]
}

// set returns what the residue holds.
func (r *residue) set() *cbt.Set {
	set := cbt.NewSet(r.info.Size)
	for _, e := range r.extents {
		set.Add(e)
	}
	return set
}

func (r *residue) Info() block.Info { return r.info }

// ReadAt copies what was read in the freeze. There is nothing else to be had:
// the device has gone on since.
func (r *residue) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	at := int64(0)
	for _, e := range r.extents {
		if off >= e.Offset && off+int64(len(p)) <= e.End() {
			return copy(p, r.buf[at+off-e.Offset:]), nil
		}
		at += e.Length
	}
	return 0, fmt.Errorf("read %s at %d: %d bytes that were not read in the freeze", r.info.Path, off, len(p))
}

// Data returns all: the device has no holes.
func (r *residue) Data(off int64) (block.Extent, error) { return r.device.Data(off) }

func (r *residue) Check() error { return r.device.Check() }
func (r *residue) Close() error { return errors.ErrUnsupported }
