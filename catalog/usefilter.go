package catalog

import (
	"context"
	"slices"
)

// A filter is read from its file once Pebble was asked for a few thousandths
// of what the index holds, and built by a scan once for a sixty-fourth: by
// then the questions have cost about what the scan does. A small run never
// pays for one.
const (
	loadShare  = 8192
	buildShare = 64
	loadFloor  = 128
	buildFloor = 4096
)

// useFilter counts the keys that Pebble is to be asked for, and makes a filter
// when they are many. It returns the keys that are left to ask for.
func (c *Catalog) useFilter(ctx context.Context, rest []pending) ([]pending, error) {
	s := c.segments
	if s.filter.Load() != nil {
		return rest, nil
	}
	keys := c.keys.Load()
	asked := s.asked.Add(int64(len(rest)))
	if asked < keys/loadShare+loadFloor || !s.build.TryLock() {
		return rest, nil
	}
	defer s.build.Unlock()
	if !s.tried {
		c.loadFilter(ctx)
	}
	if s.filter.Load() == nil && asked >= keys/buildShare+buildFloor {
		if err := c.buildFilter(ctx); err != nil {
			return rest, err
		}
	}
	f := s.filter.Load()
	if f == nil {
		return rest, nil
	}
	return slices.DeleteFunc(rest, func(p pending) bool { return !f.has(p.hash) }), nil
}

// loadFilter takes the last run's filter if no segment was added since. Any
// trouble with it only means that there is none.
func (c *Catalog) loadFilter(ctx context.Context) {
	if c.write.take(ctx) != nil {
		return
	}
	defer c.write.leave() // nothing is added between the check and the use
	s := c.segments
	s.tried = true
	f, err := s.file.load(c.totals.next, s.filterLimit)
	if err == nil && f.fits(c.keys.Load(), s.filterLimit) {
		s.filter.Store(f)
	}
}

// buildFilter scans the index. It costs about a second for 6 million blocks.
func (c *Catalog) buildFilter(ctx context.Context) error {
	s := c.segments
	keys := c.keys.Load()
	// A young repository grows fast: leave room, or each doubling scans again.
	f := newFilter(max(keys+keys/4, 1<<18), s.filterLimit)
	if f == nil {
		s.asked.Store(-1 << 62) // memory is too small: ask no more
		return nil
	}
	// Segments added from now on go into it by themselves; those before are
	// seen by the scan.
	if err := c.write.take(ctx); err != nil { // not in the middle of a segment
		return err
	}
	s.growing.Store(f)
	c.write.leave()
	defer s.growing.Store(nil)
	err := c.scan(ctx, "scan", bounds(tagBlock), func(key, _ []byte) error {
		hash, _, _, err := parseBlockKey(key)
		f.add(hash)
		return err
	})
	if err != nil {
		return err
	}
	s.filter.Store(f)
	s.dirty.Store(true)
	return nil
}

// added tells the filter of a new segment, after Pebble knows it: in between,
// its blocks may be taken for new, which stores them twice and harms nothing.
func (s *segmentIndex) added(entries []entry, keys int64) {
	if f := s.growing.Load(); f != nil {
		for _, e := range entries {
			f.add(e.hash)
		}
	}
	f := s.filter.Load()
	if f == nil {
		return
	}
	if !f.fits(keys, s.filterLimit) {
		s.filter.Store(nil)
		s.asked.Store(0)
		return
	}
	for _, e := range entries {
		f.add(e.hash)
	}
	s.dirty.Store(true)
}

// saveFilter keeps the filter for the next run, which has it at once.
func (s *segmentIndex) saveFilter(next uint32) error {
	f := s.filter.Load()
	if f == nil || !s.dirty.Load() {
		return nil
	}
	return s.file.save(f, next)
}
