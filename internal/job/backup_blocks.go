package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"platter/block"
	"platter/image"
	"platter/image/segment"
)

// counters of a running backup, in bytes.
type counters struct {
	done, read, zero, free, unchanged, known, fresh atomic.Int64
	changes                                         *changes // from the parent; nil not to count them
}

// imager reads chunks and finds or stores their blocks. One serves all workers
// of a run over one device.
type imager struct {
	env       *Env
	src       block.Source
	size      int64
	blockSize int64
	sector    int
	opts      *BackupOptions
	data      *segmentWriter // nil in a dry run
	usable    map[image.SegmentID]bool
	damaged   map[image.ID]bool
	counts    *counters
	pool      *block.Pool
	throttle  *throttle

	mu         sync.Mutex
	unreadable []block.Extent
}

// work deals with chunks until there are no more.
func (m *imager) work(ctx context.Context, chunks <-chan chunk) error {
	w := &worker{imager: m, hasher: m.env.Repo.Hasher(), codec: new(segment.Codec)}
	for {
		select {
		case c, ok := <-chunks:
			if !ok {
				return nil
			}
			if err := w.chunk(ctx, c); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// worker is one goroutine's part of an imager.
type worker struct {
	*imager
	hasher *image.Hasher
	codec  *segment.Codec
	ids    []image.ID       // of the blocks that are neither zero nor the parent's
	at     []image.Location // where the catalog has them
	entry  []int            // their entries in the leaf
	fresh  []encoded        // those of them that nobody has, encoded
	arena  []byte           // their payloads
}

func (w *worker) chunk(ctx context.Context, c chunk) error {
	buf, err := w.pool.Get(ctx)
	if err != nil {
		return err
	}
	defer w.pool.Put(buf)
	off := (c.leaf.first + int64(c.first)) * w.blockSize
	buf = buf[:min(int64(c.blocks)*w.blockSize, w.size-off)]
	if err := w.throttle.wait(ctx, len(buf)); err != nil {
		return err
	}
	if err := w.read(ctx, buf, off); err != nil {
		return err
	}
	w.counts.read.Add(int64(len(buf)))
	w.identify(c, buf)
	if err := w.place(ctx, c, buf); err != nil {
		return err
	}
	w.counts.done.Add(int64(len(buf)))
	if c.leaf.left.Add(-int32(c.blocks)) == 0 {
		close(c.leaf.ready)
	}
	return nil
}

func (w *worker) read(ctx context.Context, buf []byte, off int64) error {
	_, err := w.src.ReadAt(ctx, buf, off)
	var bad *block.ReadError
	if err == nil || !w.opts.AllowUnreadable || !errors.As(err, &bad) {
		return err
	}
	ranges, err := block.ReadAround(ctx, w.src, buf, off, w.sector)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unreadable = append(w.unreadable, ranges...)
	return nil
}

// block returns the bytes of the i-th block of a chunk.
func (w *worker) block(buf []byte, i int) []byte {
	from := int64(i) * w.blockSize
	return buf[from:min(from+w.blockSize, int64(len(buf)))]
}

// identify sets the entries that are zero or the parent's, and collects the
// others.
func (w *worker) identify(c chunk, buf []byte) {
	w.ids, w.entry = w.ids[:0], w.entry[:0]
	for i := range c.blocks {
		p, n := w.block(buf, i), c.first+i
		var before image.ID
		if c.leaf.before != nil {
			before = c.leaf.before.Entries[n]
		}
		id := w.hasher.Compare(p, before)
		c.leaf.page.Entries[n] = id
		if c.leaf.before != nil && id != before {
			w.counts.changes.add(block.Extent{Offset: (c.leaf.first + int64(n)) * w.blockSize, Length: int64(len(p))})
		}
		switch {
		case id.IsZero():
			w.counts.zero.Add(int64(len(p)))
		case id == before && w.trusted(id, c.leaf.before.Hints[n]):
			c.leaf.page.Hints[n] = c.leaf.before.Hints[n]
			w.counts.unchanged.Add(int64(len(p)))
		default:
			w.ids, w.entry = append(w.ids, id), append(w.entry, n)
		}
	}
}

// trusted reports whether a block of the parent can be relied on where it is:
// one that was found damaged, or whose segment is gone or condemned, is looked
// up and if need be stored again.
func (w *worker) trusted(id image.ID, at image.Location) bool {
	return w.usable[at.Segment] && !w.damaged[id]
}

// place finds the collected blocks in the repository or stores them.
func (w *worker) place(ctx context.Context, c chunk, buf []byte) error {
	w.at = slices.Grow(w.at[:0], len(w.ids))[:len(w.ids)]
	clear(w.at)
	if err := w.env.Catalog.Lookup(ctx, w.ids, w.at); err != nil {
		return err
	}
	for i, id := range w.ids {
		n := w.entry[i]
		p := w.block(buf, n-c.first)
		if !w.at[i].IsZero() {
			c.leaf.page.Hints[n] = w.at[i]
			w.counts.known.Add(int64(len(p)))
			continue
		}
		if w.data == nil { // dry run
			w.counts.fresh.Add(int64(len(p)))
			continue
		}
		s, mine := w.data.claim(id)
		c.leaf.copies[n] = s
		if !mine {
			w.counts.known.Add(int64(len(p)))
			continue
		}
		if len(w.fresh) == 0 {
			w.arena = slices.Grow(w.arena, len(buf)) // payloads are not longer than blocks
		}
		if err := w.encode(id, s, p); err != nil {
			return err
		}
		w.counts.fresh.Add(int64(len(p)))
	}
	return w.keep()
}

// encode puts a block with those that keep stores.
func (w *worker) encode(id image.ID, s *stored, p []byte) error {
	payload, flags, err := w.codec.Encode(p)
	if err != nil {
		return err
	}
	from := len(w.arena)
	w.arena = append(w.arena, payload...)
	w.fresh = append(w.fresh, encoded{stored: s, record: segment.Record{ID: id, Plain: uint32(len(p)), Flags: flags}, payload: w.arena[from:]})
	return nil
}

// keep stores the chunk's new blocks.
func (w *worker) keep() error {
	if len(w.fresh) == 0 {
		return nil
	}
	err := w.data.add(w.fresh...)
	clear(w.fresh)
	w.fresh, w.arena = w.fresh[:0], w.arena[:0]
	return err
}

// mapper makes the block map out of finished steps.
type mapper struct {
	env     *Env
	pages   *segmentWriter // nil in a dry run
	hasher  *image.Hasher
	codec   *segment.Codec
	plain   []byte
	ctx     context.Context
	leaf    *leaf // being stored
	usable  map[image.SegmentID]bool
	damaged map[image.ID]bool
	marks   *checkpoints
}

// build takes steps in order and returns the root.
func (m *mapper) build(blocks int64, steps <-chan step) (root image.ID, at image.Location, err error) {
	tree := image.NewTree(blocks, m.emit)
	for s := range steps {
		if s.leaf == nil {
			err = tree.Subtree(s.level, s.id, s.at)
		} else if err = m.finish(s.leaf); err == nil {
			m.leaf = s.leaf
			err = tree.Leaf(&s.leaf.page)
			m.leaf = nil
		}
		if err != nil {
			return root, at, err
		}
		m.marks.offer(tree)
	}
	if err := m.ctx.Err(); err != nil {
		return root, at, context.Cause(m.ctx)
	}
	return tree.Finish()
}

// finish waits until every block of a leaf has its place.
func (m *mapper) finish(l *leaf) error {
	wait := func(done <-chan struct{}) error {
		select {
		case <-done:
			return nil
		case <-m.ctx.Done():
			return context.Cause(m.ctx)
		}
	}
	if err := wait(l.ready); err != nil {
		return err
	}
	for i, s := range l.copies {
		if s == nil {
			continue
		}
		if err := wait(s.done); err != nil {
			return err
		}
		l.page.Hints[i] = s.at
	}
	return nil
}

// emit finds a page in the repository or stores it.
func (m *mapper) emit(level int, p *image.Page) (image.ID, image.Location, error) {
	m.plain = p.Encode(m.plain[:0])
	id := m.hasher.Page(m.plain[:image.PageSize])
	if l := m.leaf; l != nil && l.before != nil && l.same == id && !m.damaged[id] && m.usable[l.sameAt.Segment] {
		return id, l.sameAt, nil
	}
	var at [1]image.Location
	if err := m.env.Catalog.Lookup(m.ctx, []image.ID{id}, at[:]); err != nil {
		return id, at[0], err
	}
	if !at[0].IsZero() || m.pages == nil {
		return id, at[0], nil
	}
	s, mine := m.pages.claim(id)
	if !mine {
		return id, s.at, nil // one goroutine makes pages: it is there already
	}
	payload, flags, err := m.codec.Encode(m.plain)
	if err != nil {
		return id, s.at, fmt.Errorf("map page: %w", err)
	}
	keep := *p
	err = m.pages.add(encoded{s, segment.Record{ID: id, Plain: uint32(len(m.plain)), Flags: flags}, payload, &keep})
	return id, s.at, err
}
