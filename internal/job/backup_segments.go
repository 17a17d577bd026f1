package job

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"platter/block"
	"platter/catalog"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// sealAfter bounds how much work of a slow run is lost with it.
const sealAfter = 2 * time.Minute

// A stored block or page of this run. at is set once done is closed.
type stored struct {
	at   image.Location
	done chan struct{}
}

// A segmentWriter fills segments of one kind and stores them in the
// background. It remembers what it stores until the catalog knows it.
type segmentWriter struct {
	ctx     context.Context
	repo    *repo.Repo
	catalog *catalog.Catalog
	kind    segment.Kind
	run     [16]byte
	size    int         // of a segment, at most
	free    chan []byte // buffers of that size; nil until first used
	// blocks is where a run stores the blocks that these pages name: they are
	// durable before the pages are. Nil for none.
	blocks *segmentWriter

	mu      sync.Mutex
	open    *filling
	pending map[image.ID]*stored
	storing map[*filling]bool // sealed, and not durable yet
	err     error

	stored   []repo.Attested   // segments, since whoever uses them took them last
	own      []image.SegmentID // all that were stored
	payload  int64             // encoded bytes of records
	overhead int64             // all other bytes of the segments
}

// filling is a segment being filled.
type filling struct {
	*segment.Builder
	name    image.SegmentID // that its records are known by
	buf     []byte
	began   time.Duration // by the machine's uptime
	pages   []*image.Page // of a page segment, record by record
	payload int64
	stored  chan struct{} // closed when all is over
}

// eachPage is the contents of a page segment for the catalog.
func (f *filling) eachPage(_ context.Context, visit func(record int, p *image.Page) error) error {
	for i, p := range f.pages {
		if err := visit(i, p); err != nil {
			return err
		}
	}
	return nil
}

// named returns the segments in which the blocks and pages are that pages name.
func (f *filling) named() map[image.SegmentID]bool {
	set := map[image.SegmentID]bool{}
	for _, p := range f.pages {
		for i := range p.Hints {
			set[p.Hints[i].Segment] = true
		}
	}
	return set
}

func newSegmentWriter(ctx context.Context, env *Env, kind segment.Kind, run [16]byte, buffers, size int) *segmentWriter {
	w := &segmentWriter{
		ctx: ctx, repo: env.Repo, catalog: env.Catalog, kind: kind, run: run, size: size,
		free: make(chan []byte, buffers), pending: map[image.ID]*stored{}, storing: map[*filling]bool{},
	}
	for range buffers {
		w.free <- nil
	}
	return w
}

// claim returns where id is or will be stored by this run. mine is true when
// nobody had claimed it: the caller then calls add, or fails the run.
func (w *segmentWriter) claim(id image.ID) (s *stored, mine bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s, ok := w.pending[id]; ok {
		return s, false
	}
	s = &stored{done: make(chan struct{})}
	w.pending[id] = s
	return s, true
}

// An encoded block or page is claimed and ready to be stored.
type encoded struct {
	stored  *stored
	record  segment.Record
	payload []byte
	page    *image.Page // of a page segment, else nil
}

// add stores claimed blocks or pages one behind the other, so that what is
// read together later lies together.
func (w *segmentWriter) add(list ...encoded) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range list {
		fits := func(b *segment.Builder) bool { return b.Fits(len(e.payload)) }
		if err := w.room(fits); err != nil {
			return err
		}
		w.list(e, w.open.Add(e.record, e.payload))
	}
	return nil
}

// move stores a claimed record of another segment as it is.
func (w *segmentWriter) move(s *stored, m *segment.Moved, p *image.Page) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.room(func(b *segment.Builder) bool { return b.FitsMoved(m) }); err != nil {
		return err
	}
	w.list(encoded{stored: s, payload: m.Payload, page: p}, w.open.AddMoved(m))
	return nil
}

// list keeps what is known of a record that the open segment took.
func (w *segmentWriter) list(e encoded, record uint32) {
	e.stored.at = image.Location{Segment: w.open.ID(), Record: record}
	close(e.stored.done)
	w.open.pages = append(w.open.pages, e.page)
	w.open.payload += int64(len(e.payload))
}

// room makes the open segment one that a payload fits in. The caller holds the
// lock, which is given up while no buffer is free: by then others may have
// opened a segment, and even filled it.
func (w *segmentWriter) room(fits func(*segment.Builder) bool) error {
	for w.err == nil {
		if w.open != nil && fits(w.open.Builder) && w.repo.Machine.Uptime()-w.open.began <= sealAfter {
			return nil
		}
		if w.open != nil {
			w.seal()
		}
		w.mu.Unlock()
		f, err := w.begin()
		w.mu.Lock()
		switch {
		case err != nil:
			w.err = errors.Join(w.err, err)
		case w.open != nil:
			w.free <- f.buf
		default:
			w.open = f
		}
	}
	return w.err
}

func (w *segmentWriter) begin() (*filling, error) {
	select {
	case buf := <-w.free:
		if buf == nil {
			var err error
			if buf, err = block.AllocAligned(w.size); err != nil {
				return nil, err
			}
		}
		b := w.repo.NewSegment(buf, w.kind, w.run)
		return &filling{Builder: b, name: b.ID(), buf: buf, began: w.repo.Machine.Uptime()}, nil
	case <-w.ctx.Done():
		return nil, context.Cause(w.ctx)
	}
}

// seal ends the open segment and stores it in the background. The caller holds
// the lock.
func (w *segmentWriter) seal() {
	f := w.open
	w.open = nil
	f.stored = make(chan struct{})
	w.storing[f] = true
	go func() {
		defer close(f.stored)
		err := w.upload(f)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = errors.Join(w.err, err)
		delete(w.storing, f)
		w.free <- f.buf
	}()
}

// sealOld ends the open segment when it has been open for long.
func (w *segmentWriter) sealOld() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open != nil && w.open.Len() > 0 && w.repo.Machine.Uptime()-w.open.began > sealAfter {
		w.seal()
	}
}

// upload makes a segment durable, then known to the catalog.
func (w *segmentWriter) upload(f *filling) error {
	// A run that is being stopped keeps what it has: the next one finds it.
	ctx, done := lingering(w.ctx)
	defer done()
	if w.blocks != nil {
		if err := w.blocks.settle(f.named()); err != nil {
			return fmt.Errorf("store segment %s after the blocks that it names: %w", f.name, err)
		}
	}
	data, footer := f.Seal()
	err := w.repo.Store.Put(ctx, segment.Name(footer.ID), data)
	if errors.Is(err, store.ErrNotDurable) {
		// The object is lost, whatever is under its name. A second failure
		// ends the run.
		f.Rename()
		data, footer = f.Seal()
		err = w.repo.Store.Put(ctx, segment.Name(footer.ID), data)
	}
	if err != nil {
		return fmt.Errorf("store segment %s: %w", footer.ID, err)
	}
	if err := w.catalog.AddSegment(ctx, footer, f.eachPage); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range footer.Records {
		delete(w.pending, footer.Records[i].ID)
	}
	w.own = append(w.own, footer.ID)
	w.stored = append(w.stored, repo.Attested{Segment: footer.ID, Digest: footer.Digest})
	w.payload += f.payload
	w.overhead += footer.Size - f.payload
	return nil
}

// flush stores the open segment, and waits until it is durable and all that were
// sealed before. A store that is gone was waited for long enough.
func (w *segmentWriter) flush() error {
	w.mu.Lock()
	if w.open != nil && w.open.Len() > 0 && !errors.Is(w.err, store.ErrUnreachable) {
		w.seal()
	}
	return w.wait(slices.Collect(maps.Keys(w.storing)))
}

// settle stores those of some segments that are not yet, and waits until they
// are durable. Pages that came into the store without their blocks would be
// found there by the next run, and lead it and every reader astray.
func (w *segmentWriter) settle(some map[image.SegmentID]bool) error {
	w.mu.Lock()
	if w.open != nil && some[w.open.name] {
		w.seal()
	}
	var waiting []*filling
	for f := range w.storing {
		if some[f.name] {
			waiting = append(waiting, f)
		}
	}
	return w.wait(waiting)
}

// wait returns when some segments are durable, or it is known that they are
// not. The caller holds the lock, which is given up.
func (w *segmentWriter) wait(some []*filling) error {
	w.mu.Unlock()
	for _, f := range some {
		<-f.stored
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *segmentWriter) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil
}

// totals counts the segments stored so far.
func (w *segmentWriter) totals() totals {
	w.mu.Lock()
	defer w.mu.Unlock()
	return totals{w.payload, w.overhead, len(w.own)}
}

// bytes counts the encoded bytes so far, those of the open segment included.
func (w *segmentWriter) bytes() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		return w.payload
	}
	return w.payload + w.open.payload
}

// close gives the buffers back. Nothing is being stored any more.
func (w *segmentWriter) close() {
	for range cap(w.free) {
		select {
		case buf := <-w.free:
			_ = block.FreeAligned(buf)
		default:
		}
	}
}
