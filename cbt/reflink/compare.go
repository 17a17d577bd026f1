package reflink

import (
	"context"
	"os"
	"slices"

	"platter/block"
	"platter/block/snapshot/reflink"
	"platter/cbt"
)

// compare adds to set what may differ between two copies of a file. Neither
// changes meanwhile, and both hold their extents: a place that both refer to
// holds the same bytes for both.
//
// A filesystem may move extents, as when btrfs is balanced, and then give the
// old place to what it moves next. So the old copy's layout is asked for again
// after the new one's: only what lay where it lies is compared.
func compare(ctx context.Context, older, newer *os.File, want uint32, set *cbt.Set) error {
	a, err := reflink.NewLayout(older, want)
	if err != nil {
		return err
	}
	b, err := reflink.NewLayout(newer, want)
	if err != nil {
		return err
	}
	set.Add(block.Extent{Offset: min(a.Size, b.Size), Length: max(a.Size, b.Size) - min(a.Size, b.Size)})
	var before, now, again []reflink.Piece
	for off, size := int64(0), min(a.Size, b.Size); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var endA, endB, endC int64
		if before, endA, err = a.Next(off, before[:0]); err != nil {
			return err
		}
		if now, endB, err = b.Next(off, now[:0]); err != nil {
			return err
		}
		if again, endC, err = a.Next(off, again[:0]); err != nil {
			return err
		}
		end := min(endA, endB, size)
		if endA != endC || !slices.Equal(before, again) {
			set.Add(block.Extent{Offset: off, Length: end - off})
		} else {
			differ(off, end, before, now, set)
		}
		off = end
	}
	return nil
}

// differ adds to set where two layouts differ between off and end.
func differ(off, end int64, a, b []reflink.Piece, set *cbt.Set) {
	for off < end {
		a, b = from(a, off), from(b, off)
		x, y := at(a, off, end), at(b, off, end)
		next := min(x.End(), y.End())
		if !same(x.Cut(off), y.Cut(off)) {
			set.Add(block.Extent{Offset: off, Length: next - off})
		}
		off = next
	}
}

// from drops the extents that end at or before off.
func from(list []reflink.Piece, off int64) []reflink.Piece {
	for len(list) > 0 && list[0].End() <= off {
		list = list[1:]
	}
	return list
}

// at returns what is at off: an extent, or a hole up to the next one. None
// goes beyond end.
func at(list []reflink.Piece, off, end int64) reflink.Piece {
	hole := reflink.Piece{Extent: block.Extent{Offset: off, Length: end - off}, Flags: reflink.Unwritten}
	if len(list) == 0 {
		return hole
	}
	e := list[0]
	if e.Offset > off {
		hole.Length = min(e.Offset, end) - off
		return hole
	}
	e.Length = min(e.End(), end) - e.Offset
	return e
}

// same reports whether two extents that begin at one offset hold the same
// bytes: both zeros, or both at the same place.
func same(a, b reflink.Piece) bool {
	zeroA, zeroB := a.Flags&^reflink.Plain == reflink.Unwritten, b.Flags&^reflink.Plain == reflink.Unwritten
	if zeroA || zeroB {
		return zeroA && zeroB
	}
	return a.Flags&^reflink.Plain == 0 && b.Flags&^reflink.Plain == 0 && a.Physical == b.Physical
}
