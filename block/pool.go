package block

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pageSize is the alignment of buffers in memory, and the unit that offsets
// and lengths of O_DIRECT transfers are rounded to: no device has larger
// logical sectors.
const pageSize = 4096

// AllocAligned returns n bytes of zeros that begin on a page, outside the Go
// heap. Its capacity is n rounded up to 4096, so that a transfer of an odd
// tail has room. Give it back by FreeAligned: the garbage collector does not.
func AllocAligned(n int) ([]byte, error) {
	if n <= 0 {
		return nil, fmt.Errorf("allocate buffer of %d bytes: %w", n, unix.EINVAL)
	}
	b, err := unix.Mmap(-1, 0, roundUp(n, pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("allocate buffer of %d bytes: %w", n, err)
	}
	return b[:n], nil
}

// FreeAligned gives back what AllocAligned returned. The slice may have been
// shortened at its end, not at its start. Nobody may use it afterwards.
func FreeAligned(b []byte) error {
	if cap(b) == 0 {
		return nil
	}
	if err := unix.Munmap(b[:cap(b)]); err != nil {
		return fmt.Errorf("free buffer of %d bytes: %w", cap(b), err)
	}
	return nil
}

// A Pool holds a fixed number of aligned buffers of one size. They are the
// bound on memory of whoever reads through it: Get waits until a buffer is
// free. A Pool is safe for concurrent use.
type Pool struct {
	size  int
	count int
	free  chan []byte

	mu   sync.Mutex
	ours map[*byte]bool // first byte of each buffer; true while handed out
}

// NewPool makes a pool of count buffers of size bytes each. The memory is
// reserved at once, and used when the buffers first are.
func NewPool(count, size int) (*Pool, error) {
	if count < 1 {
		return nil, fmt.Errorf("make pool of %d buffers: need one at least", count)
	}
	p := &Pool{
		size: size, count: count,
		free: make(chan []byte, count),
		ours: make(map[*byte]bool, count),
	}
	for range count {
		b, err := AllocAligned(size)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make pool of %d buffers: %w", count, err), p.Close())
		}
		p.ours[&b[0]] = false
		p.free <- b
	}
	return p, nil
}

// BufferSize returns the length in bytes of the pool's buffers.
func (p *Pool) BufferSize() int { return p.size }

// Get returns a buffer of the pool's size, waiting for one to come free. Its
// content is whatever was last in it. The caller owns it until Put.
func (p *Pool) Get(ctx context.Context) ([]byte, error) {
	// A context that is done wins over a free buffer, so that a cancelled
	// job stops even when nothing else holds it up.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case b, ok := <-p.free:
		if !ok {
			return nil, errors.New("get buffer: the pool is closed")
		}
		p.mu.Lock()
		p.ours[&b[0]] = true
		p.mu.Unlock()
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Put gives a buffer back; it may have been shortened at its end. It panics
// on a buffer that is not out, because two owners of one buffer would mix the
// contents of two places of a disk.
func (p *Pool) Put(b []byte) {
	if cap(b) < p.size {
		panic("block: buffer put into a pool it did not come from")
	}
	b = b[:p.size]
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ours[&b[0]] {
		panic("block: buffer put twice, or into a pool it did not come from")
	}
	p.ours[&b[0]] = false
	p.free <- b // has room for every buffer
}

// Close frees the buffers. All must have been put back: it returns an error
// and leaves those that were not, because someone may still write to them.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ours == nil {
		return nil
	}
	close(p.free)
	var errs []error
	for b := range p.free {
		delete(p.ours, &b[0])
		errs = append(errs, FreeAligned(b))
	}
	if n := len(p.ours); n > 0 {
		errs = append(errs, fmt.Errorf("close pool: %d of %d buffers are still in use", n, p.count))
	}
	p.ours = nil
	return errors.Join(errs...)
}

// aligned reports whether b begins on a page.
func aligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%pageSize == 0
}

// scratch returns n aligned bytes of the Go heap, for rare transfers of
// buffers that are not aligned.
func scratch(n int) []byte {
	b := make([]byte, n+pageSize)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (pageSize - 1)
	return b[skip : skip+n : skip+n]
}

func roundUp[T int | int64](n, unit T) T   { return (n + unit - 1) / unit * unit }
func roundDown[T int | int64](n, unit T) T { return n / unit * unit }
