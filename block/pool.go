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

// A Pool holds aligned buffers of one size, a fixed number at most. They are the
// bound on memory of whoever reads through it: Get waits until a buffer is
// free. A Pool is safe for concurrent use.
type Pool struct {
	size  int
	turns chan struct{} // one for each buffer that may be handed out

	mu     sync.Mutex
	idle   [][]byte       // the one used last is used next: its memory is there already
	out    map[*byte]bool // first byte of each buffer handed out
	closed bool
}

// NewPool makes a pool of count buffers of size bytes each. Memory is taken for
// as many as are in use at the same time.
func NewPool(count, size int) (*Pool, error) {
	if count < 1 || size < 1 {
		return nil, fmt.Errorf("make pool of %d buffers of %d bytes: need one at least", count, size)
	}
	return &Pool{size: size, turns: make(chan struct{}, count), out: make(map[*byte]bool, count)}, nil
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
	case p.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	b, err := p.take()
	if err != nil {
		<-p.turns
	}
	return b, err
}

func (p *Pool) take() (b []byte, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch n := len(p.idle); {
	case p.closed:
		return nil, errors.New("get buffer: the pool is closed")
	case n > 0:
		b, p.idle = p.idle[n-1], p.idle[:n-1]
	default:
		if b, err = AllocAligned(p.size); err != nil {
			return nil, err
		}
	}
	p.out[&b[0]] = true
	return b, nil
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
	if !p.out[&b[0]] {
		panic("block: buffer put twice, or into a pool it did not come from")
	}
	delete(p.out, &b[0])
	p.idle = append(p.idle, b)
	<-p.turns
}

// Close frees the buffers. All must have been put back: it returns an error
// and leaves those that were not, because someone may still write to them.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	var errs []error
	for _, b := range p.idle {
		errs = append(errs, FreeAligned(b))
	}
	p.idle = nil
	if n := len(p.out); n > 0 {
		errs = append(errs, fmt.Errorf("close pool: %d of %d buffers are still in use", n, cap(p.turns)))
	}
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
