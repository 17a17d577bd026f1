package reader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// A forwarder knows where records went that a collector moved, so that hints
// of old pages go on leading somewhere. It is empty until the first hint that
// leads nowhere.
type forwarder struct {
	limit int64         // bytes
	turn  chan struct{} // of the one who loads: others wait no longer than their contexts
	done  bool

	mu    sync.RWMutex
	moves []*repo.Moves
	gone  map[image.SegmentID]struct{} // segments that were not there
}

// maxGone bounds the segments remembered as gone.
const maxGone = 1 << 16

// maxHops bounds how often a record is followed: each time it was moved by
// another collection.
const maxHops = 64

// resolve returns where a hint leads by now.
func (f *forwarder) resolve(at image.Location) image.Location {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if len(f.moves) == 0 {
		return at
	}
next:
	for range maxHops {
		for _, m := range f.moves {
			if to, ok := m.Find(at); ok {
				at = to
				continue next
			}
		}
		break
	}
	return at
}

// isGone reports whether a segment was found missing before: its name is never
// used again.
func (f *forwarder) isGone(id image.SegmentID) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	_, gone := f.gone[id]
	return gone
}

func (f *forwarder) missing(id image.SegmentID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone == nil {
		f.gone = map[image.SegmentID]struct{}{}
	}
	if len(f.gone) < maxGone {
		f.gone[id] = struct{}{}
	}
}

// found takes back that a segment is missing: it was listed and read.
func (f *forwarder) found(id image.SegmentID) {
	if f.isGone(id) {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.gone, id)
	}
}

// load reads the moves, once, as far as memory goes. Those that cannot be read
// only leave more to look for.
func (f *forwarder) load(ctx context.Context, r *repo.Repo) error {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if f.done {
		return nil
	}
	var names []string
	left := f.limit
	err := r.MovesNames(ctx, func(name string, size int64) error {
		if size <= left {
			names = append(names, name)
			left -= size
		}
		return nil
	})
	var moves []*repo.Moves
	for _, name := range names {
		m, readErr := r.Moves(ctx, name)
		if readErr == nil {
			moves = append(moves, m)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.done = err == nil
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moves = moves
	return nil
}

// forward tries where records were moved to.
func (b *batch) forward(ctx context.Context, troubles map[int32]*trouble) error {
	f := &b.reader.forward
	if err := f.load(ctx, b.reader.repo); err != nil {
		return err
	}
	for _, t := range troubles {
		for _, at := range slices.Clone(t.tried) {
			if to := f.resolve(at); to != at {
				t.suggest(to)
			}
		}
	}
	return nil
}

// A scanner looks through the footers of all segments.
type scanner struct {
	*batch
	seen []segment.Object // in order of ID: what was looked through
	more bool             // there was something that had not been
}

// all looks through all footers for what is missing, or in what an earlier scan
// has left in memory.
func (s *scanner) all(ctx context.Context, troubles map[int32]*trouble) error {
	if known, err := s.fromTable(ctx, s.wanted(troubles)); known || err != nil {
		return err
	}
	list, err := s.listing(ctx)
	if err != nil {
		return fmt.Errorf("look for %d blocks in all segments: %w", len(troubles), err)
	}
	return s.scan(ctx, list, troubles)
}

// scan looks through the footers of a listing, and leaves a table of them.
func (s *scanner) scan(ctx context.Context, list []segment.Object, troubles map[int32]*trouble) error {
	table := newTable(s.reader.tableLimit, list)
	if err := s.footers(ctx, list, troubles, table.add); err != nil {
		return err
	}
	table.finish()
	s.reader.table.Store(table)
	s.seen = list
	return nil
}

// fresh looks through the footers of segments that came while others were
// looked through: what is missing may have moved there.
func (s *scanner) fresh(ctx context.Context, troubles map[int32]*trouble) error {
	list, err := s.listing(ctx)
	if err != nil {
		return fmt.Errorf("look for %d blocks in new segments: %w", len(troubles), err)
	}
	if s.seen == nil { // the table told all
		if digest(list) == s.reader.table.Load().listing {
			return nil
		}
		s.more = true
		return s.scan(ctx, list, troubles)
	}
	unseen := slices.DeleteFunc(slices.Clone(list), func(o segment.Object) bool {
		_, seen := slices.BinarySearchFunc(s.seen, o, func(a, b segment.Object) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		return seen
	})
	s.seen, s.more = list, len(unseen) > 0
	return s.footers(ctx, unseen, troubles, func(*segment.Footer) {})
}

// wanted returns troubles by the ID that they are about.
func (b *batch) wanted(troubles map[int32]*trouble) map[image.ID][]*trouble {
	want := make(map[image.ID][]*trouble, len(troubles))
	for ref, t := range troubles {
		id := b.refs[ref].ID
		want[id] = append(want[id], t)
	}
	return want
}

// footers suggests the places of what is missing in some segments, and shows
// all their footers to add.
func (b *batch) footers(ctx context.Context, list []segment.Object, troubles map[int32]*trouble, add func(*segment.Footer)) error {
	want := b.wanted(troubles)
	return b.reader.repo.Footers(ctx, list, func(o segment.Object, f *segment.Footer, err error) error {
		if err != nil {
			// A damaged one is no place to find anything, and may be where it was.
			text := fmt.Sprintf("%s: %v", segment.Name(o.ID), err)
			b.reader.unread.CompareAndSwap(nil, &text)
			return nil
		}
		b.reader.forward.found(o.ID)
		add(f)
		if f.Kind != b.kind {
			return nil
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		for n := range f.Records {
			for _, t := range want[f.Records[n].ID] {
				t.suggestOf(f.Writer, image.Location{Segment: o.ID, Record: uint32(n)})
			}
		}
		return nil
	})
}

// fromTable looks in what the last scan left in memory. It knows all if that
// was everything, and nothing it leads to is gone by now.
func (b *batch) fromTable(ctx context.Context, want map[image.ID][]*trouble) (known bool, err error) {
	table := b.reader.table.Load()
	if table == nil || table.full {
		return false, nil
	}
	missing := false
	for id, ts := range want {
		found := false
		for _, at := range table.find(id) {
			f, err := b.reader.Footer(ctx, at.Segment)
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			if errors.Is(err, store.ErrNotFound) {
				return false, nil // a collector was here: look again
			}
			if err != nil || f.Kind != b.kind || int(at.Record) >= len(f.Records) || f.Records[at.Record].ID != id {
				continue
			}
			found = true
			for _, t := range ts {
				t.suggestOf(f.Writer, at)
			}
		}
		missing = missing || !found
	}
	if !missing {
		return true, nil
	}
	// What the scan did not see may have come since.
	list, err := b.listing(ctx)
	return err == nil && digest(list) == table.listing, err
}

func (b *batch) listing(ctx context.Context) (list []segment.Object, err error) {
	err = b.reader.repo.Segments(ctx, func(id image.SegmentID, size int64, _ time.Time) error {
		list = append(list, segment.Object{ID: id, Size: size})
		return nil
	})
	return list, err
}

// digest tells two listings apart.
func digest(list []segment.Object) uint64 {
	d := xxhash.New()
	for _, o := range list {
		_, _ = d.Write(o.ID[:])
	}
	return d.Sum64()
}

// A table is what a scan of all footers saw: where each record is, by a hash of
// its ID. One that takes more than its limit is given up.
type table struct {
	limit    int64  // bytes
	listing  uint64 // digest of the segments that were there
	mu       sync.Mutex
	segments []image.SegmentID
	entries  []tableEntry
	full     bool
}

type tableEntry struct {
	hash            uint64
	segment, record uint32
}

const tableEntrySize = 16

func newTable(limit int64, list []segment.Object) *table {
	return &table{limit: limit, listing: digest(list)}
}

func (t *table) add(f *segment.Footer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.full {
		return
	}
	if int64(len(t.entries)+len(f.Records))*tableEntrySize > t.limit {
		t.full, t.entries, t.segments = true, nil, nil
		return
	}
	place := uint32(len(t.segments))
	t.segments = append(t.segments, f.ID)
	for n := range f.Records {
		t.entries = append(t.entries, tableEntry{xxhash.Sum64(f.Records[n].ID[:]), place, uint32(n)})
	}
}

func (t *table) finish() {
	slices.SortFunc(t.entries, func(a, b tableEntry) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return 0
	})
}

// find returns where the ID may be, a few places at most.
func (t *table) find(id image.ID) (list []image.Location) {
	hash := xxhash.Sum64(id[:])
	i, _ := slices.BinarySearchFunc(t.entries, hash, func(e tableEntry, hash uint64) int {
		switch {
		case e.hash < hash:
			return -1
		case e.hash > hash:
			return 1
		}
		return 0
	})
	for ; i < len(t.entries) && t.entries[i].hash == hash && len(list) < 4*maxCopies; i++ {
		list = append(list, image.Location{Segment: t.segments[t.entries[i].segment], Record: t.entries[i].record})
	}
	return list
}
