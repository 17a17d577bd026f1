package catalog

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"platter/image"
	"platter/image/segment"
)

// model is what a catalog should say, kept in plain maps.
type model struct {
	footers   map[image.SegmentID]*segment.Footer
	condemned map[image.SegmentID]bool
	damaged   map[image.Location]image.ID
	index     map[image.ID][]image.Location // of footers, made by reindex
}

func (m *model) reindex() {
	m.index = map[image.ID][]image.Location{}
	for _, f := range m.footers {
		for i := range f.Records {
			id := f.Records[i].ID
			m.index[id] = append(m.index[id], image.Location{Segment: f.ID, Record: uint32(i)})
		}
	}
}

// places returns where an ID is, split into what Lookup may answer and not.
func (m *model) places(id image.ID) (good, bad []image.Location) {
	for _, at := range m.index[id] {
		if _, damaged := m.damaged[at]; damaged || m.condemned[at.Segment] {
			bad = append(bad, at)
		} else {
			good = append(good, at)
		}
	}
	return good, bad
}

// modelRun does random things to a catalog and a model of it.
type modelRun struct {
	*testing.T
	*rand.Rand
	opts  Options
	c     *Catalog
	m     model
	repo  *fakeRepo
	count int
}

const modelIDs = 600

func TestCatalogAgreesWithAModel(t *testing.T) {
	seeds := uint64(3)
	if long() {
		seeds = 200
	}
	for seed := range seeds {
		opts := testOptions(t)
		r := &modelRun{
			T: t, Rand: rand.New(rand.NewPCG(seed, 0)), opts: opts, c: mustOpen(t, opts), repo: newFakeRepo(),
			m: model{map[image.SegmentID]*segment.Footer{}, map[image.SegmentID]bool{}, map[image.Location]image.ID{}, nil},
		}
		for range 120 {
			r.step()
		}
		r.compare()
		mustCheck(t, r.c, r.repo)
		mustClose(t, r.c)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func (r *modelRun) step() {
	switch n := r.IntN(20); {
	case n < 9:
		r.add()
	case n < 11:
		r.drop()
	case n < 13:
		r.condemn()
	case n < 15:
		r.damage()
	case n < 16:
		mustClose(r.T, r.c)
		r.c = mustOpen(r.T, r.opts)
		clear(r.m.condemned)
	case n < 17:
		if err := r.c.buildFilter(r.Context()); err != nil {
			r.Fatal(err)
		}
	default:
		r.compare()
	}
}

func (r *modelRun) add() {
	r.count++
	var ids []int
	for range r.IntN(40) {
		ids = append(ids, r.IntN(modelIDs))
	}
	if r.IntN(5) == 0 {
		for i := range chunkRecords {
			ids = append(ids, modelIDs+i)
		}
	}
	var pages []*image.Page
	f := testFooter(r.count, ids...)
	if r.IntN(4) == 0 && len(ids) > 0 {
		f, pages = testPages(r.count, ids...)
	}
	mustAdd(r.T, r.c, f, pages)
	r.repo.add(f, pages)
	r.m.footers[f.ID] = f
}

// any returns a segment that is there.
func (r *modelRun) any() *segment.Footer {
	ids := slices.SortedFunc(maps.Keys(r.m.footers), compareSegments)
	if len(ids) == 0 {
		return testFooter(0)
	}
	return r.m.footers[ids[r.IntN(len(ids))]]
}

func (r *modelRun) drop() {
	f := r.any()
	if err := r.c.DropSegments(r.Context(), []image.SegmentID{f.ID}); err != nil {
		r.Fatal(err)
	}
	delete(r.m.footers, f.ID)
	maps.DeleteFunc(r.m.damaged, func(at image.Location, _ image.ID) bool { return at.Segment == f.ID })
	r.repo.remove(f.ID)
	r.repo.damaged = slices.DeleteFunc(r.repo.damaged, func(d damagedRecord) bool { return d.at.Segment == f.ID })
}

func (r *modelRun) condemn() {
	clear(r.m.condemned)
	for range r.IntN(3) {
		r.m.condemned[r.any().ID] = true
	}
	r.c.SetCondemned(slices.Collect(maps.Keys(r.m.condemned)))
}

func (r *modelRun) damage() {
	f := r.any()
	if len(f.Records) == 0 {
		return
	}
	n := r.IntN(len(f.Records))
	at, id := image.Location{Segment: f.ID, Record: uint32(n)}, f.Records[n].ID
	if err := r.c.MarkDamaged(r.Context(), id, at); err != nil {
		r.Fatal(err)
	}
	r.m.damaged[at] = id
	r.repo.damaged = append(r.repo.damaged, damagedRecord{at, id})
}

// compare asks for every ID there is, and some that are not.
func (r *modelRun) compare() {
	r.m.reindex()
	ns := r.Perm(modelIDs + chunkRecords + 100)
	for batch := range slices.Chunk(ns, 1+r.IntN(300)) {
		for i, got := range lookup(r.T, r.c, batch...) {
			r.compareOne(testID(batch[i]), got)
		}
	}
}

func (r *modelRun) compareOne(id image.ID, got image.Location) {
	good, bad := r.m.places(id)
	if len(good) == 0 && !got.IsZero() || len(good) > 0 && !slices.Contains(good, got) {
		r.Fatalf("lookup %v: got %v, want one of %v", id, got, good)
	}
	if r.IntN(10) != 0 {
		return
	}
	all, err := r.c.Locate(r.Context(), id)
	if err != nil || len(all) != len(good)+len(bad) {
		r.Fatalf("locate %v: got %v, %v, want %v then %v", id, all, err, good, bad)
	}
	if !slices.Equal(sortLocations(all[:len(good)]), sortLocations(good)) || !slices.Equal(sortLocations(all[len(good):]), sortLocations(bad)) {
		r.Fatalf("locate %v: got %v, want %v then %v", id, all, good, bad)
	}
	r.comparePage(id, all)
}

func (r *modelRun) comparePage(id image.ID, places []image.Location) {
	var want []*image.Page
	for _, at := range places {
		if pages := r.repo.pages[at.Segment]; pages != nil {
			want = append(want, pages[at.Record])
		}
	}
	got, at, err := r.c.Page(r.Context(), id)
	if len(want) == 0 {
		if !errors.Is(err, ErrNotFound) {
			r.Fatalf("page %v: got %v, want ErrNotFound", id, err)
		}
		return
	}
	if err != nil || *got != *want[0] || !slices.Contains(places, at) {
		r.Fatalf("page %v: at %v, %v", id, at, err)
	}
}
