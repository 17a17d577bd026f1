package image

import "fmt"

// A Tree builds a block map from left to right. Emit stores a page and says
// where; the Tree holds one page for each level.
type Tree struct {
	Emit func(level int, p *Page) (ID, Location, error)

	levels int
	pages  []Page // pages[l] collects the nodes of level l that its page at l+1 points to
	filled []int
	root   ID
	rootAt Location
}

// NewTree returns a Tree for so many blocks.
func NewTree(blocks int64, emit func(level int, p *Page) (ID, Location, error)) *Tree {
	n := Levels(blocks)
	return &Tree{Emit: emit, levels: n, pages: make([]Page, n), filled: make([]int, n)}
}

// Leaf adds the next page of block IDs.
func (t *Tree) Leaf(p *Page) error {
	id, at, err := t.emit(0, p)
	if err != nil {
		return err
	}
	return t.Subtree(0, id, at)
}

// Subtree adds the next page of the given level, which is stored already, or a
// zero ID. All that came before fills whole pages of that level.
func (t *Tree) Subtree(level int, id ID, at Location) error {
	for ; level < t.levels-1; level++ {
		p, n := &t.pages[level], t.filled[level]
		for l := range level {
			if t.filled[l] != 0 {
				panic(fmt.Sprintf("map subtree of level %d added in the middle of one of level %d", level, l+1))
			}
		}
		p.Entries[n], p.Hints[n] = id, at
		t.filled[level]++
		if t.filled[level] < PageEntries {
			return nil
		}
		var err error
		if id, at, err = t.take(level); err != nil {
			return err
		}
	}
	t.root, t.rootAt = id, at
	return nil
}

// Finish stores the pages that are not full and returns the root.
func (t *Tree) Finish() (ID, Location, error) {
	for level := range t.levels {
		if level == t.levels-1 || t.filled[level] == 0 {
			continue
		}
		id, at, err := t.take(level)
		if err != nil {
			return ID{}, Location{}, err
		}
		if err := t.Subtree(level+1, id, at); err != nil {
			return ID{}, Location{}, err
		}
	}
	return t.root, t.rootAt, nil
}

func (t *Tree) take(level int) (ID, Location, error) {
	p := t.pages[level]
	t.pages[level], t.filled[level] = Page{}, 0
	return t.emit(level+1, &p)
}

func (t *Tree) emit(level int, p *Page) (ID, Location, error) {
	if p.Entries == [PageEntries]ID{} {
		return ID{}, Location{}, nil
	}
	return t.Emit(level, p)
}
