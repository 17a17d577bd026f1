package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"platter/block"
	"platter/image"
	"platter/image/reader"
)

// differing reads the target and returns what of a window it does not hold.
func (r *restorer) differing(ctx context.Context, w window) (refs []reader.Ref, zeros []block.Extent, err error) {
	var mu sync.Mutex
	kept := func(n int64) {
		r.written.kept.Add(n)
		r.counts.unchanged.Add(n)
		r.counts.done.Add(n)
	}
	trusted := func(n int64) {
		r.written.trusted.Add(n)
		r.counts.unchanged.Add(n)
		r.counts.done.Add(n)
	}
	err = r.compare(ctx, w, comparison{isUntrusted, kept, trusted, func(n int64, ref *reader.Ref) error {
		mu.Lock()
		defer mu.Unlock()
		if ref != nil {
			refs = append(refs, *ref)
		} else {
			zeros = append(zeros, blockExtent(r.image, n))
		}
		return nil
	}})
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(refs, func(a, b reader.Ref) int { return int(min(1, max(-1, a.Block-b.Block))) })
	return refs, mergeExtents(zeros), nil
}

// readBack reads the target from the device itself and compares every block's
// ID with the map.
func (r *restorer) readBack(ctx context.Context) error {
	counts := new(counters)
	stop := r.env.report("restore", r.opts.Target, "read back", r.wanted.region.Length, counts, func() int64 { return 0 })
	defer stop()
	done := func(n int64) { counts.done.Add(n) }
	first := r.first
	if r.wanted.over != nil { // it is not there yet
		first, _ = r.ends()
	}
	err := r.pass(ctx, first, r.end, func(ctx context.Context, w window) error {
		return r.compare(ctx, w, comparison{isWritten, done, done, func(n int64, _ *reader.Ref) error {
			return fmt.Errorf("read back %s at %d: block %d %w", r.opts.Target, n*int64(r.image.BlockSize), n, errNotKept)
		}})
	})
	if errors.Is(err, errNotKept) {
		r.stage = "do not trust the target: it does not keep what is written to it"
	}
	return err
}

var errNotKept = errors.New("is not what was written")

// isUntrusted reports whether p is the block of an ID that a map says.
func isUntrusted(h *image.Hasher, id image.ID, p []byte) bool { return h.Is(id, p) }

// isWritten is isUntrusted for an ID whose block was checked before it was
// written: half of the work is enough.
func isWritten(h *image.Hasher, id image.ID, p []byte) bool { return h.Compare(p, id) == id }

// A stretch is a few blocks of the target that are read together, and what
// they should be.
type stretch struct {
	first, end int64 // blocks
	refs       []reader.Ref
}

// A comparison says what to do with what is on the target. Its functions are
// called from several goroutines.
type comparison struct {
	is      func(h *image.Hasher, id image.ID, p []byte) bool
	same    func(bytes int64)
	skipped func(bytes int64)                    // was not looked at: a tracker vouches for it
	differs func(n int64, ref *reader.Ref) error // ref is nil for a block that should be zero
}

// compare reads the target and tells what is not as the window says.
func (r *restorer) compare(ctx context.Context, w window, c comparison) error {
	g, ctx := errgroup.WithContext(ctx)
	stretches := make(chan stretch, workers())
	g.Go(func() error {
		defer close(stretches)
		return r.stretches(ctx, w, c, stretches)
	})
	for range workers() {
		g.Go(func() error {
			h := r.env.Repo.Hasher()
			for s := range stretches {
				if err := r.compareStretch(ctx, h, s, c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// stretches cuts a window. Holes of the target that should be zeros are left
// out: they are.
func (r *restorer) stretches(ctx context.Context, w window, c comparison, out chan<- stretch) error {
	bs := int64(r.image.BlockSize)
	most := int64(r.pool.BufferSize()) / bs
	refs := w.refs
	for at := w.first; at < w.end; {
		from, upTo := r.wantedFrom(at, w.end)
		if from > at {
			c.skipped(r.extent(at, from).Length)
			for at = from; len(refs) > 0 && refs[0].Block < at; refs = refs[1:] {
			}
			continue
		}
		if len(refs) == 0 || refs[0].Block > at {
			data, err := r.target.Data(at * bs)
			if err != nil && err != io.EOF {
				return err
			}
			next := upTo
			if len(refs) > 0 {
				next = min(next, refs[0].Block)
			}
			if err == nil {
				next = min(next, data.Offset/bs)
			}
			if next > at {
				c.same(r.extent(at, next).Length)
				at = next
				continue
			}
		}
		s := stretch{first: at, end: min(at+most, upTo)}
		n := 0
		for n < len(refs) && refs[n].Block < s.end {
			n++
		}
		s.refs, refs, at = refs[:n], refs[n:], s.end
		select {
		case out <- s:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// wantedFrom returns the first run of blocks at or after at, and before end,
// that are looked at. It begins at end if there is none.
func (r *restorer) wantedFrom(at, end int64) (from, upTo int64) {
	if r.only == nil {
		return at, end
	}
	bs := int64(r.image.BlockSize)
	e, ok := r.only.Next(at * bs)
	if !ok || e.Offset >= end*bs {
		return end, end
	}
	return max(at, e.Offset/bs), min(end, (e.End()+bs-1)/bs)
}

func (r *restorer) compareStretch(ctx context.Context, h *image.Hasher, s stretch, c comparison) error {
	buf, err := r.pool.Get(ctx)
	if err != nil {
		return err
	}
	defer r.pool.Put(buf)
	e := r.extent(s.first, s.end)
	if n, err := r.target.ReadAt(buf[:e.Length], e.Offset); err != nil && (err != io.EOF || int64(n) < e.Length) {
		return err
	}
	refs, equal := s.refs, e.Length
	for n := s.first; n < s.end; n++ {
		one := blockExtent(r.image, n)
		p := buf[one.Offset-e.Offset:][:one.Length]
		var ref *reader.Ref
		var same bool
		if len(refs) > 0 && refs[0].Block == n {
			ref, refs = &refs[0], refs[1:]
			same = c.is(h, ref.ID, p)
		} else {
			same = image.IsZero(p)
		}
		if !same {
			equal -= one.Length
			if err := c.differs(n, ref); err != nil {
				return err
			}
		}
	}
	c.same(equal)
	return nil
}
