package job

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"platter/block"
	"platter/image"
	"platter/image/reader"
)

// restoreCounts are bytes.
type restoreCounts struct{ data, zeroed, kept, trusted atomic.Int64 }

// A window is a stretch of the image with all that its map says: blocks that
// are not in refs are zero.
type window struct {
	first, end int64 // blocks
	refs       []reader.Ref
}

// refMemory is what a ref costs in memory, in bytes: itself and what reading
// it takes.
const refMemory = 96

// pass walks the map from block first to block end and hands it on in windows
// bounded by memory. The next one is fetched while f works on one.
func (r *restorer) pass(ctx context.Context, first, end int64, f func(context.Context, window) error) error {
	if first >= end {
		return ctx.Err()
	}
	const ahead = 2 // windows in memory
	most := int(max(r.env.Memory/16/refMemory, 2*image.PageEntries))
	windows, free := make(chan window), make(chan []reader.Ref, ahead)
	for range ahead {
		free <- nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(windows)
		return r.fetch(ctx, first, end, most, windows, free)
	})
	g.Go(func() error {
		for w := range windows {
			if err := f(ctx, w); err != nil {
				return err
			}
			free <- w.refs[:0]
		}
		return nil
	})
	return g.Wait()
}

// fetch walks the map and fills windows of at most most refs.
func (r *restorer) fetch(ctx context.Context, first, end int64, most int, windows chan<- window, free <-chan []reader.Ref) error {
	w := window{first: first}
	take := func() error {
		select {
		case w.refs = <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	send := func(upTo int64) error {
		w.end = upTo
		select {
		case windows <- w:
			w = window{first: upTo}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := take(); err != nil {
		return err
	}
	err := r.reader.WalkAll(ctx, reader.MapOf(r.image), first, end, reader.Visitor{Enter: r.enters, Page: func(n reader.Node, p *image.Page) error {
		if n.Level > 0 {
			return nil
		}
		at := n.First
		if len(w.refs)+image.PageEntries > most {
			if err := send(max(first, at)); err != nil {
				return err
			}
			if err := take(); err != nil {
				return err
			}
		}
		w.refs = appendRefs(w.refs, r.image, at, p, first, end)
		return nil
	}})
	if err != nil {
		return err
	}
	return send(end)
}

// enters reports whether a page of the map is about anything that is looked at.
func (r *restorer) enters(n reader.Node) bool {
	return r.only == nil || r.only.Contains(r.extent(n.First, min(n.First+image.PageBlocks(n.Level), r.image.Blocks())))
}

// appendRefs adds the blocks of a leaf page that lie between first and end and
// are not zero.
func appendRefs(refs []reader.Ref, m *image.Manifest, at int64, p *image.Page, first, end int64) []reader.Ref {
	for i := range p.Entries {
		n := at + int64(i)
		if n < first || n >= end || p.Entries[i].IsZero() {
			continue
		}
		refs = append(refs, reader.Ref{Block: n, ID: p.Entries[i], At: p.Hints[i], Length: int32(blockExtent(m, n).Length)})
	}
	return refs
}

// writeWindow makes the target hold what a window says.
func (r *restorer) writeWindow(ctx context.Context, w window) error {
	zeros := r.zeros(w)
	refs := w.refs
	if r.opts.InPlace {
		var err error
		if refs, zeros, err = r.differing(ctx, w); err != nil {
			return err
		}
	}
	if err := r.reserve(refs); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for _, e := range zeros {
			if err := r.zero(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() error {
		return r.reader.Read(ctx, refs, func(first int64, plain []byte) error {
			if err := r.throttle.wait(ctx, len(plain)); err != nil {
				return err
			}
			n, err := r.target.WriteAt(plain, first*int64(r.image.BlockSize))
			r.written.data.Add(int64(n))
			r.counts.done.Add(int64(n))
			return err
		})
	})
	return g.Wait()
}

// reserve gets a new file the space for a window's blocks, run by run.
func (r *restorer) reserve(refs []reader.Ref) error {
	for n := 0; r.fresh && len(refs) > 0; refs = refs[n:] {
		for n = 1; n < len(refs) && refs[n].Block == refs[n-1].Block+1; n++ {
		}
		if err := r.target.Reserve(r.extent(refs[0].Block, refs[n-1].Block+1)); err != nil {
			return err
		}
	}
	return nil
}

// zeros returns the extents of a window that hold zeros.
func (r *restorer) zeros(w window) (zeros []block.Extent) {
	next := w.first
	add := func(upTo int64) {
		if e := r.extent(next, upTo); e.Length > 0 {
			zeros = append(zeros, e)
		}
	}
	for i := range w.refs {
		add(w.refs[i].Block)
		next = w.refs[i].Block + 1
	}
	add(w.end)
	return zeros
}

// extent returns the bytes of the blocks from first to before end.
func (r *restorer) extent(first, end int64) block.Extent {
	bs := int64(r.image.BlockSize)
	return block.Extent{Offset: first * bs, Length: min(end*bs, r.image.Size) - first*bs}
}

func (r *restorer) zero(ctx context.Context, e block.Extent) error {
	if !r.fresh {
		if err := r.target.Zero(ctx, e); err != nil {
			return err
		}
	}
	r.written.zeroed.Add(e.Length)
	r.counts.done.Add(e.Length)
	return ctx.Err()
}
