// Package overlay makes an image writable without touching it: what is written
// goes to a file beside, and is read back from there.
//
// A kept overlay survives its process: what was flushed is in the file. Its
// bytes, numbers little-endian:
//
//	   0:8     "PLTROVL" 01
//	   8:24    ID of the image below
//	  24:32    size of the image in bytes
//	  32:36    granule in bytes, 4096
//	  36:4088  zero
//	4088:4096  xxhash64 of 0:4088
//	4096:D     one bit for each granule, lowest first: set where it was written
//	   D:      the granules, each at D + its place in the image
//
// D is the first multiple of 1 MiB behind the bits. Granules are durable before
// their bits are.
package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"platter/block"
	"platter/image"
	"platter/image/reader"
	"platter/internal/export"
)

const (
	granule    = 4096
	headerSize = 4096
	dataAlign  = 1 << 20
	magic      = "PLTROVL\x01"
)

// A Disk is a Device that can be written to. It is safe for concurrent use.
type Disk struct {
	base export.Device
	file *os.File
	data int64 // offset of the granules in the file
	kept bool

	// mu is held for writing while granules and their bits change.
	mu      sync.RWMutex
	written bitmap
	dirty   map[int64]bool // chunks of bits that the file does not have yet
}

// Temporary returns an overlay in a file without a name in dir: what is
// written goes when it is closed, or the process ends.
func Temporary(base export.Device, dir string) (*Disk, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make an overlay in %s: %w", dir, err)
	}
	return &Disk{base: base, file: os.NewFile(uintptr(fd), dir), written: bitmap{}}, nil
}

// ErrForeign means that an overlay belongs to another image.
var ErrForeign = errors.New("overlay of another image")

// Open opens the overlay of an image in a file, or makes it, for this process
// alone.
func Open(base export.Device, id image.ImageID, path string) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	bits := (base.Size()/granule + 8) / 8
	d := &Disk{
		base: base, file: f, kept: true, written: bitmap{}, dirty: map[int64]bool{},
		data: (headerSize + bits + dataAlign - 1) / dataAlign * dataAlign,
	}
	if err := d.attach(id); err != nil {
		return nil, errors.Join(fmt.Errorf("open overlay %s: %w", path, err), f.Close())
	}
	return d, nil
}

// attach reads what the file holds, or makes an empty one.
func (d *Disk) attach(id image.ImageID) error {
	if err := unix.Flock(int(d.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another process has it open: %w", err)
	}
	st, err := d.file.Stat()
	if err != nil {
		return err
	}
	want := header(id, d.base.Size())
	if !st.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	if st.Size() == 0 {
		if _, err := d.file.WriteAt(want, 0); err != nil {
			return err
		}
		return errors.Join(d.file.Truncate(d.data), d.file.Sync())
	}
	have := make([]byte, headerSize)
	if _, err := d.file.ReadAt(have, 0); err != nil && err != io.EOF {
		return err
	}
	switch {
	case string(have) == string(want):
		return d.load()
	case string(have[:8]) != magic || binary.LittleEndian.Uint64(have[4088:]) != xxhash.Sum64(have[:4088]):
		return fmt.Errorf("it is no overlay, or a damaged one: %w", image.ErrCorrupt)
	}
	return fmt.Errorf("it is of image %x, not %x: %w", have[8:24], id[:], ErrForeign)
}

func header(id image.ImageID, size int64) []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	copy(b[8:], id[:])
	binary.LittleEndian.PutUint64(b[24:], uint64(size))
	binary.LittleEndian.PutUint32(b[32:], granule)
	binary.LittleEndian.PutUint64(b[4088:], xxhash.Sum64(b[:4088]))
	return b
}

// load reads the bits, of which most are holes of the file.
func (d *Disk) load() error {
	fd := int(d.file.Fd())
	last := d.base.Size() / granule
	for at := int64(headerSize); at < d.data; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && from >= d.data {
			return nil
		} else if err != nil {
			return err
		}
		c := (from - headerSize) / chunkBytes
		b := make([]byte, min(chunkBytes, d.data-headerSize-c*chunkBytes))
		if _, err := d.file.ReadAt(b, headerSize+c*chunkBytes); err != nil && err != io.EOF {
			return err
		}
		if err := d.written.decode(c, b, last); err != nil {
			return err
		}
		at = headerSize + (c+1)*chunkBytes
	}
	return nil
}

// Size returns the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.base.Size() }

// ReadAt fills p from byte off.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for n < len(p) {
		at := off + int64(n)
		to, over := d.written.run(at/granule, (off+int64(len(p))-1)/granule)
		part := p[n:min(int64(len(p)), to*granule-off)]
		if over {
			err = readFull(d.file, part, d.data+at)
		} else {
			_, err = d.base.ReadAt(ctx, part, at)
		}
		if err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// readFull reads what the file holds; behind its end there are zeros.
func readFull(f *os.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return nil
	}
	return err
}

// WriteAt writes p at byte off. It is durable after Flush.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.edges(ctx, off, int64(len(p))); err != nil {
		return err
	}
	if _, err := d.file.WriteAt(p, d.data+off); err != nil {
		return fmt.Errorf("write to the overlay: %w", err)
	}
	d.mark(off, int64(len(p)))
	return nil
}

// Zero makes a range read as zeros.
func (d *Disk) Zero(ctx context.Context, off, length int64) error {
	if length == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.edges(ctx, off, length); err != nil {
		return err
	}
	err := unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, d.data+off, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = d.writeZeros(off, length)
	}
	if err != nil {
		return fmt.Errorf("zero a range of the overlay: %w", err)
	}
	d.mark(off, length)
	return nil
}

func (d *Disk) writeZeros(off, length int64) error {
	zeros := make([]byte, min(length, 1<<20))
	for end := off + length; off < end; off += int64(len(zeros)) {
		if _, err := d.file.WriteAt(zeros[:min(int64(len(zeros)), end-off)], d.data+off); err != nil {
			return err
		}
	}
	return nil
}

// edges copies up the granules that a write covers only in part.
func (d *Disk) edges(ctx context.Context, off, length int64) error {
	end := off + length
	first, last := off/granule, (end-1)/granule
	if off%granule != 0 || first == last && end%granule != 0 {
		if err := d.copyUp(ctx, first); err != nil {
			return err
		}
	}
	if last != first && end%granule != 0 {
		return d.copyUp(ctx, last)
	}
	return nil
}

func (d *Disk) copyUp(ctx context.Context, g int64) error {
	if d.written.has(g) {
		return nil
	}
	at := g * granule
	p := make([]byte, min(granule, d.base.Size()-at))
	if _, err := d.base.ReadAt(ctx, p, at); err != nil {
		return err
	}
	if _, err := d.file.WriteAt(p, d.data+at); err != nil {
		return fmt.Errorf("write to the overlay: %w", err)
	}
	return nil
}

func (d *Disk) mark(off, length int64) {
	first, last := off/granule, (off+length-1)/granule
	d.written.set(first, last)
	if d.kept {
		for c := first / chunkGranules; c <= last/chunkGranules; c++ {
			d.dirty[c] = true
		}
	}
}

// Flush makes durable what was written before it was called. A temporary
// overlay has nothing that need outlive the machine.
func (d *Disk) Flush(context.Context) error {
	if !d.kept {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.dirty) == 0 {
		return nil
	}
	if err := unix.Fdatasync(int(d.file.Fd())); err != nil {
		return fmt.Errorf("sync the overlay: %w", err)
	}
	for c := range d.dirty {
		if _, err := d.file.WriteAt(d.written[c].encode(), headerSize+c*chunkBytes); err != nil {
			return fmt.Errorf("write to the overlay: %w", err)
		}
	}
	if err := unix.Fdatasync(int(d.file.Fd())); err != nil {
		return fmt.Errorf("sync the overlay: %w", err)
	}
	clear(d.dirty)
	return nil
}

// Stretches describes the disk. What was written counts as data.
func (d *Disk) Stretches(ctx context.Context, off, length int64, most int) (list []reader.Stretch, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	add := func(s reader.Stretch) bool {
		if n := len(list); n > 0 && list[n-1].Zero == s.Zero {
			list[n-1].Length += s.Length
			return true
		} else if n == most {
			return false
		}
		list = append(list, s)
		return true
	}
	for end := off + length; off < end; {
		to, over := d.written.run(off/granule, (end-1)/granule)
		next := min(end, to*granule)
		parts := []reader.Stretch{{Extent: block.Extent{Offset: off, Length: next - off}}}
		if !over {
			if parts, err = d.base.Stretches(ctx, off, next-off, most); err != nil {
				return list, err
			}
		}
		for _, s := range parts {
			if !add(s) {
				return list, nil
			}
			off = s.End()
		}
	}
	return list, nil
}

// Written returns the first stretch at or after off that was written to, whole
// granules cut off at the end of the disk. It returns io.EOF when there is none.
func (d *Disk) Written(off int64) (block.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for last := (d.Size() - 1) / granule; off < d.Size(); {
		to, over := d.written.run(off/granule, last)
		end := min(to*granule, d.Size())
		if over {
			off = off / granule * granule
			return block.Extent{Offset: off, Length: end - off}, nil
		}
		off = end
	}
	return block.Extent{}, io.EOF
}

// Close closes the file. A kept overlay is flushed before.
func (d *Disk) Close() error {
	return errors.Join(d.Flush(context.Background()), d.file.Close())
}
