package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A zeroer remembers which ways to zero a device did not work.
type zeroer struct {
	noUnmap, noZeroOut atomic.Bool
	proven             [2]atomic.Bool // a range was read back after each way
}

// Bytes that one call zeroes, so that a cancelled restore stops soon.
const (
	unmapChunk   = 1 << 30
	zeroOutChunk = 64 << 20
	writeChunk   = 1 << 20
)

// Zero makes e read as zeros: a hole in a file; on a device an unmap that
// zeroes, the device's own write of zeros, or zeros written by us, whichever
// is the first that works.
func (t *Target) Zero(ctx context.Context, e Extent) error {
	if err := t.check("zero", e.Offset, e.Length); err != nil {
		return err
	}
	unit := int64(t.unit())
	start, end := roundUp(e.Offset, unit), roundDown(e.End(), unit)
	if t.file || start >= end {
		start, end = e.Offset, e.End() // files need no alignment
	}
	whole := Extent{start, end - start}
	edges := []Extent{{e.Offset, start - e.Offset}, {end, e.End() - end}}
	for _, edge := range edges {
		if edge.Length > 0 {
			if _, err := t.WriteAt(make([]byte, edge.Length), edge.Offset); err != nil {
				return err
			}
		}
	}
	zero := t.zeroDevice
	if t.file {
		zero = t.zeroFile
	}
	if err := zero(ctx, whole); err != nil {
		return fmt.Errorf("zero %s at %d: %w", t.path, e.Offset, err)
	}
	return nil
}

// zeroFile punches holes where the file has data.
func (t *Target) zeroFile(ctx context.Context, e Extent) error {
	for off := e.Offset; off < e.End(); {
		data, err := dataOf(t.any(), off, t.info.Size)
		if err == io.EOF || err == nil && data.Offset >= e.End() {
			return nil
		}
		if err != nil {
			return err
		}
		part := Extent{data.Offset, min(data.End(), e.End()) - data.Offset}
		err = t.any().fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, part)
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = t.writeZeros(ctx, part)
		}
		if err != nil {
			return err
		}
		off = part.End()
	}
	return nil
}

func (t *Target) zeroDevice(ctx context.Context, e Extent) error {
	if e.Offset%int64(t.unit()) != 0 || e.Length%int64(t.unit()) != 0 {
		return t.writeZeros(ctx, e)
	}
	ways := []struct {
		off   *atomic.Bool
		chunk int64
		zero  func(Extent) error
	}{
		{&t.zero.noUnmap, unmapChunk, t.unmap},
		{&t.zero.noZeroOut, zeroOutChunk, t.zeroOut},
	}
	for i, way := range ways {
		if way.off.Load() {
			continue
		}
		err := chunks(ctx, e, way.chunk, way.zero)
		if err == nil && !t.zero.proven[i].Load() {
			if err = t.proveZero(e); err == nil {
				t.zero.proven[i].Store(true)
			}
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		// Not supported, or a device that says so and fails: the next way
		// either works or tells of the real trouble.
		way.off.Store(true)
	}
	return t.writeZeros(ctx, e)
}

// unmap lets the device drop the range, where it promises zeros afterwards.
func (t *Target) unmap(e Extent) error {
	return t.any().fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e)
}

// zeroOut has the device, or the kernel, write zeros.
func (t *Target) zeroOut(e Extent) error {
	r := [2]uint64{uint64(e.Offset), uint64(e.Length)}
	return t.any().ioctl(unix.BLKZEROOUT, unsafe.Pointer(&r))
}

var errNotZero = errors.New("the device said it zeroed a range, and still returns old data")

// proveZero reads both ends of a range that was zeroed. It is done once for
// each way, so that a device which lies about it is found out.
func (t *Target) proveZero(e Extent) error {
	n := min(e.Length, 64<<10)
	buf, zeros := scratch(int(n)), make([]byte, n)
	for _, off := range []int64{e.Offset, e.End() - n} {
		if _, err := t.read(buf, off); err != nil {
			return err
		}
		if !bytes.Equal(buf, zeros) {
			return errNotZero
		}
	}
	return nil
}

func (t *Target) writeZeros(ctx context.Context, e Extent) error {
	buf := scratch(int(min(e.Length, writeChunk)))
	return chunks(ctx, e, writeChunk, func(part Extent) error {
		return t.write(buf[:part.Length], part.Offset)
	})
}

// chunks calls f for e in parts of at most chunk bytes.
func chunks(ctx context.Context, e Extent, chunk int64, f func(Extent) error) error {
	for e.Length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(e.Length, chunk)
		if err := f(Extent{e.Offset, n}); err != nil {
			return err
		}
		e.Offset, e.Length = e.Offset+n, e.Length-n
	}
	return nil
}
