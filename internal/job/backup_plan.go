package job

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"platter/block"
	"platter/cbt"
	"platter/image"
)

// A leaf is one page of the new map while its blocks are being read.
type leaf struct {
	first  int64 // block number of its first entry
	page   image.Page
	before *image.Page // the parent's page at this place, or nil
	same   image.ID    // ID of before
	sameAt image.Location
	copies [image.PageEntries]*stored // of blocks that this run stores or stored
	left   atomic.Int32               // blocks yet to be read
	ready  chan struct{}              // closed when left is 0
}

// A step is what the map is made of, from left to right: a leaf, or a whole
// subtree that is the parent's or zero.
type step struct {
	leaf  *leaf
	level int
	id    image.ID
	at    image.Location
}

// A chunk is a run of blocks to read and look at in one go.
type chunk struct {
	leaf   *leaf
	first  int // entry in the leaf
	blocks int
}

// A planner walks the device from left to right and tells what is to be read.
type planner struct {
	src       block.Source
	size      int64
	blockSize int64
	changed   *cbt.Set
	free      *cbt.Set   // of whole blocks that hold nothing; nil for none
	parent    *parentMap // nil for none
	perChunk  int        // blocks
	steps     chan<- step
	chunks    chan<- chunk
	counts    *counters
	// What an earlier run did of this very map, and the bytes that it spans.
	spine []image.Subtree
	from  int64

	// The first ranges that end after where the walk is: of what may hold data,
	// of what may have changed, of what is free. They begin at size when there
	// is none.
	data, dirty, vacant block.Extent
}

// walk sends every step and chunk in order.
func (p *planner) walk(ctx context.Context) error {
	blocks := (p.size + p.blockSize - 1) / p.blockSize
	if blocks == 0 {
		return nil
	}
	for _, s := range p.spine {
		length := image.PageBlocks(s.Level) * p.blockSize
		p.counts.known.Add(length)
		p.counts.done.Add(length)
		if err := p.send(ctx, step{level: s.Level, id: s.ID, at: s.At}); err != nil {
			return err
		}
	}
	return p.subtree(ctx, image.Levels(blocks)-1, 0)
}

// subtree deals with the index-th page of a level: as a whole where nothing in
// it has changed or it is a hole, else by the pages below it.
func (p *planner) subtree(ctx context.Context, level int, index int64) error {
	span := image.PageBlocks(level) * p.blockSize
	e := block.Extent{Offset: index * span}
	e.Length = min(span, p.size-e.Offset)
	if e.End() <= p.from {
		return nil // of the spine
	}
	if e.Offset < p.from {
		return p.below(ctx, level, index)
	}
	if err := p.seek(e.Offset); err != nil {
		return err
	}
	if !p.touched(e) {
		if id, at, ok := p.parent.node(ctx, level, index); ok {
			p.counts.unchanged.Add(e.Length)
			p.counts.done.Add(e.Length)
			return p.send(ctx, step{level: level, id: id, at: at})
		}
	} else if before, _, _ := p.parent.node(ctx, level, index); p.empty(e) && p.whole(e) && before.IsZero() {
		p.leaveOut(e)
		return p.send(ctx, step{level: level})
	}
	if level == 0 {
		return p.leaf(ctx, index)
	}
	return p.below(ctx, level, index)
}

// below deals with the pages below one.
func (p *planner) below(ctx context.Context, level int, index int64) error {
	below := image.PageBlocks(level-1) * p.blockSize
	for i := range int64(image.PageEntries) {
		n := index*image.PageEntries + i
		if n*below >= p.size {
			break
		}
		if err := p.subtree(ctx, level-1, n); err != nil {
			return err
		}
	}
	return nil
}

// hole reports whether e holds no data. The walk has reached e.
func (p *planner) hole(e block.Extent) bool { return p.data.Offset >= e.End() }

// empty reports whether e holds nothing: it is a hole, or free. The walk has
// reached e.
func (p *planner) empty(e block.Extent) bool {
	return p.hole(e) || p.vacant.Offset <= e.Offset && p.vacant.End() >= e.End()
}

// leaveOut counts what is not read because it is empty.
func (p *planner) leaveOut(e block.Extent) {
	if p.hole(e) {
		p.counts.zero.Add(e.Length)
	} else {
		p.counts.free.Add(e.Length)
	}
	p.counts.done.Add(e.Length)
}

// touched reports whether anything in e may have changed. The walk has reached
// e.
func (p *planner) touched(e block.Extent) bool { return p.dirty.Offset < e.End() }

// whole reports whether all of e may have changed.
func (p *planner) whole(e block.Extent) bool {
	return p.dirty.Offset <= e.Offset && p.dirty.End() >= e.End()
}

// seek moves data, dirty and vacant to the first ranges that end after off.
func (p *planner) seek(off int64) error {
	next := func(e *block.Extent, set *cbt.Set) {
		if set == nil || e.End() > off || e.Offset >= p.size {
			return
		}
		var ok bool
		if *e, ok = set.Next(off); !ok {
			*e = block.Extent{Offset: p.size}
		}
	}
	next(&p.dirty, p.changed)
	next(&p.vacant, p.free)
	if p.data.End() > off || p.data.Offset >= p.size {
		return nil
	}
	d, err := p.src.Data(off)
	if errors.Is(err, io.EOF) {
		d = block.Extent{Offset: p.size}
	} else if err != nil {
		return err
	}
	p.data = d
	return nil
}

// leaf deals with one page of blocks: each is the parent's, a hole, or read.
func (p *planner) leaf(ctx context.Context, index int64) error {
	l := &leaf{first: index * image.PageEntries, ready: make(chan struct{})}
	l.before, l.same, l.sameAt = p.parent.leaf(ctx, index)
	var read [image.PageEntries]bool
	var wanted int32
	for i := range image.PageEntries {
		e := block.Extent{Offset: (l.first + int64(i)) * p.blockSize}
		if e.Offset >= p.size {
			break
		}
		e.Length = min(p.blockSize, p.size-e.Offset)
		if err := p.seek(e.Offset); err != nil {
			return err
		}
		switch {
		case l.before != nil && !p.touched(e):
			l.page.Entries[i], l.page.Hints[i] = l.before.Entries[i], l.before.Hints[i]
			p.counts.unchanged.Add(e.Length)
			p.counts.done.Add(e.Length)
		case p.empty(e):
			if l.before != nil && !l.before.Entries[i].IsZero() {
				p.counts.changes.add(e)
			}
			p.leaveOut(e)
		default:
			read[i] = true
			wanted++
		}
	}
	l.left.Store(wanted)
	if wanted == 0 {
		close(l.ready)
	}
	if err := p.send(ctx, step{leaf: l}); err != nil {
		return err
	}
	for i := 0; i < image.PageEntries; {
		n := 0
		for i+n < image.PageEntries && n < p.perChunk && read[i+n] {
			n++
		}
		if n == 0 {
			i++
			continue
		}
		select {
		case p.chunks <- chunk{l, i, n}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		i += n
	}
	return nil
}

func (p *planner) send(ctx context.Context, s step) error {
	select {
	case p.steps <- s:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A parentMap reads the map of the image that a backup compares with. A page
// that cannot be read makes its blocks unknown: they are looked up like new
// ones. A nil parentMap knows nothing.
type parentMap struct {
	read   func(ctx context.Context, id image.ID, hint image.Location) (*image.Page, error)
	root   image.ID
	rootAt image.Location
	blocks int64
	path   []cachedPage // by level, the last page read
}

type cachedPage struct {
	index int64
	page  *image.Page
	id    image.ID
}

// node returns the index-th page of a level; ok is false where the parent has
// none there.
func (m *parentMap) node(ctx context.Context, level int, index int64) (id image.ID, at image.Location, ok bool) {
	if m == nil || level >= image.Levels(m.blocks) || index*image.PageBlocks(level) >= m.blocks {
		return id, at, false
	}
	if level == image.Levels(m.blocks)-1 {
		return m.root, m.rootAt, true
	}
	up, _, _ := m.page(ctx, level+1, index/image.PageEntries)
	if up == nil {
		return id, at, false
	}
	return up.Entries[index%image.PageEntries], up.Hints[index%image.PageEntries], true
}

// leaf returns the index-th page of blocks, or nil.
func (m *parentMap) leaf(ctx context.Context, index int64) (*image.Page, image.ID, image.Location) {
	if m == nil || index*image.PageEntries >= m.blocks {
		return nil, image.ID{}, image.Location{}
	}
	return m.page(ctx, 0, index)
}

func (m *parentMap) page(ctx context.Context, level int, index int64) (*image.Page, image.ID, image.Location) {
	id, at, ok := m.node(ctx, level, index)
	if !ok {
		return nil, image.ID{}, image.Location{}
	}
	if m.path == nil {
		m.path = make([]cachedPage, image.MaxLevels)
	}
	c := &m.path[level]
	if c.page != nil && c.index == index && c.id == id {
		return c.page, id, at
	}
	p := new(image.Page)
	if !id.IsZero() {
		var err error
		if p, err = m.read(ctx, id, at); err != nil {
			p = nil
		}
	}
	*c = cachedPage{index, p, id}
	return p, id, at
}
