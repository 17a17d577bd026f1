package reader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"platter/image"
	"platter/image/segment"
	"platter/image/store"
)

// A Ref asks for one block of an image.
type Ref struct {
	Block  int64          // number in the image
	ID     image.ID       // never zero: blocks of zeros are stored nowhere
	At     image.Location // a hint, zero for none
	Length int32          // bytes: the block size, less for an image's odd tail
}

// Read hands out the blocks that refs ask for, each once, in no order, decoded
// and checked. refs are in order of block number and of one image, and come
// from its map.
//
// visit gets blocks that follow each other in the image, as many as are stored
// near each other, up to 1 MiB; plain begins on a page of memory and may be
// used until visit returns. It is called from several goroutines at once, and
// must not call this Reader.
//
// The error is visit's own, that of ctx, a store.ErrUnreachable, or a *Lost for
// the first block that could not be had. Read returns when no visit is running any more.
func (r *Reader) Read(ctx context.Context, refs []Ref, visit func(first int64, plain []byte) error) error {
	lost, err := r.Salvage(ctx, refs, visit)
	if err == nil && len(lost) > 0 {
		err = lost[0]
	}
	return err
}

// Salvage is Read that returns, in order of refs, all that could not be had.
func (r *Reader) Salvage(ctx context.Context, refs []Ref, visit func(first int64, plain []byte) error) ([]*Lost, error) {
	b := &batch{
		reader: r, kind: segment.Data, stride: r.stride, refs: refs,
		fits: r.fitsBlock,
		check: func(w *worker, items []item, plain []byte) error {
			// The map the ID comes from was checked from the manifest down: this
			// domain made it, so that its BLAKE3 part decides.
			if id := refs[items[0].ref].ID; w.hasher.Compare(plain, id) != id {
				return errContent
			}
			return nil
		},
		visit: visit,
	}
	return b.read(ctx)
}

// Locate sets At of each ref to where its block is stored as a record of the
// right length, as footers tell, and returns those that are nowhere. The
// blocks themselves are not read.
func (r *Reader) Locate(ctx context.Context, refs []Ref) ([]*Lost, error) {
	b := &batch{reader: r, kind: segment.Data, stride: r.stride, refs: refs, fits: r.fitsBlock, locate: true}
	return b.read(ctx)
}

func (r *Reader) fitsBlock(ref *Ref, rec *segment.Record) error {
	if int64(rec.Plain) != int64(ref.Length) || int(rec.Plain) > r.stride {
		return fmt.Errorf("record of %d bytes for a block of %d: %w", rec.Plain, ref.Length, image.ErrCorrupt)
	}
	return nil
}

var errContent = fmt.Errorf("content is not what its ID says: %w", image.ErrCorrupt)

// A batch is one call of Read, for blocks or for pages.
type batch struct {
	reader *Reader
	kind   segment.Kind
	stride int // bytes from one record to the next in a worker's out
	refs   []Ref
	// fits refuses a record that cannot be what ref asks for, by its length.
	fits func(ref *Ref, rec *segment.Record) error
	// check refuses plain bytes that are not what the items ask for.
	check func(w *worker, items []item, plain []byte) error
	visit func(first int64, plain []byte) error // nil: check keeps what it wants
	// locate ends with the footers: what is good goes into refs.
	locate bool

	mu     sync.Mutex
	failed []failure
}

// An item is a ref and where to read it: key holds the place of its segment in
// a list, and the record.
type item struct {
	key uint64
	ref int32
}

func (i item) record() int { return int(uint32(i.key)) }

func makeItem(segment, ref int, record uint32) item {
	return item{uint64(segment)<<32 | uint64(record), int32(ref)}
}

func compareItems(a, b item) int {
	if c := cmp.Compare(a.key, b.key); c != 0 {
		return c
	}
	return cmp.Compare(a.ref, b.ref)
}

// A failure is a ref that could not be had from a place.
type failure struct {
	ref int32
	at  image.Location
	err error // nil when there was no place to look
}

// read tries the hints, and then looks for what they did not lead to. It
// returns what could not be had, in order of refs.
func (b *batch) read(ctx context.Context) ([]*Lost, error) {
	p := newPlan(len(b.refs))
	for i := range b.refs {
		if b.refs[i].At.IsZero() {
			b.fail(int32(i), image.Location{}, nil)
			continue
		}
		p.add(i, b.reader.forward.resolve(b.refs[i].At))
	}
	if err := b.run(ctx, p); err != nil {
		return nil, err
	}
	return b.search(ctx)
}

// A plan lists items by segment, in the order in which their segments were
// first met, so that targets are written about from front to back.
type plan struct {
	segments []image.SegmentID
	places   map[image.SegmentID]int
	items    []item
}

func newPlan(n int) *plan {
	return &plan{places: make(map[image.SegmentID]int), items: make([]item, 0, n)}
}

func (p *plan) add(ref int, at image.Location) {
	// Neighbours are mostly stored together.
	s := len(p.segments) - 1
	if s < 0 || p.segments[s] != at.Segment {
		var ok bool
		if s, ok = p.places[at.Segment]; !ok {
			s = len(p.segments)
			p.places[at.Segment] = s
			p.segments = append(p.segments, at.Segment)
		}
	}
	p.items = append(p.items, makeItem(s, ref, at.Record))
}

// run reads all items of a plan. Those that cannot be had are kept as failed.
func (b *batch) run(ctx context.Context, p *plan) error {
	if len(p.items) == 0 {
		return ctx.Err()
	}
	slices.SortFunc(p.items, compareItems)
	g, ctx := errgroup.WithContext(ctx)
	n := cap(b.reader.workers)
	tasks := make(chan task, n)
	g.Go(func() error {
		defer close(tasks)
		return b.cut(ctx, p, tasks)
	})
	for range min(n, len(p.items)) {
		g.Go(func() error {
			for t := range tasks {
				if err := b.work(ctx, t); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// cut checks the items of each segment against its footer and sends them in
// tasks of records that lie close together.
func (b *batch) cut(ctx context.Context, p *plan, tasks chan<- task) error {
	for rest := p.items; len(rest) > 0; {
		place := rest[0].key >> 32
		n := 1
		for n < len(rest) && rest[n].key>>32 == place {
			n++
		}
		items := rest[:n]
		rest = rest[n:]
		id := p.segments[place]
		f, err := b.reader.Footer(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, store.ErrUnreachable) {
			return err // as would be whatever is asked next, after as long a wait
		}
		if err != nil {
			for _, it := range items {
				b.fail(it.ref, image.Location{Segment: id, Record: uint32(it.record())}, err)
			}
			continue
		}
		if items = b.sift(f, items); b.locate {
			continue
		}
		if len(items) > 0 && b.kind == segment.Data {
			b.reader.touch(id)
		}
		for len(items) > 0 {
			n := b.span(f, items)
			select {
			case tasks <- task{f, items[:n]}:
			case <-ctx.Done():
				return ctx.Err()
			}
			items = items[n:]
		}
	}
	return nil
}

// sift keeps the items whose records are what they ask for.
func (b *batch) sift(f *segment.Footer, items []item) []item {
	kept := items[:0]
	for _, it := range items {
		ref, n := &b.refs[it.ref], it.record()
		var err error
		if f.Kind != b.kind || n >= len(f.Records) || f.Records[n].ID != ref.ID {
			err = errStale
		} else {
			err = b.fits(ref, &f.Records[n])
		}
		at := image.Location{Segment: f.ID, Record: uint32(n)}
		if err != nil {
			b.fail(it.ref, at, err)
			continue
		}
		if b.locate {
			ref.At = at
		}
		kept = append(kept, it)
	}
	return kept
}

// span returns how many of the items, at least one, can be read together.
func (b *batch) span(f *segment.Footer, items []item) int {
	first := &f.Records[items[0].record()]
	end := first.Offset + int64(first.Stored)
	for n := 1; n < len(items); n++ {
		r := &f.Records[items[n].record()]
		next := r.Offset + int64(r.Stored)
		if r.Offset-end > maxGap || next-first.Offset > int64(b.reader.span+maxGap) {
			return n
		}
		end = max(end, next)
	}
	return len(items)
}

func (b *batch) fail(ref int32, at image.Location, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = append(b.failed, failure{ref, at, err})
}
