package reader

import (
	"context"

	"platter/image"
)

// A subtree is a part of a map, at its own level.
type subtree struct {
	id    image.ID
	at    image.Location
	level int
}

// same reports whether two subtrees hold the same blocks for sure.
func (s subtree) same(o subtree) bool {
	return s.id == o.id && (s.level == o.level || s.id.IsZero())
}

// Diff calls visit, in order, for stretches of blocks that differ between two
// maps of one repository; parts that both share are not read. A map that is
// shorter counts as zeros beyond its end.
func (r *Reader) Diff(ctx context.Context, a, b Map, visit func(first, count int64) error) error {
	type pair struct {
		level int
		first int64
		a, b  subtree
	}
	top := func(m Map) subtree { return subtree{m.Root, m.RootAt, image.Levels(m.Blocks) - 1} }
	root := pair{a: top(a), b: top(b)}
	root.level = max(root.a.level, root.b.level)
	if root.level < 0 {
		return ctx.Err()
	}
	stack := []pair{root}
	for len(stack) > 0 {
		p := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if p.a.same(p.b) {
			continue
		}
		x, err := r.open(ctx, a.Blocks, p.a, p.level, p.first)
		if err != nil {
			return err
		}
		y, err := r.open(ctx, b.Blocks, p.b, p.level, p.first)
		if err != nil {
			return err
		}
		if p.level == 0 {
			if err := diffLeaves(x, y, p.first, visit); err != nil {
				return err
			}
			continue
		}
		if err := r.prefetch(ctx, x, y); err != nil {
			return err
		}
		span := image.PageBlocks(p.level - 1)
		for i := image.PageEntries - 1; i >= 0; i-- {
			child := pair{p.level - 1, p.first + int64(i)*span, x[i], y[i]}
			if !child.a.same(child.b) {
				stack = append(stack, child)
			}
		}
	}
	return nil
}

// open returns what is below a subtree that stands at the given level. One
// that is less high stands for a page that holds it alone, first.
func (r *Reader) open(ctx context.Context, blocks int64, s subtree, level int, first int64) (below [image.PageEntries]subtree, err error) {
	if s.id.IsZero() {
		return below, nil
	}
	if s.level < level {
		below[0] = s
		return below, nil
	}
	p, err := r.Page(ctx, s.id, s.at)
	if err != nil {
		return below, err
	}
	if err := checkEnd(blocks, Node{level, first, s.id, s.at}, p); err != nil {
		return below, err
	}
	for i := range below {
		below[i] = subtree{p.Entries[i], p.Hints[i], level - 1}
	}
	return below, nil
}

// prefetch reads the pages below that differ together.
func (r *Reader) prefetch(ctx context.Context, x, y [image.PageEntries]subtree) error {
	for _, side := range [2]*[image.PageEntries]subtree{&x, &y} {
		var refs []Ref
		for i, s := range side {
			if !x[i].same(y[i]) && !s.id.IsZero() {
				refs = append(refs, Ref{ID: s.id, At: s.at})
			}
		}
		// What is lost is said by whoever needs it.
		if _, _, err := r.getPages(ctx, refs); err != nil {
			return err
		}
	}
	return nil
}

func diffLeaves(x, y [image.PageEntries]subtree, first int64, visit func(first, count int64) error) error {
	for i := 0; i < image.PageEntries; i++ {
		n := i
		for n < image.PageEntries && x[n].id != y[n].id {
			n++
		}
		if n > i {
			if err := visit(first+int64(i), int64(n-i)); err != nil {
				return err
			}
			i = n
		}
	}
	return nil
}
