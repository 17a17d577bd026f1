// Package freespace reads which bytes of a device its filesystem calls free:
// bytes that hold nothing anybody put there, so that an image can do without
// them.
//
// A filesystem is believed only where its own records prove themselves: known
// features, checksums where it has them, counts that add up, nothing left to
// replay. Anything else is an error that wraps ErrUnsure, and all of the
// filesystem counts as used. Its records are hostile input: no length is
// trusted, and memory is bounded whatever they say.
//
// The device must not be written to meanwhile.
package freespace

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"sort"

	"platter/block"
)

// ErrUnsure means that what a filesystem says of its free space is not to be
// relied on; the text that wraps it says why.
var ErrUnsure = errors.New("its free space is not certain")

func unsure(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsure, fmt.Sprintf(format, args...))
}

// readers are the filesystems that can be asked, by the names that
// block.Partition gives them.
func readers() map[string]func(*volume) error {
	return map[string]func(*volume) error{
		"ext2": ext, "ext3": ext, "ext4": ext,
		"xfs": xfs, "btrfs": btrfs, "vfat": fat, "ntfs": ntfs, "swap": swap,
	}
}

// Known reports whether a content is one that Walk can read.
func Known(content string) bool { return readers()[content] != nil }

// Walk calls free with each extent of the device that the filesystem in e,
// which content names, calls free. The order is the filesystem's own. After an
// error, what free was called with does not count.
func Walk(ctx context.Context, src block.Source, content string, e block.Extent, free func(block.Extent)) error {
	read := readers()[content]
	if read == nil {
		return unsure("%q is not a filesystem that can be asked", content)
	}
	if size := src.Info().Size; e.Offset < 0 || e.Length < 0 || e.Length > size-e.Offset {
		return unsure("%v is not on the device of %d bytes", e, size)
	}
	v := &volume{ctx: ctx, src: src, e: e, free: free, unit: windowSize}
	if err := v.walk(read); err != nil {
		return fmt.Errorf("free space of the %s at %d of %s: %w", content, e.Offset, src.Info().Path, err)
	}
	return nil
}

const (
	windowSize = 64 << 10
	maxWindows = 8
)

// A volume is the extent of a device that a filesystem lies in, read through a
// few windows.
type volume struct {
	ctx     context.Context
	src     block.Source
	e       block.Extent
	free    func(block.Extent)
	unit    int64        // bytes of a window
	last    block.Extent // on the device, not told yet
	windows []window     // the last used one comes last
}

type window struct {
	off int64
	b   []byte
}

func (v *volume) walk(read func(*volume) error) error {
	defer v.close()
	if err := read(v); err != nil {
		return err
	}
	v.flush()
	return nil
}

func (v *volume) close() {
	for _, w := range v.windows {
		_ = block.FreeAligned(w.b)
	}
}

// size is that of the place that the filesystem has, in bytes.
func (v *volume) size() int64 { return v.e.Length }

// at fills p from off, an offset in the filesystem.
func (v *volume) at(off int64, p []byte) error {
	if off < 0 || off > v.e.Length || int64(len(p)) > v.e.Length-off {
		return unsure("its records name %d bytes at %d, beyond its place of %d", len(p), off, v.e.Length)
	}
	for off += v.e.Offset; len(p) > 0; {
		w, err := v.window(off / v.unit * v.unit)
		if err != nil {
			return err
		}
		n := copy(p, w[off%v.unit:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// bytes returns n bytes at off. The caller bounds n.
func (v *volume) bytes(off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	return p, v.at(off, p)
}

// window returns the bytes of the device from off on, valid until the next call.
func (v *volume) window(off int64) ([]byte, error) {
	for i := len(v.windows) - 1; i >= 0; i-- {
		if w := v.windows[i]; w.off == off {
			copy(v.windows[i:], v.windows[i+1:])
			v.windows[len(v.windows)-1] = w
			return w.b, nil
		}
	}
	w := window{off: off}
	if len(v.windows) == maxWindows {
		w.b = v.windows[0].b[:v.unit]
		v.windows = append(v.windows[:0], v.windows[1:]...)
	} else {
		var err error
		if w.b, err = block.AllocAligned(int(v.unit)); err != nil {
			return nil, err
		}
	}
	w.b = w.b[:min(v.unit, v.src.Info().Size-off)]
	if _, err := v.src.ReadAt(v.ctx, w.b, off); err != nil {
		_ = block.FreeAligned(w.b)
		return nil, err
	}
	v.windows = append(v.windows, w)
	return w.b, nil
}

// vacant says that length bytes at off, an offset in the filesystem, are free.
func (v *volume) vacant(off, length int64) error {
	if off < 0 || length < 0 || off > v.e.Length || length > v.e.Length-off {
		return unsure("it calls %d bytes at %d free, beyond its place of %d", length, off, v.e.Length)
	}
	if length == 0 {
		return nil
	}
	if off += v.e.Offset; v.last.End() != off || v.last.Length == 0 {
		v.flush()
		v.last = block.Extent{Offset: off}
	}
	v.last.Length += length
	return nil
}

func (v *volume) flush() {
	if v.last.Length > 0 {
		v.free(v.last)
	}
	v.last = block.Extent{}
}

// Spans are parts of a filesystem that are in use whatever its records say, in
// bytes.
type spans []block.Extent

// outside calls f with the parts of e that lie outside of the spans.
func (s spans) outside(e block.Extent, f func(off, length int64) error) error {
	sort.Slice(s, func(i, j int) bool { return s[i].Offset < s[j].Offset })
	for _, used := range s {
		if used.End() <= e.Offset || used.Offset >= e.End() {
			continue
		}
		if used.Offset > e.Offset {
			if err := f(e.Offset, used.Offset-e.Offset); err != nil {
				return err
			}
		}
		if used.End() >= e.End() {
			return nil
		}
		e = block.Extent{Offset: used.End(), Length: e.End() - used.End()}
	}
	return f(e.Offset, e.Length)
}

// crc32c is that of Linux: it begins with seed, and is not turned round at the
// end.
func crc32c(seed uint32, p []byte) uint32 {
	return ^crc32.Update(^seed, crc32.MakeTable(crc32.Castagnoli), p)
}

// powerOfTwo reports whether n is one, from low to high.
func powerOfTwo(n, low, high uint64) bool { return n >= low && n <= high && n&(n-1) == 0 }
