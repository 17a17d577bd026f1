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

// A Subtree is a whole part of a map: a page and all below it.
type Subtree struct {
	Level int      `json:"level"`
	ID    ID       `json:"id"`
	At    Location `json:"at"` // a hint
}

// Blocks returns how many blocks the Spine spans.
func (t *Tree) Blocks() (n int64) {
	for level, filled := range t.filled {
		n += int64(filled) * PageBlocks(level)
	}
	return n
}

// Spine returns what there is of the map so far, from left to right, as the
// fewest subtrees: another Tree that takes them in order is where this one is.
func (t *Tree) Spine() (list []Subtree) {
	for level := t.levels - 2; level >= 0; level-- {
		for n := range t.filled[level] {
			list = append(list, Subtree{level, t.pages[level].Entries[n], t.pages[level].Hints[n]})
		}
	}
	return list
}

// Span returns how many blocks subtrees hold, one after the other from the
// first block on, or an error where no Tree for so many blocks has such a
// Spine.
func Span(list []Subtree, blocks int64) (span int64, err error) {
	var filled [MaxLevels]int
	top := Levels(blocks) - 1
	last := top - 1
	for _, s := range list {
		if s.Level < 0 || s.Level > last || filled[s.Level] == PageEntries-1 {
			return 0, fmt.Errorf("a subtree of level %d in the spine of a map of %d levels: %w", s.Level, top+1, ErrCorrupt)
		}
		filled[s.Level]++
		last = s.Level
		span += PageBlocks(s.Level)
	}
	if span >= blocks {
		return 0, fmt.Errorf("subtrees of %d blocks, of %d: %w", span, blocks, ErrCorrupt)
	}
	return span, nil
}
