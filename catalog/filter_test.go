package catalog

import (
	"context"
	"os"
	"testing"

	"platter/image"
)

func TestFilterForgetsNothingAndRarelyErrs(t *testing.T) {
	const keys = 100_000
	for _, test := range []struct {
		limit int64
		worst float64 // share of absent keys taken for present
	}{
		{1 << 30, 0.02}, {keys * filterBits / 8, 0.02}, {keys * 5 / 8, 0.15}, {keys * 2 / 8, 0.45},
	} {
		f := newFilter(keys, test.limit)
		if f.bytes() > test.limit {
			t.Errorf("filter of %d bytes, limit %d", f.bytes(), test.limit)
		}
		for n := range keys {
			id := testID(n)
			f.add(hashID(&id))
		}
		wrong := 0
		for n := range keys {
			id, other := testID(n), testID(n+keys)
			if !f.has(hashID(&id)) {
				t.Fatalf("limit %d: key %d is gone", test.limit, n)
			}
			if f.has(hashID(&other)) {
				wrong++
			}
		}
		share := float64(wrong) / keys
		t.Logf("%.1f bits for each key, %d probes: %.2f %% wrong", float64(f.bytes()*8)/keys, f.probes, share*100)
		if share > test.worst {
			t.Errorf("limit %d: %.3f of absent keys pass, want at most %.3f", test.limit, share, test.worst)
		}
	}
	if f := newFilter(keys, keys/8); f != nil {
		t.Error("a filter of 1 bit for each key was made")
	}
}

// lookupMany asks for n absent blocks and one that is there.
func lookupMany(t *testing.T, c *Catalog, n, known int) image.Location {
	t.Helper()
	ids := make([]image.ID, n)
	for i := range ids {
		ids[i] = testID(1<<30 + i)
	}
	ids = append(ids, testID(known))
	at := make([]image.Location, len(ids))
	if err := c.Lookup(context.Background(), ids, at); err != nil {
		t.Fatal(err)
	}
	return at[n]
}

func TestFilterIsBuiltWhenAskedForMuchAndKept(t *testing.T) {
	opts := testOptions(t)
	c := mustOpen(t, opts)
	mustAdd(t, c, testFooter(1, 1, 2, 3), nil)
	lookupMany(t, c, 100, 2)
	if c.segments.filter.Load() != nil {
		t.Error("a small run paid for a filter")
	}
	if got := lookupMany(t, c, buildFloor, 2); got != at(1, 1) {
		t.Errorf("block 2 is at %v", got)
	}
	if c.segments.filter.Load() == nil {
		t.Error("no filter was built")
	}
	mustAdd(t, c, testFooter(2, 4), nil)
	if got := lookupMany(t, c, 1, 4); got != at(2, 0) {
		t.Errorf("a block added after the filter was built is at %v", got)
	}
	mustClose(t, c)

	c = mustOpen(t, opts)
	if got := lookupMany(t, c, loadFloor, 4); got != at(2, 0) || c.segments.filter.Load() == nil {
		t.Errorf("block 4 is at %v; filter loaded %v", got, c.segments.filter.Load() != nil)
	}
	// Without a filter's knowledge of this segment, the file is out of date.
	c.segments.filter.Store(nil)
	mustAdd(t, c, testFooter(3, 5), nil)
	mustClose(t, c)

	c = mustOpen(t, opts)
	if got := lookupMany(t, c, loadFloor, 5); got != at(3, 0) || c.segments.filter.Load() != nil {
		t.Errorf("block 5 is at %v; outdated filter loaded %v", got, c.segments.filter.Load() != nil)
	}
	mustClose(t, c)
}

func TestDamagedFilterIsNotUsed(t *testing.T) {
	opts := testOptions(t)
	c := mustOpen(t, opts)
	mustAdd(t, c, testFooter(1, 1, 2, 3), nil)
	lookupMany(t, c, buildFloor, 2)
	mustClose(t, c)
	load := loader(t, opts)
	path := opts.Dir + "/" + filterName
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(good); i += 1 + i/8 {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1 << (i % 8)
		if i%2 == 0 {
			bad = bad[:i]
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if load() != nil {
			t.Fatalf("filter with byte %d of %d changed was loaded", i, len(good))
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if load() == nil {
		t.Error("the good filter was not loaded")
	}
}

// loader returns a function that loads the filter as a catalog would.
func loader(t *testing.T, opts Options) func() *filter {
	t.Helper()
	d, err := openDirectory(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.close() })
	h, err := d.head()
	if err != nil {
		t.Fatal(err)
	}
	return func() *filter {
		f, err := filterFile{d, h.instance}.load(1, 1<<20)
		if err != nil {
			return nil
		}
		return f
	}
}
