package snapshot

import "platter/block"

// Holed is the part of a View that reads, where somebody can know that parts of it
// are zeros without reading them.
type Holed struct {
	block.Source
	next   func(off int64) (block.Extent, bool)
	doubts []block.Extent // that are read, holes or not
}

// Holes tells the view what in it is zeros for sure, which then is not read: next
// gives the first such extent that ends after off, without what lies before, as long
// as it can be. It is called before the view is read.
func (h *Holed) Holes(next func(off int64) (block.Extent, bool)) { h.next = next }

// Doubt implements Told.
func (h *Holed) Doubt(e block.Extent) { h.doubts = append(h.doubts, e) }

// Data implements block.Source.
func (h *Holed) Data(off int64) (block.Extent, error) {
	e, err := h.Source.Data(off)
	if err != nil || h.next == nil {
		return e, err
	}
	hole, ok := h.hole(e.Offset)
	for ok && hole.Offset <= e.Offset {
		if e, err = h.Source.Data(hole.End()); err != nil {
			return e, err
		}
		hole, ok = h.hole(e.Offset)
	}
	if ok {
		e.Length = min(e.Length, hole.Offset-e.Offset)
	}
	return e, nil
}

// hole returns the first hole, or part of one, that ends after off and is not in
// doubt.
func (h *Holed) hole(off int64) (hole block.Extent, ok bool) {
	for {
		if hole, ok = h.next(off); !ok {
			return hole, false
		}
		skip := int64(0)
		for _, d := range h.doubts {
			switch {
			case d.End() <= hole.Offset || d.Offset >= hole.End():
			case d.Offset <= hole.Offset:
				skip = max(skip, d.End())
			default:
				hole.Length = d.Offset - hole.Offset
			}
		}
		if skip == 0 {
			return hole, true
		}
		off = skip
	}
}
