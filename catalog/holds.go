package catalog

import (
	"context"

	"platter/image"
)

// Order returns the segment's place among all that the catalog ever learned
// of: nearly that in which they were written.
func (s *SegmentInfo) Order() uint32 { return s.number }

// Holds reports whether a record of a segment, as Segments described it, has
// this ID. All of the ID counts. It is false for a segment that was dropped
// since.
//
// Records that lie together are best asked for together.
func (c *Catalog) Holds(s *SegmentInfo, record uint32, id *image.ID) (bool, error) {
	if int64(record) >= int64(s.Records) {
		return false, nil
	}
	key := chunkKey{s.number, record / chunkRecords}
	x := c.segments
	x.mu.Lock()
	r := x.lists.get(key)
	x.mu.Unlock()
	if r == nil {
		var err error
		if err = c.state.get(); err == nil {
			r, err = c.loadList(key)
		}
		if err != nil || r == nil {
			return false, c.state.wrap("look up a record in", err)
		}
	}
	place := int(record % chunkRecords)
	return place < len(r.ids) && r.segment == s.ID && r.ids[place] == *id, nil
}

// PageAt returns the content of a record of a page segment, as Segments
// described it, or ErrNotFound. The caller checks the content against its ID.
func (c *Catalog) PageAt(ctx context.Context, s *SegmentInfo, record uint32) (*image.Page, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := c.page(s.number, record)
	if err == ErrNotFound {
		return nil, err
	}
	return p, c.state.wrap("read a page of", err)
}
