package reader

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"platter/image"
	"platter/image/segment"
)

func TestWalkGivesTheLeavesOfARange(t *testing.T) {
	d := newDepot(t, 4096)
	disk := make([]byte, 40000*4096) // three levels
	for _, n := range []int{0, 127, 128, 5000, 16383, 16384, 39999} {
		disk[n*4096] = byte(n) | 1
	}
	m := d.put(t, disk)
	r := New(d.Repo, nil, 8<<20)
	for _, c := range []struct {
		from, to int64
		want     []int64
	}{
		{0, 40000, []int64{0, 128, 4992, 16256, 16384, 39936}},
		{-5, 1 << 40, []int64{0, 128, 4992, 16256, 16384, 39936}},
		{127, 129, []int64{0, 128}},
		{128, 129, []int64{128}},
		{256, 4992, nil},
		{16383, 16384, []int64{16256}},
		{39999, 40000, []int64{39936}},
		{40000, 40001, nil},
		{7, 7, nil},
	} {
		var got []int64
		err := r.Walk(t.Context(), MapOf(m), c.from, c.to, func(first int64, _ *image.Page) error {
			got = append(got, first)
			return nil
		})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("from %d to %d: got %v, %v, want %v", c.from, c.to, got, err, c.want)
		}
	}
}

// A forger holds the keys and makes maps that no writer makes.
func TestHostileMapsAreRefused(t *testing.T) {
	d := newDepot(t, 4096)
	pages := &packer{d: d, kind: segment.Pages}
	put := func(p *image.Page) (image.ID, image.Location) {
		plain := p.Encode(nil)
		id := d.Hasher().Page(plain[:image.PageSize])
		return id, pages.add(t, id, plain)
	}
	full := new(image.Page)
	for i := range full.Entries {
		full.Entries[i] = image.ID{byte(i + 1)}
	}
	leaf, leafAt := put(full)
	chain, chainAt := leaf, leafAt
	for range 9 {
		chain, chainAt = put(&image.Page{Entries: [image.PageEntries]image.ID{chain}, Hints: [image.PageEntries]image.Location{chainAt}})
	}
	raw := []byte("not a page")
	short, shortAt := image.ID{5, 5}, pages.add(t, image.ID{5, 5}, raw)
	bad := make([]byte, image.PageSize+4)
	bad[0], bad[image.PageSize] = 1, 255 // 255 segments
	badID := d.Hasher().Page(bad[:image.PageSize])
	badAt := pages.add(t, badID, bad)
	pages.flush(t)
	data := &packer{d: d, kind: segment.Data}
	content := full.Content(nil)
	disguised := d.Hasher().Block(content)
	disguisedAt := data.add(t, disguised, content)
	data.flush(t)

	r := New(d.Repo, nil, 4<<20)
	for name, m := range map[string]Map{
		"entries past the end":     {leaf, leafAt, 127},
		"leaf as an inner page":    {leaf, leafAt, 129},
		"absurd block count":       {leaf, leafAt, 1 << 60},
		"negative block count":     {leaf, leafAt, -1},
		"short page":               {short, shortAt, 128},
		"absurd hints":             {badID, badAt, 128},
		"disk content as a page":   {disguised, disguisedAt, 128},
		"page that is not there":   {image.ID{9}, image.Location{}, 128},
		"location past the footer": {image.ID{9}, image.Location{Segment: leafAt.Segment, Record: 1 << 31}, 128},
	} {
		err := r.Walk(t.Context(), m, 0, 1<<62, func(int64, *image.Page) error { return nil })
		if !Damaged(err) {
			t.Errorf("%s: got %v, want damage", name, err)
		}
		if err := r.Diff(t.Context(), m, Map{Blocks: 1}, func(_, _ int64) error { return nil }); m.Blocks > 0 && m.Blocks < 1<<50 && !Damaged(err) {
			t.Errorf("diff: %s: got %v, want damage", name, err)
		}
	}
	// A chain without end is followed as deep as the map is high.
	deepest := 0
	err := r.Walk(t.Context(), Map{chain, chainAt, image.MaxSize / 4096}, 0, 1<<62, func(int64, *image.Page) error {
		deepest++
		return nil
	})
	if err != nil || deepest != 1 {
		t.Errorf("chain: got %d leaves, %v, want 1", deepest, err)
	}
	if err := r.Walk(t.Context(), Map{leaf, leafAt, 128}, 0, 128, func(int64, *image.Page) error { return nil }); err != nil {
		t.Errorf("a whole page: %v", err)
	}
}

func TestWalkGoesOnBesideBadPages(t *testing.T) {
	d := newDepot(t, 4096)
	disk := make([]byte, 400*4096)
	for n := range 400 {
		disk[n*4096+n] = byte(n) | 1
	}
	m := d.put(t, disk)
	r := New(d.Repo, nil, 4<<20)
	root, err := r.Page(t.Context(), m.Root, m.RootAt)
	if err != nil {
		t.Fatal(err)
	}
	f, _ := d.Footer(t.Context(), root.Hints[2].Segment)
	flip(t, d, segment.Name(f.ID), f.Records[root.Hints[2].Record].Offset+7)
	var pages, bad, left []int64
	err = New(d.Repo, nil, 4<<20).WalkAll(t.Context(), MapOf(m), 0, 400, Visitor{
		Page:  func(n Node, _ *image.Page) error { pages = append(pages, n.First); return nil },
		Bad:   func(n Node, err error) error { bad = append(bad, n.First); return nil },
		Leave: func(n Node) { left = append(left, n.First+int64(n.Level)) },
	})
	if err != nil || !slices.Equal(pages, []int64{0, 0, 128, 384}) || !slices.Equal(bad, []int64{256}) || !slices.Equal(left, []int64{0, 128, 256, 384, 1}) {
		t.Errorf("got %v, bad %v, left %v, %v", pages, bad, left, err)
	}
	stop := errors.New("enough")
	err = New(d.Repo, nil, 4<<20).WalkAll(t.Context(), MapOf(m), 0, 400, Visitor{Bad: func(Node, error) error { return stop }})
	if err != stop {
		t.Errorf("got %v, want %v", err, stop)
	}
}

func TestDiffAgreesWithComparingAllBlocks(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 9))
		d := newDepot(t, 4096)
		a := randomDisk(rng, rng.IntN(2000*4096)+1, 4096)
		b := slices.Clone(a)
		if rng.IntN(2) == 0 {
			b = append(b, make([]byte, rng.IntN(20000*4096))...)
		} else {
			b = b[:rng.IntN(len(b)+1)]
		}
		for range rng.IntN(20) {
			if len(b) > 0 {
				b[rng.IntN(len(b))]++
			}
		}
		ma, mb := d.put(t, a), d.put(t, b)
		h := d.Hasher()
		block := func(p []byte, n int64) image.ID {
			off := min(int64(len(p)), n*4096)
			return h.Block(p[off:min(int64(len(p)), off+4096)])
		}
		var want []int64
		for n := range max(ma.Blocks(), mb.Blocks()) {
			if block(a, n) != block(b, n) {
				want = append(want, n)
			}
		}
		for _, m := range [][2]*image.Manifest{{ma, mb}, {mb, ma}} {
			var got []int64
			err := New(d.Repo, nil, 8<<20).Diff(t.Context(), MapOf(m[0]), MapOf(m[1]), func(first, count int64) error {
				for n := range count {
					got = append(got, first+n)
				}
				return nil
			})
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("seed %d, %d and %d blocks: got %v, %v, want %v", seed, m[0].Blocks(), m[1].Blocks(), got, err, want)
			}
		}
	}
}
