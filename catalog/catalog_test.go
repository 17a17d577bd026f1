package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"platter/image"
)

func TestLookupFindsWhatWasAdded(t *testing.T) {
	opts := testOptions(t)
	c := mustOpen(t, opts)
	mustAdd(t, c, testFooter(1, 10, 11, 12), nil)
	mustAdd(t, c, testFooter(2, 20, 11), nil)
	check := func(c *Catalog) {
		t.Helper()
		got := lookup(t, c, 10, 12, 20, 99, 266)
		want := []image.Location{at(1, 0), at(1, 2), at(2, 0), {}, {}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("lookup (-want +got):\n%s", diff)
		}
		got, err := c.Locate(t.Context(), testID(11))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(sortLocations([]image.Location{at(1, 1), at(2, 1)}), sortLocations(got)); diff != "" {
			t.Errorf("locate (-want +got):\n%s", diff)
		}
	}
	check(c)
	mustClose(t, c)
	c = mustOpen(t, opts)
	check(c)
	mustClose(t, c)
}

func TestSegmentSizesAroundChunksAndBatches(t *testing.T) {
	c := mustOpen(t, testOptions(t))
	defer mustClose(t, c)
	for i, n := range []int{0, 1, chunkRecords - 1, chunkRecords, chunkRecords + 1, 3*chunkRecords + 7, 40 * chunkRecords} {
		ids := make([]int, n)
		for j := range ids {
			ids[j] = i<<20 + j
		}
		f := testFooter(i, ids...)
		mustAdd(t, c, f, nil)
		mustAdd(t, c, f, nil) // once more changes nothing
		for j, got := range lookup(t, c, ids...) {
			if got != at(i, uint32(j)) {
				t.Fatalf("segment of %d: record %d is at %v, want %v", n, j, got, at(i, uint32(j)))
			}
		}
	}
	s, err := c.Stats(t.Context())
	if err != nil || s.Segments != 7 || s.Blocks != int64(1+3*chunkRecords+3*chunkRecords+7+40*chunkRecords) {
		t.Errorf("stats %+v, %v", s, err)
	}
}

func TestPageReturnsWhatWasAdded(t *testing.T) {
	c := mustOpen(t, testOptions(t))
	defer mustClose(t, c)
	for _, n := range []int{1, 2, 700} { // the last is written in parts
		ids := make([]int, n)
		for i := range ids {
			ids[i] = n*10000 + i
		}
		f, pages := testPages(n, ids...)
		mustAdd(t, c, f, pages)
		for i := range ids {
			p, where, err := c.Page(t.Context(), testID(ids[i]))
			if err != nil || *p != *pages[i] || where != at(n, uint32(i)) {
				t.Fatalf("page %d of %d: at %v, %v, equal %v", i, n, where, err, p != nil && *p == *pages[i])
			}
		}
	}
	if _, _, err := c.Page(t.Context(), testID(5)); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown page: %v, want ErrNotFound", err)
	}
}

func TestPagesThatFailAddNothing(t *testing.T) {
	c := mustOpen(t, testOptions(t))
	defer mustClose(t, c)
	ids := make([]int, 700)
	for i := range ids {
		ids[i] = i
	}
	f, pages := testPages(1, ids...)
	boom := errors.New("boom")
	err := c.AddSegment(t.Context(), f, func(ctx context.Context, add func(int, *image.Page) error) error {
		return errors.Join(source(pages)(ctx, add), boom)
	})
	if !errors.Is(err, boom) {
		t.Fatalf("got %v, want boom", err)
	}
	if got := lookup(t, c, 0)[0]; !got.IsZero() {
		t.Errorf("page of a segment that failed is found at %v", got)
	}
	n := 0
	for _, tag := range []byte{tagPage, tagRecords, tagBlock, tagUnsure, tagSegment} {
		if err := c.scan(t.Context(), "scan", bounds(tag), func(_, _ []byte) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n != 0 {
		t.Errorf("%d entries are left", n)
	}
	if err := c.AddSegment(t.Context(), f, nil); err == nil {
		t.Error("a page segment without pages was added")
	}
	if err := c.AddSegment(t.Context(), f, source(pages[:1])); err == nil {
		t.Error("a page segment with a page missing was added")
	}
	mustAdd(t, c, f, pages)
	if got := lookup(t, c, 5)[0]; got != at(1, 5) {
		t.Errorf("page 5 is at %v", got)
	}
}

func TestCondemnedDamagedAndDroppedAreAbsent(t *testing.T) {
	opts := testOptions(t)
	c := mustOpen(t, opts)
	mustAdd(t, c, testFooter(1, 1, 2, 3), nil)
	mustAdd(t, c, testFooter(2, 2, 3), nil)
	mustAdd(t, c, testFooter(3, 3), nil)
	lookup(t, c, 1, 2, 3) // they are in memory now

	c.SetCondemned([]image.SegmentID{testSegment(1)})
	if err := c.MarkDamaged(t.Context(), testID(3), at(3, 0)); err != nil {
		t.Fatal(err)
	}
	want := []image.Location{{}, at(2, 0), at(2, 1)}
	if diff := cmp.Diff(want, lookup(t, c, 1, 2, 3)); diff != "" {
		t.Errorf("lookup (-want +got):\n%s", diff)
	}
	places, err := c.Locate(t.Context(), testID(3))
	if diff := cmp.Diff([]image.Location{at(2, 1), at(1, 2), at(3, 0)}, places); diff != "" || err != nil {
		t.Errorf("locate (-want +got): %v\n%s", err, diff)
	}
	if err := c.DropSegments(t.Context(), []image.SegmentID{testSegment(2), testSegment(77)}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]image.Location{{}, {}, {}}, lookup(t, c, 1, 2, 3)); diff != "" {
		t.Errorf("lookup after drop (-want +got):\n%s", diff)
	}
	mustClose(t, c)

	c = mustOpen(t, opts) // nothing is condemned, record 3/0 still damaged
	defer mustClose(t, c)
	if diff := cmp.Diff([]image.Location{at(1, 0), at(1, 1), at(1, 2)}, lookup(t, c, 1, 2, 3)); diff != "" {
		t.Errorf("lookup after opening again (-want +got):\n%s", diff)
	}
	mustAdd(t, c, testFooter(2, 2, 3), nil)
	if got := lookup(t, c, 2)[0]; got.IsZero() {
		t.Error("a block added again is absent")
	}
}

func TestManifestsComeBackInOrder(t *testing.T) {
	opts := testOptions(t)
	c := mustOpen(t, opts)
	want := map[string]*image.Manifest{}
	for _, n := range []int{7, 200, 3} {
		name, m := testManifest(n)
		want[name] = m
		if err := c.PutManifest(t.Context(), name, m); err != nil {
			t.Fatal(err)
		}
	}
	name, _ := testManifest(9)
	if err := c.DropManifest(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	mustClose(t, c)
	c = mustOpen(t, opts)
	defer mustClose(t, c)
	var names []string
	err := c.Manifests(t.Context(), func(name string, m *image.Manifest) error {
		names = append(names, name)
		if diff := cmp.Diff(want[name], m); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		return nil
	})
	if err != nil || len(names) != 3 || !slices.IsSorted(names) {
		t.Errorf("names %q, %v", names, err)
	}
	stop := errors.New("stop")
	if err := c.Manifests(t.Context(), func(string, *image.Manifest) error { return stop }); err != stop {
		t.Errorf("got %v, want the caller's own error", err)
	}
}

func TestSpacesAreApart(t *testing.T) {
	c := mustOpen(t, testOptions(t))
	defer mustClose(t, c)
	ctx := t.Context()
	for _, e := range [][3]string{{"run", "a", "1"}, {"run", "ab", "2"}, {"run", "b", "3"}, {"ru", "na", "4"}, {"\xff", "\xff\xff", "5"}} {
		if err := c.Put(ctx, e[0], e[1], []byte(e[2])); err != nil {
			t.Fatal(err)
		}
	}
	list := func(space, prefix string) (s string) {
		err := c.Scan(ctx, space, prefix, func(key string, value []byte) error {
			s += fmt.Sprintf("%s=%s ", key, value)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return s
	}
	for _, e := range [][3]string{{"run", "", "a=1 ab=2 b=3 "}, {"run", "a", "a=1 ab=2 "}, {"ru", "", "na=4 "}, {"\xff", "\xff", "\xff\xff=5 "}, {"x", "", ""}} {
		if got := list(e[0], e[1]); got != e[2] {
			t.Errorf("scan %q %q: got %q, want %q", e[0], e[1], got, e[2])
		}
	}
	if v, err := c.Get(ctx, "run", "ab"); err != nil || string(v) != "2" {
		t.Errorf("get: %q, %v", v, err)
	}
	if err := c.Delete(ctx, "run", "ab"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(ctx, "run", "ab"); !errors.Is(err, ErrNotFound) {
		t.Errorf("get after delete: %v, want ErrNotFound", err)
	}
	if c.Put(ctx, "", "k", nil) == nil || c.Put(ctx, strings.Repeat("x", 256), "k", nil) == nil {
		t.Error("a space with a name of 0 or 256 bytes was taken")
	}
}

func TestSecondOpenNamesTheHolder(t *testing.T) {
	opts := testOptions(t)
	c := mustOpen(t, opts)
	_, err := Open(t.Context(), opts)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("got %v, want ErrLocked by %d", err, os.Getpid())
	}
	opts.LockWait = 1 << 40
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, opts); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
	mustClose(t, c)
	mustClose(t, mustOpen(t, opts))
}

func TestForeignCatalogIsRefused(t *testing.T) {
	opts := testOptions(t)
	mustClose(t, mustOpen(t, opts))
	other := opts
	other.Repository = [16]byte{9}
	_, err := Open(t.Context(), other)
	if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "010203") {
		t.Errorf("open: %v, want ErrForeign naming the repository", err)
	}
	if _, _, err := Rebuild(t.Context(), other, newFakeRepo(), nil); !errors.Is(err, ErrForeign) {
		t.Errorf("rebuild: %v, want ErrForeign", err)
	}
	other = opts
	other.BlockSize = 4096
	if _, err := Open(t.Context(), other); !errors.Is(err, ErrDamaged) {
		t.Errorf("other block size: %v, want ErrDamaged", err)
	}
	mustClose(t, mustOpen(t, opts))
}

func TestFilesArePrivate(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	opts := testOptions(t)
	c := mustOpen(t, opts)
	mustAdd(t, c, testFooter(1, 1, 2), nil)
	if err := c.db.Flush(); err != nil {
		t.Fatal(err)
	}
	checkPrivate(t, opts.Dir)
	mustClose(t, c)
	checkPrivate(t, opts.Dir)
}

func checkPrivate(t *testing.T, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
