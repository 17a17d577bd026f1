package catalog

import "context"

// Stats sums up a catalog.
type Stats struct {
	Segments  int   `json:"segments"`
	Blocks    int64 `json:"blocks"`    // records of data segments
	Pages     int64 `json:"pages"`     // records of page segments
	Size      int64 `json:"size"`      // bytes of all segments
	Plain     int64 `json:"plain"`     // bytes decoded, of all records
	Stored    int64 `json:"stored"`    // bytes encoded, of all records
	Manifests int   `json:"manifests"` // images known
	Damaged   int   `json:"damaged"`   // records
	Disk      int64 `json:"disk"`      // bytes that the catalog itself takes
}

// Stats goes through the segments and manifests known and sums them up.
func (c *Catalog) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	err := c.Segments(ctx, func(i SegmentInfo) error {
		s.Segments++
		s.Size += i.Size
		s.Plain += i.Plain
		s.Stored += i.Stored
		return nil
	})
	if err != nil {
		return s, err
	}
	if err := c.write.take(ctx); err != nil {
		return s, err
	}
	s.Blocks, s.Pages = c.totals.records, c.totals.pages
	c.write.leave()
	err = c.scan(ctx, "sum up", bounds(tagManifest), func(_, _ []byte) error {
		s.Manifests++
		return nil
	})
	if err != nil {
		return s, err
	}
	err = c.scan(ctx, "sum up", bounds(tagDamage), func(_, _ []byte) error {
		s.Damaged++
		return nil
	})
	s.Disk = int64(c.db.Metrics().DiskSpaceUsage())
	return s, err
}
