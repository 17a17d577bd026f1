package reader

import (
	"context"
	"fmt"

	"platter/image"
)

// A Map is the block map of an image.
type Map struct {
	Root   image.ID
	RootAt image.Location // a hint
	Blocks int64
}

// MapOf returns the map of an image.
func MapOf(m *image.Manifest) Map { return Map{m.Root, m.RootAt, m.Blocks()} }

// A Node is a page's place in a map.
type Node struct {
	Level int
	First int64 // block
	ID    image.ID
	At    image.Location // a hint
}

// A Visitor says what to do on a walk. Any of its functions may be nil.
type Visitor struct {
	// Enter reports whether to read a page and go on below it.
	Enter func(Node) bool
	// Page gets each page entered, from left to right, before those below it.
	Page func(Node, *image.Page) error
	// Leave is called after all below a page, or after Bad.
	Leave func(Node)
	// Bad is told of a page that could not be had, or that holds what no
	// writer puts there; the walk goes on beside it. Without Bad the walk
	// ends with the error.
	Bad func(Node, error) error
}

// Walk calls visit for each leaf page, from left to right, that spans blocks
// from ≤ n < to and is not zero as a whole. first is the page's first block.
// Pages are shared: do not change them.
//
// The height of the map follows from the number of blocks, so that no chain of
// pages leads on for ever. An entry past the end is image.ErrCorrupt.
func (r *Reader) Walk(ctx context.Context, m Map, from, to int64, visit func(first int64, p *image.Page) error) error {
	return r.WalkAll(ctx, m, from, to, Visitor{Page: func(n Node, p *image.Page) error {
		if n.Level > 0 {
			return nil
		}
		return visit(n.First, p)
	}})
}

// WalkAll is Walk for every page of the map, at every level.
func (r *Reader) WalkAll(ctx context.Context, m Map, from, to int64, v Visitor) error {
	if m.Blocks < 0 || m.Blocks > image.MaxSize/4096 {
		return fmt.Errorf("map of %d blocks: %w", m.Blocks, image.ErrCorrupt)
	}
	from, to = max(from, 0), min(to, m.Blocks)
	if from >= to || m.Root.IsZero() {
		return ctx.Err()
	}
	w := walk{reader: r, blocks: m.Blocks, from: from, to: to, Visitor: v}
	if err := w.push(ctx, []Node{{Level: image.Levels(m.Blocks) - 1, ID: m.Root, At: m.RootAt}}); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		if err := w.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// walk keeps one frame for each level: siblings still to visit, read together.
type walk struct {
	Visitor
	reader   *Reader
	blocks   int64
	from, to int64
	stack    []frame
}

type frame struct {
	nodes []Node
	pages []*image.Page // nil until read, and where that failed
	errs  []error       // why
	below bool          // the first of nodes was entered, and is to be left
}

// push begins a level with the nodes that are entered, and reads their pages.
func (w *walk) push(ctx context.Context, nodes []Node) error {
	f := frame{}
	refs := make([]Ref, 0, len(nodes))
	for _, n := range nodes {
		if w.Enter == nil || w.Enter(n) {
			f.nodes = append(f.nodes, n)
			refs = append(refs, Ref{Block: n.First, ID: n.ID, At: n.At})
		}
	}
	if len(refs) == 0 {
		return nil
	}
	pages, lost, err := w.reader.getPages(ctx, refs)
	if err != nil {
		return err
	}
	f.pages, f.errs = pages, make([]error, len(refs))
	for _, l := range lost {
		f.errs[l.Ref] = l
	}
	w.stack = append(w.stack, f)
	return nil
}

// step visits one node, or leaves one.
func (w *walk) step(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f := &w.stack[len(w.stack)-1]
	if f.below {
		if w.Leave != nil {
			w.Leave(f.nodes[0])
		}
		f.nodes, f.pages, f.errs, f.below = f.nodes[1:], f.pages[1:], f.errs[1:], false
	}
	if len(f.nodes) == 0 {
		w.stack = w.stack[:len(w.stack)-1]
		return nil
	}
	node, page, err := f.nodes[0], f.pages[0], f.errs[0]
	f.pages[0], f.below = nil, true
	if err == nil {
		err = checkEnd(w.blocks, node, page)
	}
	if err != nil {
		if w.Bad == nil {
			return err
		}
		return w.Bad(node, err)
	}
	if w.Page != nil {
		if err := w.Page(node, page); err != nil {
			return err
		}
	}
	if node.Level > 0 {
		return w.push(ctx, w.children(node, page))
	}
	return nil
}

// checkEnd refuses a page that has entries past the end of the image.
func checkEnd(blocks int64, n Node, p *image.Page) error {
	span := image.PageBlocks(n.Level) / image.PageEntries
	for i := range p.Entries {
		if n.First+int64(i)*span >= blocks && !p.Entries[i].IsZero() {
			err := fmt.Errorf("level %d, entry %d is past the image's end: %w", n.Level, i, image.ErrCorrupt)
			return &Lost{Page: true, Block: n.First, ID: n.ID, At: n.At, Err: err}
		}
	}
	return nil
}

// children returns the nodes below n that the walk reaches.
func (w *walk) children(n Node, p *image.Page) []Node {
	span := image.PageBlocks(n.Level - 1)
	var nodes []Node
	for i := range p.Entries {
		first := n.First + int64(i)*span
		if p.Entries[i].IsZero() || first+span <= w.from || first >= w.to {
			continue
		}
		nodes = append(nodes, Node{n.Level - 1, first, p.Entries[i], p.Hints[i]})
	}
	return nodes
}
