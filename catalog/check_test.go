package catalog

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"platter/image"
	"platter/image/segment"
)

func mustCheck(t testing.TB, c *Catalog, repo Repository) {
	t.Helper()
	report, err := c.Check(t.Context(), repo)
	if err != nil {
		t.Fatal(err)
	}
	if report.Different != 0 {
		t.Errorf("check: %d differences: %v", report.Different, report.Differences)
	}
}

// smallRepo has data and page segments, manifests and damage.
func smallRepo() *fakeRepo {
	repo := newFakeRepo()
	repo.add(testFooter(1, 1, 2, 3), nil)
	repo.add(testFooter(2, 3, 4), nil)
	var many []int
	for i := range 2*chunkRecords + 1 {
		many = append(many, 5000+i)
	}
	repo.add(testFooter(3, many...), nil)
	f, pages := testPages(10, 100, 101, 102)
	repo.add(f, pages)
	for i := range 3 {
		name, m := testManifest(i)
		repo.manifests[name] = m
	}
	repo.damaged = []damagedRecord{{at(1, 2), testID(3)}}
	return repo
}

func TestCheckFindsEachDifference(t *testing.T) {
	name, _ := testManifest(1)
	number := func(c *Catalog, n int) uint32 {
		info, err := c.segment(testSegment(n))
		if err != nil {
			panic(err)
		}
		return info.number
	}
	id3, id9 := testID(3), testID(9)
	for _, test := range []struct {
		name  string
		spoil func(c *Catalog, repo *fakeRepo, b *pebble.Batch)
		want  string
	}{
		{"segment gone", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) { r.remove(testSegment(2)) }, "not in the repository"},
		{"segment new", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) { r.add(testFooter(7, 7), nil) }, "not in the catalog"},
		{"footer other", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) {
			r.remove(testSegment(2))
			r.add(testFooter(2, 3, 5), nil)
		}, "records from 0 on differ"},
		{"footer unreadable", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) { r.broken[testSegment(1)] = image.ErrCorrupt }, "footer cannot be read"},
		{"pages unreadable", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) { r.badPages[testSegment(10)] = image.ErrCorrupt }, "pages cannot be read"},
		{"page other", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) { r.pages[testSegment(10)][1] = testPage(7) }, "page 1 differs"},
		{"manifest gone", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) { delete(r.manifests, name) }, "not in the repository"},
		{"manifest other", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) { _, r.manifests[name] = testManifest(8) }, "differs"},
		{"damage new", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) {
			r.damaged = append(r.damaged, damagedRecord{at: at(2, 0)})
		}, "does not know"},
		{"damage gone", func(_ *Catalog, r *fakeRepo, _ *pebble.Batch) { r.damaged = nil }, "not by the repository"},
		{"block missing", func(c *Catalog, _ *fakeRepo, b *pebble.Batch) {
			b.Delete(appendBlockKey(nil, hashID(&id3), number(c, 2), 0), nil)
		}, "is not found there"},
		{"block too many", func(c *Catalog, _ *fakeRepo, b *pebble.Batch) {
			b.Set(appendBlockKey(nil, hashID(&id9), number(c, 2), 0), nil, nil)
		}, "which is none of it"},
		{"list missing", func(c *Catalog, _ *fakeRepo, b *pebble.Batch) {
			b.Delete(numberKey(tagRecords, number(c, 3), 1), nil)
		}, "records from 512 on differ"},
		{"list of nobody", func(_ *Catalog, _ *fakeRepo, b *pebble.Batch) {
			b.Set(numberKey(tagRecords, 77, 0), listValue(testFooter(2, 3), 0), nil)
		}, "listed as number 77"},
		{"page of nobody", func(_ *Catalog, _ *fakeRepo, b *pebble.Batch) {
			b.Set(numberKey(tagPage, 77, 0), testPage(1).Encode(nil), nil)
		}, "belongs to no segment"},
		{"totals", func(_ *Catalog, _ *fakeRepo, _ *pebble.Batch) {}, "totals"},
	} {
		t.Run(test.name, func(t *testing.T) {
			repo := smallRepo()
			c := mustOpen(t, testOptions(t))
			defer mustClose(t, c)
			mustSync(t, c, repo)
			mustCheck(t, c, repo)
			b := c.db.NewBatch()
			test.spoil(c, repo, b)
			if err := c.apply("spoil", b, false); err != nil {
				t.Fatal(err)
			}
			if test.name == "totals" {
				c.totals.records++
			}
			report, err := c.Check(t.Context(), repo)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, d := range report.Differences {
				found = found || strings.Contains(d.Object+" "+d.Problem, test.want)
			}
			if !found {
				t.Errorf("want a difference with %q, got %v", test.want, report.Differences)
			}
		})
	}
}

func TestListingsOutOfOrderAreRefused(t *testing.T) {
	repo := smallRepo()
	repo.segments[0], repo.segments[1] = repo.segments[1], repo.segments[0]
	c := mustOpen(t, testOptions(t))
	defer mustClose(t, c)
	if _, err := c.Sync(t.Context(), repo, nil); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want an error of the repository", err)
	}
}

func TestManySegmentsAtOnceGiveTheSameCatalog(t *testing.T) {
	repo := smallRepo()
	for i := range bulkFloor {
		repo.add(testFooter(1000+i, i, i+1, 3*i), nil)
	}
	var ids []int
	for i := range 300 {
		ids = append(ids, 20000+i)
	}
	f, pages := testPages(20, ids...)
	repo.add(f, pages)
	half := &halfPages{repo, testSegment(20)}
	opts := testOptions(t)
	c := mustOpen(t, opts)
	report := mustSync(t, c, half)
	if want := len(repo.segments) - 1; report.Added != want || report.Skipped != 1 {
		t.Errorf("added %d and skipped %d, want %d and 1", report.Added, report.Skipped, want)
	}
	if got := lookup(t, c, 20001)[0]; !got.IsZero() {
		t.Errorf("page of a segment with damaged pages is at %v", got)
	}
	mustSync(t, c, repo)
	mustCheck(t, c, repo)
	if got := lookup(t, c, 20001)[0]; got != at(20, 1) {
		t.Errorf("page 20001 is at %v", got)
	}
	mustClose(t, c)
	c = mustOpen(t, opts)
	defer mustClose(t, c)
	mustCheck(t, c, repo)
}

// halfPages breaks off in the middle of a segment's pages.
type halfPages struct {
	*fakeRepo
	broken image.SegmentID
}

func (h *halfPages) Pages(ctx context.Context, f *segment.Footer, visit func(int, *image.Page, image.ID) error) error {
	n := 0
	return h.fakeRepo.Pages(ctx, f, func(record int, p *image.Page, id image.ID) error {
		if n++; f.ID == h.broken && n > len(f.Records)/2 {
			return image.ErrCorrupt
		}
		return visit(record, p, id)
	})
}
