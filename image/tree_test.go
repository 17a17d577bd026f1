package image_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"platter/image"
)

func TestLevelsAndSpans(t *testing.T) {
	const e = image.PageEntries
	for _, tt := range []struct {
		blocks int64
		levels int
	}{
		{0, 0},
		{1, 1},
		{127, 1},
		{128, 1},
		{129, 2},
		{e*e - 1, 2},
		{e * e, 2},
		{e*e + 1, 3},
		{e * e * e, 3},
		{e*e*e + 1, 4},
		{image.MaxSize / 4096, image.MaxLevels},
	} {
		if got := image.Levels(tt.blocks); got != tt.levels {
			t.Errorf("%d blocks have %d levels, want %d", tt.blocks, got, tt.levels)
		}
	}
	for level, want := range []int64{e, e * e, e * e * e} {
		if got := image.PageBlocks(level); got != want {
			t.Errorf("a page of level %d spans %d blocks, want %d", level, got, want)
		}
	}
	for n := int64(1); n < 1<<48; n = n*3 + 1 {
		l := image.Levels(n)
		if image.PageBlocks(l-1) < n || l > 1 && image.PageBlocks(l-2) >= n {
			t.Errorf("%d blocks: %d levels are too many or too few", n, l)
		}
	}
}

// A plain is a whole map in memory: its nodes, level by level.
type plain struct {
	levels int
	ids    [][]image.ID // ids[l] are the pages of level l
	pages  map[image.ID]image.Page
	at     map[image.ID]image.Location
	hasher *image.Hasher
}

// grow makes the map of some blocks in the simplest way.
func grow(h *image.Hasher, blocks []image.ID) *plain {
	m := &plain{hasher: h, pages: map[image.ID]image.Page{}, at: map[image.ID]image.Location{}}
	for nodes := blocks; len(nodes) > 1 || m.levels == 0 && len(nodes) > 0; m.levels++ {
		var up []image.ID
		for len(nodes) > 0 {
			n := min(len(nodes), image.PageEntries)
			p := image.Page{}
			for i, id := range nodes[:n] {
				p.Entries[i], p.Hints[i] = id, m.at[id]
			}
			up = append(up, m.add(p))
			nodes = nodes[n:]
		}
		m.ids = append(m.ids, up)
		nodes = up
	}
	return m
}

func (m *plain) add(p image.Page) image.ID {
	id := m.hasher.Page(p.Content(nil))
	if id.IsZero() {
		return id
	}
	if _, ok := m.at[id]; !ok {
		m.at[id] = image.Location{Segment: image.SegmentID{1}, Record: uint32(len(m.at))}
		m.pages[id] = p
	}
	return id
}

func (m *plain) root() image.ID {
	if m.levels == 0 {
		return image.ID{}
	}
	return m.ids[m.levels-1][0]
}

// TestTreeMakesThePlainMap feeds trees leaf by leaf and by whole subtrees, and
// compares every page with that of the simplest map.
func TestTreeMakesThePlainMap(t *testing.T) {
	h := hasher(t, image.IDAlgorithm)
	rapid.Check(t, func(t *rapid.T) {
		const e = image.PageEntries
		sizes := rapid.OneOf(rapid.SampledFrom([]int{0, 1, e - 1, e, e + 1, e*e - 1, e * e, e*e + 1, e*e + e, 2*e*e + 1}), rapid.IntRange(0, 3*e*e))
		blocks := make([]image.ID, sizes.Draw(t, "blocks"))
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		fill(rng, blocks)
		m := grow(h, blocks)
		taken := rapid.IntRange(0, 3).Draw(t, "taken") // of 4 subtrees
		tree := image.NewTree(int64(len(blocks)), func(level int, p *image.Page) (image.ID, image.Location, error) {
			id := h.Page(p.Content(nil))
			want, ok := m.pages[id]
			if !ok || id.IsZero() {
				t.Fatalf("a page of level %d is none of the map's", level)
			}
			if want.Hints != p.Hints {
				t.Fatalf("a page of level %d has other hints", level)
			}
			return id, m.at[id], nil
		})
		feed(t, rng, tree, m, blocks, taken)
		root, at, err := tree.Finish()
		if err != nil || root != m.root() || at != m.at[root] {
			t.Fatalf("root %s at %v, %v; want %s at %v", root, at, err, m.root(), m.at[m.root()])
		}
	})
}

// fill makes block IDs, with stretches of zeros and stretches that repeat.
func fill(rng *rand.Rand, blocks []image.ID) {
	for i := 0; i < len(blocks); {
		n, kind, id := 1+rng.IntN(3*image.PageEntries), rng.IntN(3), image.ID{byte(1 + rng.IntN(2))}
		for ; n > 0 && i < len(blocks); n, i = n-1, i+1 {
			switch kind {
			case 0:
				blocks[i] = id
			case 1:
				copy(blocks[i][:], random(rng, 32))
			}
		}
	}
}

// feed gives a tree the map from left to right, a quarter of taken as whole
// subtrees.
func feed(t *rapid.T, rng *rand.Rand, tree *image.Tree, m *plain, blocks []image.ID, taken int) {
	for n := 0; n < len(blocks); {
		level := 0
		for level+1 < m.levels && int64(n)%image.PageBlocks(level+1) == 0 && rng.IntN(4) < taken {
			level++
		}
		span := int(image.PageBlocks(level))
		id := m.ids[level][n/span]
		var err error
		if level == 0 && rng.IntN(4) >= taken {
			p := m.pages[id] // the zero page if id is zero
			err = tree.Leaf(&p)
		} else {
			err = tree.Subtree(level, id, m.at[id])
		}
		if err != nil {
			t.Fatal(err)
		}
		n += span
	}
}

func TestTreePassesOnErrors(t *testing.T) {
	full := errors.New("full")
	blocks := make([]image.ID, 2*image.PageEntries*image.PageEntries+5)
	rng := rand.New(rand.NewPCG(8, 8))
	for i := range blocks {
		copy(blocks[i][:], random(rng, 32))
	}
	m := grow(hasher(t, image.IDAlgorithm), blocks)
	for fail := range 3 + 3*image.PageEntries {
		emitted := 0
		tree := image.NewTree(int64(len(blocks)), func(_ int, p *image.Page) (image.ID, image.Location, error) {
			if emitted++; emitted > fail {
				return image.ID{}, image.Location{}, full
			}
			id := m.hasher.Page(p.Content(nil))
			return id, m.at[id], nil
		})
		var err error
		for i := 0; i < len(m.ids[0]) && err == nil; i++ {
			p := m.pages[m.ids[0][i]]
			err = tree.Leaf(&p)
		}
		if err == nil {
			var root image.ID
			if root, _, err = tree.Finish(); err == nil && root == m.root() && fail >= len(m.pages) {
				return // all pages were stored
			}
		}
		if !errors.Is(err, full) {
			t.Fatalf("page %d failed: got %v", fail+1, err)
		}
	}
	t.Error("the tree stores more pages than the map has")
}

func TestTreeRefusesASubtreeInTheMiddle(t *testing.T) {
	tree := image.NewTree(3*image.PageEntries*image.PageEntries, func(int, *image.Page) (image.ID, image.Location, error) {
		return image.ID{1}, image.Location{}, nil
	})
	if err := tree.Subtree(0, image.ID{1}, image.Location{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a page of level 1 was added after half a page")
		}
	}()
	_ = tree.Subtree(1, image.ID{1}, image.Location{})
}
