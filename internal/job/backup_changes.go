package job

import (
	"slices"
	"sync/atomic"

	"platter/block"
	"platter/image"
)

// changes counts, for each part of a device, the bytes that differ from the
// parent. It is safe for concurrent use; a nil one counts nothing.
type changes struct {
	parts []block.Partition // in order, never overlapping
	bytes []atomic.Int64    // one for each part, and the last for all outside
	whole string            // what the device holds, if it has no partitions
}

func newChanges(d block.Info) *changes {
	c := &changes{whole: d.Content}
	if d.Table != nil {
		parts := slices.Clone(d.Table.Partitions)
		slices.SortFunc(parts, func(a, b block.Partition) int { return int(min(1, max(-1, a.Offset-b.Offset))) })
		end := int64(0)
		for _, p := range parts {
			// An extended partition surrounds the logical ones, and tables
			// are data of others: what overlaps is counted once.
			for len(c.parts) > 0 && p.Offset < end && p.End() <= end {
				c.parts = c.parts[:len(c.parts)-1]
				end = 0
				if n := len(c.parts); n > 0 {
					end = c.parts[n-1].End()
				}
			}
			if p.Offset >= end {
				c.parts, end = append(c.parts, p), p.End()
			}
		}
	}
	c.bytes = make([]atomic.Int64, len(c.parts)+1)
	return c
}

// add counts a block that differs. One that lies across a border counts for
// the part that it begins in.
func (c *changes) add(e block.Extent) {
	if c == nil {
		return
	}
	i, _ := slices.BinarySearchFunc(c.parts, e.Offset, func(p block.Partition, off int64) int {
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

// list returns the parts that differ, in order, what lies outside at the end.
func (c *changes) list() []image.Change {
	var list []image.Change
	for i := range c.bytes {
		n := c.bytes[i].Load()
		switch {
		case n == 0:
		case i < len(c.parts):
			p := c.parts[i]
			list = append(list, image.Change{Partition: p.Number, Name: p.Name, Content: p.Content, Bytes: n})
		default:
			list = append(list, image.Change{Content: c.whole, Bytes: n})
		}
	}
	return list
}
