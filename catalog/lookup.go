package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"platter/image"
)

// segmentIndex is what the lookup of blocks keeps in memory: a filter that
// answers "never seen", and chunks of records that answer for blocks written
// together. Pebble answers the rest.
type segmentIndex struct {
	filterLimit int64 // bytes
	file        filterFile

	filter  atomic.Pointer[filter] // nil until lookups are worth one
	growing atomic.Pointer[filter] // being built: takes what is added meanwhile
	asked   atomic.Int64           // keys that Pebble was asked for without a filter
	build   sync.Mutex             // held by whoever loads or builds the filter
	tried   bool                   // the file was looked at; guarded by build
	dirty   atomic.Bool            // the filter knows more than its file

	mu        sync.Mutex
	lists     lists
	drops     int // segments dropped so far
	condemned map[image.SegmentID]struct{}
	damage    damage
}

func newSegmentIndex(memory int64, file filterFile) *segmentIndex {
	return &segmentIndex{
		filterLimit: memory / 4,
		file:        file,
		lists:       newLists(memory / 8),
		damage:      damage{},
	}
}

// A pending key is one that memory did not answer for.
type pending struct {
	hash uint64
	i    int
}

// Lookup says of each block or page in ids where it is stored: at[i] is the
// zero Location when ids[i] is not known, or only known from records that may
// not be relied on: damaged ones, and those of condemned segments. The zero ID
// is never stored. at has the length of ids. It is best to ask for many at
// once; a known block may go unnoticed, an unknown one is never made up.
func (c *Catalog) Lookup(ctx context.Context, ids []image.ID, at []image.Location) error {
	if err := c.state.get(); err != nil {
		return err
	}
	rest := c.segments.recall(ids, at)
	if len(rest) == 0 {
		return ctx.Err()
	}
	rest, err := c.useFilter(ctx, rest)
	if err == nil {
		err = c.search(ctx, ids, at, rest)
	}
	return c.state.wrap("look up blocks in", err)
}

// recall answers from memory and returns what is left.
func (s *segmentIndex) recall(ids []image.ID, at []image.Location) []pending {
	f := s.filter.Load()
	rest := make([]pending, 0, len(ids))
	for i := range ids {
		at[i] = image.Location{}
		if ids[i].IsZero() {
			continue
		}
		if hash := hashID(&ids[i]); f == nil || f.has(hash) {
			rest = append(rest, pending{hash, i})
		}
	}
	return s.probe(ids, at, rest)
}

// firstGroup is how many keys Pebble is asked for before the chunks that they
// led to are tried on the others. The next group is twice as large.
const firstGroup = 4

// search asks Pebble for what is left: groups of keys in its own order, and in
// each the chunks they lead to in theirs, so that none is read twice.
func (c *Catalog) search(ctx context.Context, ids []image.ID, at []image.Location, rest []pending) error {
	if len(rest) == 0 {
		return nil
	}
	finder, err := c.newFinder()
	if err != nil {
		return err
	}
	defer finder.close()
	for n := firstGroup; len(rest) > 0; n *= 2 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n = min(n, len(rest))
		if err := finder.group(ids, at, rest[:n]); err != nil {
			return err
		}
		if rest = rest[n:]; finder.loaded {
			rest = c.segments.probe(ids, at, rest)
			finder.loaded = false
		}
	}
	return nil
}

// probe tries the chunks used last and returns what they do not answer.
func (s *segmentIndex) probe(ids []image.ID, at []image.Location, rest []pending) []pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(rest, func(p pending) (found bool) {
		at[p.i], found = s.lists.probe(&ids[p.i], p.hash)
		return found
	})
}

// maxTwins bounds how many entries under one hash a lookup goes through: only
// hostile segments have more than a few.
const maxTwins = 64

// A finder asks Pebble for one ID after the other.
type finder struct {
	c      *Catalog
	iter   *pebble.Iterator
	prefix []byte
	found  []candidate
	loaded bool // a chunk was read from disk
}

// A candidate is a record that may be what key i asks for: its ID has the
// same hash.
type candidate struct {
	i              int
	number, record uint32
}

func (c *Catalog) newFinder() (*finder, error) {
	o := bounds(tagBlock)
	// Pebble's filters of the largest level are worth reading only if they stay
	// in its cache, and while there is no filter of ours to spare it the
	// question.
	o.UseL6Filters = c.segments.filter.Load() == nil && c.keys.Load()*bloomBits/8 < c.opts.Memory/4
	iter, err := c.db.NewIter(o)
	return &finder{c: c, iter: iter}, err
}

func (f *finder) close() { f.iter.Close() }

// group answers for some keys.
func (f *finder) group(ids []image.ID, at []image.Location, keys []pending) error {
	slices.SortFunc(keys, func(a, b pending) int { return cmp.Compare(a.hash, b.hash) })
	f.found = f.found[:0]
	for _, p := range keys {
		if err := f.seek(p.i, p.hash, maxTwins); err != nil {
			return err
		}
	}
	slices.SortFunc(f.found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.record, b.record))
	})
	for _, found := range f.found {
		if !at[found.i].IsZero() {
			continue
		}
		err := f.visit(found, &ids[found.i], func(r *records, place int) {
			if r.usable(place) {
				at[found.i] = r.at(place)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// seek appends the candidates for key i to f.found, up to limit.
func (f *finder) seek(i int, hash uint64, limit int) error {
	f.prefix = appendBlockPrefix(f.prefix[:0], hash)
	for ok := f.iter.SeekPrefixGE(f.prefix); ok && limit > 0; ok = f.iter.Next() {
		_, number, record, err := parseBlockKey(f.iter.Key())
		if err != nil {
			return err
		}
		f.found = append(f.found, candidate{i, number, record})
		limit--
	}
	return f.iter.Error()
}

// visit calls use if the candidate is the record of id: all of the ID counts.
// The records are locked while it runs.
func (f *finder) visit(found candidate, id *image.ID, use func(r *records, place int)) (err error) {
	s := f.c.segments
	key := chunkKey{found.number, found.record / chunkRecords}
	s.mu.Lock()
	r := s.lists.get(key)
	s.mu.Unlock()
	if r == nil {
		if r, err = f.c.loadList(key); r == nil {
			return err
		}
		f.loaded = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if place := int(found.record % chunkRecords); place < len(r.ids) && r.ids[place] == *id {
		use(r, place)
	}
	return nil
}

// loadList reads a chunk into memory; nil when the segment is gone.
func (c *Catalog) loadList(key chunkKey) (*records, error) {
	s := c.segments
	s.mu.Lock()
	drops := s.drops
	s.mu.Unlock()
	k := numberKey(tagRecords, key.number, key.chunk)
	value, closer, err := c.db.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	r, err := parseList(k, value)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, r.condemned = s.condemned[r.segment]
	s.damage.apply(r)
	if s.drops == drops { // else it may be gone by now, and must not be kept
		s.lists.put(r)
	}
	return r, nil
}

// Locate returns every known place of a block or page: those to be relied on
// first, then those in condemned segments, damaged ones last. It returns none
// when the block is unknown.
func (c *Catalog) Locate(ctx context.Context, id image.ID) ([]image.Location, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found, err := c.places(id)
	if err != nil {
		return nil, c.state.wrap("locate block "+id.String()+" in", err)
	}
	at := make([]image.Location, len(found))
	for i := range found {
		at[i] = found[i].Location
	}
	return at, nil
}

// A place is a Location and how good it is.
type place struct {
	image.Location
	number uint32
	rank   int // 0 usable, 1 condemned, 2 damaged
}

func (c *Catalog) places(id image.ID) ([]place, error) {
	if err := c.state.get(); err != nil {
		return nil, err
	}
	finder, err := c.newFinder()
	if err != nil {
		return nil, err
	}
	defer finder.close()
	var found []place
	if err := finder.seek(0, hashID(&id), math.MaxInt); err != nil {
		return nil, err
	}
	for _, candidate := range finder.found {
		err := finder.visit(candidate, &id, func(r *records, i int) { found = append(found, placeOf(r, i)) })
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(found, func(a, b place) int { return cmp.Compare(a.rank, b.rank) })
	return found, nil
}

func placeOf(r *records, i int) place {
	p := place{Location: r.at(i), number: r.number}
	switch _, damaged := r.damaged[p.Record]; {
	case damaged:
		p.rank = 2
	case r.condemned:
		p.rank = 1
	}
	return p
}

// Page returns the content of a map page, and the best place it is stored at.
// It returns ErrNotFound when the page is unknown. The content is right even
// if the place is damaged or condemned by now.
func (c *Catalog) Page(ctx context.Context, id image.ID) (*image.Page, image.Location, error) {
	if err := ctx.Err(); err != nil {
		return nil, image.Location{}, err
	}
	what := "read page " + id.String() + " in"
	found, err := c.places(id)
	if err != nil {
		return nil, image.Location{}, c.state.wrap(what, err)
	}
	for _, p := range found {
		page, err := c.page(p.number, p.Record)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, image.Location{}, c.state.wrap(what, err)
		}
		if err == nil {
			return page, p.Location, nil
		}
	}
	return nil, image.Location{}, fmt.Errorf("page %s: %w", id, ErrNotFound)
}

func (c *Catalog) page(number, record uint32) (*image.Page, error) {
	value, closer, err := c.db.Get(numberKey(tagPage, number, record))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	p, err := image.DecodePage(value)
	if err != nil {
		return nil, corrupt("page %d of segment %d: %v", record, number, err)
	}
	return p, nil
}
