package job

import (
	"context"
	"errors"
	"fmt"

	"platter/image"
	"platter/image/store"
)

// A proof is the last look before a segment is deleted. What is needed of it,
// marks have found elsewhere, as the catalog says. The catalog is a cache, and
// its word is not enough to delete by: wherever else it knows a record of the
// segment to be, in what is not condemned, the footer must say so too.
type proof struct {
	c         *collector
	condemned map[image.SegmentID]bool
}

func (c *collector) newProof() *proof {
	return &proof{c: c, condemned: c.state.IDs()}
}

// needless returns what speaks against deleting a segment, or nothing.
func (p *proof) needless(ctx context.Context, id image.SegmentID) (problem string, err error) {
	m := p.c.marks
	f, err := m.reader.Footer(ctx, id)
	if errors.Is(err, image.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
		return "", nil // nothing in it was ever relied on
	}
	if err != nil {
		return "", fmt.Errorf("collect: %w", err)
	}
	for n := range f.Records {
		rec := &f.Records[n].ID
		places, err := p.c.env.Catalog.Locate(ctx, *rec)
		if err != nil {
			return "", err
		}
		claimed, proven := image.Location{}, false
		for _, at := range places {
			if at.Segment == id || p.condemned[at.Segment] || !m.good(at) || m.segments[at.Segment] == nil {
				continue
			}
			claimed = at
			other, err := m.footer(ctx, at.Segment)
			if err != nil {
				return "", err
			}
			if proven = other != nil && int64(at.Record) < int64(len(other.Records)) && other.Records[at.Record].ID == *rec; proven {
				break
			}
		}
		if !claimed.IsZero() && !proven {
			return fmt.Sprintf("segment %s stays: record %d should be in segment %s too and is not: run platter verify, then platter catalog rebuild",
				id, n, claimed.Segment), nil
		}
	}
	return "", nil
}
