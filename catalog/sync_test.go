package catalog

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"platter/image"
)

var ignoreElapsed = cmpopts.IgnoreFields(SyncReport{}, "Elapsed")

func mustSync(t *testing.T, c *Catalog, repo Repository) SyncReport {
	t.Helper()
	report, err := c.Sync(t.Context(), repo, nil)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestSyncFollowsTheRepository(t *testing.T) {
	repo := newFakeRepo()
	for i := range 20 {
		repo.add(testFooter(i, i*2, i*2+1), nil)
	}
	f, pages := testPages(30, 300, 301)
	repo.add(f, pages)
	for i := range 3 {
		name, m := testManifest(i)
		repo.manifests[name] = m
	}
	repo.damaged = []damagedRecord{{at(4, 1), testID(9)}, {at(2, 0), testID(4)}}
	c := mustOpen(t, testOptions(t))
	defer mustClose(t, c)
	want := SyncReport{Segments: 21, Added: 21, Records: 42, Manifests: 3, ManifestsAdded: 3, Damaged: 2}
	if diff := cmp.Diff(want, mustSync(t, c, repo), ignoreElapsed); diff != "" {
		t.Errorf("first sync (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]image.Location{at(4, 0), {}, {}, at(30, 1)}, lookup(t, c, 8, 9, 4, 301)); diff != "" {
		t.Errorf("lookup (-want +got):\n%s", diff)
	}
	want = SyncReport{Segments: 21, Manifests: 3, Damaged: 2}
	if diff := cmp.Diff(want, mustSync(t, c, repo), ignoreElapsed); diff != "" {
		t.Errorf("sync with nothing new (-want +got):\n%s", diff)
	}
	repo.remove(testSegment(4))
	repo.remove(testSegment(30))
	repo.add(testFooter(50, 8), nil)
	repo.damaged = repo.damaged[1:]
	name, _ := testManifest(1)
	delete(repo.manifests, name)
	want = SyncReport{Segments: 20, Added: 1, Dropped: 2, Records: 1, Manifests: 2, ManifestsDropped: 1, Damaged: 1}
	if diff := cmp.Diff(want, mustSync(t, c, repo), ignoreElapsed); diff != "" {
		t.Errorf("later sync (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]image.Location{at(50, 0), {}, {}, {}}, lookup(t, c, 8, 9, 4, 301)); diff != "" {
		t.Errorf("lookup (-want +got):\n%s", diff)
	}
	if _, _, err := c.Page(t.Context(), testID(301)); !errors.Is(err, ErrNotFound) {
		t.Errorf("page of a segment that is gone: %v, want ErrNotFound", err)
	}
}

func TestSyncPassesOverWhatItCannotRead(t *testing.T) {
	repo := newFakeRepo()
	repo.add(testFooter(1, 1), nil)
	repo.add(testFooter(2, 2), nil)
	f, pages := testPages(3, 30)
	repo.add(f, pages)
	repo.broken[testSegment(1)] = image.ErrCorrupt
	repo.badPages[testSegment(3)] = image.ErrCorrupt
	name, _ := testManifest(1)
	repo.manifests[name] = nil
	c := mustOpen(t, testOptions(t))
	defer mustClose(t, c)
	report := mustSync(t, c, repo)
	if report.Skipped != 3 || len(report.Warnings) != 3 || report.Added != 1 {
		t.Errorf("report %+v", report)
	}
	if diff := cmp.Diff([]image.Location{{}, at(2, 0), {}}, lookup(t, c, 1, 2, 30)); diff != "" {
		t.Errorf("lookup (-want +got):\n%s", diff)
	}
	clear(repo.broken)
	clear(repo.badPages)
	if report := mustSync(t, c, repo); report.Added != 2 {
		t.Errorf("report once they can be read %+v", report)
	}
}

func TestRebuildReplacesTheCatalog(t *testing.T) {
	repo := newFakeRepo()
	repo.add(testFooter(1, 1, 2), nil)
	opts := testOptions(t)
	c := mustOpen(t, opts)
	mustAdd(t, c, testFooter(9, 9), nil)
	mustClose(t, c)
	total := 0
	c, report, err := Rebuild(t.Context(), opts, repo, func(_, n int) { total = n })
	if err != nil {
		t.Fatal(err)
	}
	if report.Added != 1 || total != 1 {
		t.Errorf("report %+v, progress to %d", report, total)
	}
	mustClose(t, c)
	c = mustOpen(t, opts)
	defer mustClose(t, c)
	if diff := cmp.Diff([]image.Location{{}, at(1, 0), at(1, 1)}, lookup(t, c, 9, 1, 2)); diff != "" {
		t.Errorf("lookup (-want +got):\n%s", diff)
	}
}
