package catalog

import (
	"context"
	"slices"

	"platter/image"
)

// maxDamage is how many damaged records are kept in memory one by one. Beyond
// that a whole segment counts as damaged with its first one: its blocks are
// stored once more than they need be.
const maxDamage = 1 << 16

// damage holds the damaged records of segments in memory.
type damage struct {
	segments map[image.SegmentID]map[uint32]struct{}
	all      map[image.SegmentID]struct{}
	count    int
}

func (d *damage) add(at image.Location) {
	if d.segments == nil {
		d.segments = map[image.SegmentID]map[uint32]struct{}{}
		d.all = map[image.SegmentID]struct{}{}
	}
	if d.count >= maxDamage {
		d.all[at.Segment] = struct{}{}
		return
	}
	if d.segments[at.Segment] == nil {
		d.segments[at.Segment] = map[uint32]struct{}{}
	}
	if _, ok := d.segments[at.Segment][at.Record]; !ok {
		d.segments[at.Segment][at.Record] = struct{}{}
		d.count++
	}
}

func (d *damage) drop(id image.SegmentID) {
	d.count -= len(d.segments[id])
	delete(d.segments, id)
	delete(d.all, id)
}

// apply tells r which of its records are damaged.
func (d *damage) apply(r *records) {
	r.damaged = d.segments[r.segment]
	if _, all := d.all[r.segment]; all {
		r.damaged = map[uint32]struct{}{}
		for i := range r.ids {
			r.damaged[r.record(i)] = struct{}{}
		}
	}
}

// refresh brings the chunks in memory up to date.
func (s *segmentIndex) refresh() {
	s.lists.each(func(r *records) {
		_, r.condemned = s.condemned[r.segment]
		s.damage.apply(r)
	})
}

// dropped forgets a segment.
func (s *segmentIndex) dropped(id image.SegmentID, number uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	s.lists.drop(number)
	s.damage.drop(id)
}

// SetCondemned says which segments wait to be deleted. Lookup takes their
// blocks as absent. It replaces the list given before; it is kept in memory
// only.
func (c *Catalog) SetCondemned(ids []image.SegmentID) {
	condemned := make(map[image.SegmentID]struct{}, len(ids))
	for _, id := range ids {
		condemned[id] = struct{}{}
	}
	s := c.segments
	s.mu.Lock()
	defer s.mu.Unlock()
	s.condemned = condemned
	s.refresh()
}

// MarkDamaged says that a record's stored bytes are not what was written.
// Lookup takes it as absent from now on, also when the catalog is opened again.
func (c *Catalog) MarkDamaged(ctx context.Context, id image.ID, at image.Location) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b := c.db.NewBatch()
	b.Set(damageKey(at), id[:], nil)
	if err := c.apply("mark damage in", b, true); err != nil {
		return err
	}
	s := c.segments
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damage.add(at)
	s.refresh()
	return nil
}

// Damaged calls f for every damaged record, until f returns an error.
func (c *Catalog) Damaged(ctx context.Context, f func(image.ID, image.Location) error) error {
	return c.scan(ctx, "list damage in", bounds(tagDamage), func(key, value []byte) error {
		at, id, err := parseDamage(key, value)
		if err != nil {
			return err
		}
		return own(f(id, at))
	})
}

func (c *Catalog) loadDamage() error {
	c.segments.damage = damage{}
	return c.Damaged(context.Background(), func(_ image.ID, at image.Location) error {
		c.segments.damage.add(at)
		return nil
	})
}

// A damagedRecord is one that verification found.
type damagedRecord struct {
	at image.Location
	id image.ID
}

func compareDamage(a, b damagedRecord) int {
	if n := compareSegments(a.at.Segment, b.at.Segment); n != 0 {
		return n
	}
	return int(int64(a.at.Record) - int64(b.at.Record))
}

// damageOf returns what list lists, sorted.
func damageOf(ctx context.Context, list func(context.Context, func(image.ID, image.Location) error) error) ([]damagedRecord, error) {
	var all []damagedRecord
	err := list(ctx, func(id image.ID, at image.Location) error {
		all = append(all, damagedRecord{at, id})
		return nil
	})
	slices.SortFunc(all, compareDamage)
	return slices.CompactFunc(all, sameRecord), err
}

func sameRecord(a, b damagedRecord) bool { return a.at == b.at }

// setDamage replaces all damage known by want, which is sorted, if it differs.
func (c *Catalog) setDamage(ctx context.Context, want []damagedRecord) error {
	have, err := damageOf(ctx, c.Damaged)
	if err != nil || slices.Equal(have, want) {
		return err
	}
	b := c.db.NewBatch()
	b.DeleteRange([]byte{tagDamage}, []byte{tagDamage + 1}, nil)
	for _, r := range want {
		b.Set(damageKey(r.at), r.id[:], nil)
	}
	if err := c.apply("mark damage in", b, true); err != nil {
		return err
	}
	s := c.segments
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damage = damage{}
	for _, r := range want {
		s.damage.add(r.at)
	}
	s.refresh()
	return nil
}
