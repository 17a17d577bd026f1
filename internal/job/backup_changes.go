package job

import (
	"context"
	"slices"
	"sync/atomic"

	"platter/block"
	"platter/block/lvm2"
	"platter/image"
	"platter/internal/export/files"
)

// changes counts, for each part of a device, the bytes that differ from the
// parent. It is safe for concurrent use; a nil one counts nothing.
type changes struct {
	parts []place        // in order, never overlapping
	bytes []atomic.Int64 // one for each part, and the last for all outside
	whole string         // what the device holds, if it has no partitions
}

// A place is a partition, or of one that LVM has the part that a volume has.
type place struct {
	block.Extent
	change image.Change // without the bytes
}

func newChanges(d block.Info) *changes {
	c := &changes{whole: d.Content}
	if d.Table != nil {
		for _, p := range apart(d.Table.Partitions) {
			c.parts = append(c.parts, place{p.Extent, image.Change{Partition: p.Number, Name: p.Name, Content: p.Content}})
		}
	}
	c.bytes = make([]atomic.Int64, len(c.parts)+1)
	return c
}

// apart returns partitions in order. An extended one surrounds the logical ones,
// and tables are data of others: what overlaps is counted once.
func apart(all []block.Partition) (parts []block.Partition) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b block.Partition) int { return int(min(1, max(-1, a.Offset-b.Offset))) })
	end := int64(0)
	for _, p := range all {
		for len(parts) > 0 && p.Offset < end && p.End() <= end {
			parts = parts[:len(parts)-1]
			end = 0
			if n := len(parts); n > 0 {
				end = parts[n-1].End()
			}
		}
		if p.Offset >= end {
			parts, end = append(parts, p), p.End()
		}
	}
	return parts
}

// byVolume has what lies in logical volumes counted for them. src is read for
// where they are; if it does not tell, their partition counts as any other.
func (c *changes) byVolume(ctx context.Context, src block.Source, size int64) {
	parts := c.parts
	if len(parts) == 0 {
		parts = []place{{block.Extent{Length: size}, image.Change{Content: c.whole}}}
	}
	var all []place
	for _, p := range parts {
		next := p.Offset
		if p.change.Content == "LVM2_member" {
			pieces, err := lvm2.Pieces(&files.Section{Context: ctx, Device: src, Extent: p.Extent}, p.Length)
			if err != nil {
				pieces = nil
			}
			for _, piece := range pieces {
				piece.Offset += p.Offset
				if piece.Offset > next {
					all = append(all, place{block.Extent{Offset: next, Length: piece.Offset - next}, p.change})
				}
				in := p.change
				in.Volume = piece.Volume
				all, next = append(all, place{piece.Extent, in}), piece.End()
			}
		}
		if next < p.End() {
			all = append(all, place{block.Extent{Offset: next, Length: p.End() - next}, p.change})
		}
	}
	c.parts, c.bytes = all, make([]atomic.Int64, len(all)+1)
}

// add counts a block that differs. One that lies across a border counts for
// the part that it begins in.
func (c *changes) add(e block.Extent) {
	if c == nil {
		return
	}
	i, _ := slices.BinarySearchFunc(c.parts, e.Offset, func(p place, off int64) int {
		if p.End() <= off {
			return -1
		}
		return int(min(1, max(0, p.Offset-off)))
	})
	if i < len(c.parts) && e.Offset < c.parts[i].Offset {
		i = len(c.parts)
	}
	c.bytes[i].Add(e.Length)
}

// list returns the parts that differ, in order, what lies outside at the end. A
// volume in several pieces is one part.
func (c *changes) list() []image.Change {
	var list []image.Change
	for i := range c.bytes {
		change := image.Change{Content: c.whole}
		if i < len(c.parts) {
			change = c.parts[i].change
		}
		n := c.bytes[i].Load()
		if n == 0 {
			continue
		}
		at := slices.IndexFunc(list, func(had image.Change) bool {
			had.Bytes = 0
			return had == change
		})
		if at < 0 {
			at, list = len(list), append(list, change)
		}
		list[at].Bytes += n
	}
	return list
}
