package catalog

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sync/errgroup"

	"platter/image"
)

func TestManyGoroutinesShareACatalog(t *testing.T) {
	c := mustOpen(t, testOptions(t))
	defer mustClose(t, c)
	const segments, records = 40, 300
	var g errgroup.Group
	g.Go(func() error {
		for n := range segments {
			ids := make([]int, records)
			for i := range ids {
				ids[i] = n*records + i
			}
			if err := c.AddSegment(t.Context(), testFooter(n, ids...), nil); err != nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() error {
		for n := range segments {
			c.SetCondemned([]image.SegmentID{testSegment(n)})
			if err := c.MarkDamaged(t.Context(), testID(n), at(n, 0)); err != nil {
				return err
			}
		}
		c.SetCondemned(nil)
		return nil
	})
	for range 3 {
		g.Go(func() error {
			for n := range segments {
				ids, found := make([]image.ID, records), make([]image.Location, records)
				for i := range ids {
					ids[i] = testID(n*records + i)
				}
				if err := c.Lookup(t.Context(), ids, found); err != nil {
					return err
				}
				for i := range found {
					if !found[i].IsZero() && found[i] != at(n, uint32(i)) {
						return errors.New(found[i].String())
					}
				}
				if n%20 != 0 {
					continue
				}
				c.segments.build.Lock()
				err := c.buildFilter(t.Context())
				c.segments.build.Unlock()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	ids := make([]int, segments*records)
	for i := range ids {
		ids[i] = i
	}
	missing := 0
	for i, got := range lookup(t, c, ids...) {
		if got.IsZero() && i%records != 0 {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d blocks of %d are missing", missing, len(ids))
	}
}

func TestMemoryStaysWithinItsBounds(t *testing.T) {
	opts := testOptions(t)
	repo := bigRepo{segments: 600, records: 1000}
	c, _, err := Rebuild(t.Context(), opts, repo, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, c)
	ids, found := make([]image.ID, 1000), make([]image.Location, 1000)
	for n := range 600 {
		for i := range ids {
			ids[i] = bigID(n, i)
		}
		if err := c.Lookup(t.Context(), ids, found); err != nil {
			t.Fatal(err)
		}
		for i := range found {
			if want := (image.Location{Segment: bigSegment(n), Record: uint32(i)}); found[i] != want {
				t.Fatalf("block %d of segment %d is at %v", i, n, found[i])
			}
		}
	}
	if err := c.buildFilter(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := c.segments
	if s.lists.used > s.lists.limit || s.filter.Load().bytes() > s.filterLimit {
		t.Errorf("lists take %d of %d bytes, the filter %d of %d", s.lists.used, s.lists.limit, s.filter.Load().bytes(), s.filterLimit)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("%d KiB of heap in use after a collection, %d are the catalog's share", m.HeapAlloc>>10, c.opts.Memory>>10)
	if m.HeapAlloc > uint64(c.opts.Memory)+8<<20 {
		t.Errorf("heap of %d bytes, want at most %d and some for the test", m.HeapAlloc, c.opts.Memory)
	}
}
