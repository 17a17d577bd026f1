package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"platter/image"
)

// flipWorld is a closed catalog with tables, a log, a filter and a head.
func flipWorld(t *testing.T) (*vfs.MemFS, *story) {
	t.Helper()
	mem := vfs.NewMem()
	s := &story{repo: smallRepo()}
	c := mustOpen(t, memOptions(mem))
	mustSync(t, c, s.repo)
	if err := c.db.Flush(); err != nil {
		t.Fatal(err)
	}
	f := testFooter(40, 41, 42)
	s.repo.add(f, nil)
	mustAdd(t, c, f, nil)
	if err := c.buildFilter(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, c)
	return mem, s
}

// filesBelow returns all files below dir.
func filesBelow(t *testing.T, fs vfs.FS, dir string) (files []string) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		info, err := fs.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			files = append(files, filesBelow(t, fs, path)...)
		} else {
			files = append(files, path)
		}
	}
	return files
}

// spots returns offsets to try in a file of so many bytes: both ends, and some
// between.
func spots(r *rand.Rand, size int) (at []int) {
	ends, between := 12, 12
	if long() {
		ends, between = 512, 200
	}
	for i := range min(ends, size) {
		at = append(at, i, size-1-i)
	}
	for range between {
		if size > 0 {
			at = append(at, r.IntN(size))
		}
	}
	return at
}

func TestDamageInAnyFileIsFoundOrHarmless(t *testing.T) {
	mem, s := flipWorld(t)
	r := rand.New(rand.NewPCG(1, 1))
	count := map[string]int{}
	for _, path := range filesBelow(t, mem, "/catalog") {
		info, err := mem.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range spots(r, int(info.Size())) {
			bit := byte(1) << r.IntN(8)
			for what, spoil := range map[string]func([]byte) []byte{
				fmt.Sprintf("%s: byte %d, bit %#x flipped", path, at, bit): func(b []byte) []byte { b[at] ^= bit; return b },
				fmt.Sprintf("%s: cut to %d bytes", path, at):               func(b []byte) []byte { return b[:at] },
			} {
				count[s.tryDamaged(t, mem, path, spoil)]++
				if t.Failed() {
					t.Fatal(what)
				}
			}
		}
	}
	t.Logf("%v", count)
}

// tryDamaged works with a catalog of which one file is spoilt.
func (s *story) tryDamaged(t *testing.T, good *vfs.MemFS, path string, spoil func([]byte) []byte) string {
	t.Helper()
	mem := vfs.NewMem()
	if _, err := vfs.Clone(good, mem, "/catalog", "/catalog"); err != nil {
		t.Fatal(err)
	}
	rewrite(t, mem, path, spoil)
	err := s.useDamaged(t, memOptions(mem))
	if err == nil {
		return "harmless"
	}
	if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFailed) {
		t.Errorf("got %v, want ErrDamaged", err)
	}
	c, _, err := Rebuild(t.Context(), memOptions(mem), s.repo, nil)
	if err != nil {
		t.Errorf("rebuild: %v", err)
		return "lost"
	}
	mustCheck(t, c, s.repo)
	mustClose(t, c)
	return "found"
}

func rewrite(t *testing.T, fs vfs.FS, path string, change func([]byte) []byte) {
	t.Helper()
	d := &directory{fs: fs}
	b, err := d.get(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(change(b)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// useDamaged does with a catalog what a backup does. It returns the first
// error; what is answered before it must be right.
func (s *story) useDamaged(t *testing.T, opts Options) error {
	c, err := Open(t.Context(), opts)
	if err != nil {
		return err
	}
	_, err = c.Sync(t.Context(), s.repo, nil)
	if err == nil {
		err = s.ask(t, c)
	}
	if err == nil {
		var report CheckReport
		if report, err = c.Check(t.Context(), s.repo); err == nil && report.Different > 0 {
			err = fmt.Errorf("%v: %w", report.Differences, ErrDamaged)
		}
	}
	return errors.Join(err, c.Close())
}

func (s *story) ask(t *testing.T, c *Catalog) error {
	ctx := context.Background()
	for _, f := range s.repo.segments {
		ids, found := make([]image.ID, len(f.Records)), make([]image.Location, len(f.Records))
		for i := range f.Records {
			ids[i] = f.Records[i].ID
		}
		if err := c.Lookup(ctx, ids, found); err != nil {
			return err
		}
		for i, at := range found {
			if err := s.truth(ids[i], at, map[image.SegmentID]bool{at.Segment: true}); err != nil {
				t.Errorf("block %v: %v", ids[i], err)
			}
		}
		for i, want := range s.repo.pages[f.ID] {
			p, _, err := c.Page(ctx, ids[i])
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			if err == nil && *p != *want {
				t.Errorf("page %v is another", ids[i])
			}
		}
	}
	return c.Manifests(ctx, func(name string, m *image.Manifest) error {
		if s.repo.manifests[name] == nil || s.repo.manifests[name].ID != m.ID {
			t.Errorf("manifest %s is another", name)
		}
		return nil
	})
}
