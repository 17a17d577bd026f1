package catalog

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"platter/image"
	"platter/image/segment"
	"platter/image/store"
)

// fakeRepo is a repository in memory.
type fakeRepo struct {
	segments  []*segment.Footer
	pages     map[image.SegmentID][]*image.Page
	manifests map[string]*image.Manifest
	damaged   []damagedRecord
	broken    map[image.SegmentID]error // footers that cannot be read
	badPages  map[image.SegmentID]error // segments whose pages cannot be read
}

func newFakeRepo() *fakeRepo {
	return &fakeRepo{
		pages:     map[image.SegmentID][]*image.Page{},
		manifests: map[string]*image.Manifest{},
		broken:    map[image.SegmentID]error{},
		badPages:  map[image.SegmentID]error{},
	}
}

func (r *fakeRepo) add(f *segment.Footer, pages []*image.Page) {
	r.segments = append(r.segments, f)
	slices.SortFunc(r.segments, func(a, b *segment.Footer) int { return compareSegments(a.ID, b.ID) })
	if pages != nil {
		r.pages[f.ID] = pages
	}
}

func (r *fakeRepo) remove(id image.SegmentID) {
	r.segments = slices.DeleteFunc(r.segments, func(f *segment.Footer) bool { return f.ID == id })
}

func (r *fakeRepo) Segments(_ context.Context, f func(image.SegmentID, int64, time.Time) error) error {
	for _, s := range r.segments {
		if err := f(s.ID, s.Size, time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

func (r *fakeRepo) Footer(_ context.Context, id image.SegmentID) (*segment.Footer, error) {
	if err := r.broken[id]; err != nil {
		return nil, err
	}
	for _, s := range r.segments {
		if s.ID == id {
			return s, nil
		}
	}
	return nil, store.ErrNotFound
}

func (r *fakeRepo) Footers(ctx context.Context, list []segment.Object, f func(segment.Object, *segment.Footer, error) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, o := range list {
		g.Go(func() error {
			footer, err := r.Footer(ctx, o.ID)
			return f(o, footer, err)
		})
	}
	return g.Wait()
}

func (r *fakeRepo) Pages(_ context.Context, f *segment.Footer, visit func(int, *image.Page, image.ID) error) error {
	if err := r.badPages[f.ID]; err != nil {
		return err
	}
	for i, p := range r.pages[f.ID] {
		if err := visit(i, p, f.Records[i].ID); err != nil {
			return err
		}
	}
	return nil
}

func (r *fakeRepo) Manifests(_ context.Context, f func(string) error) error {
	names := make([]string, 0, len(r.manifests))
	for n := range r.manifests {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		if err := f(n); err != nil {
			return err
		}
	}
	return nil
}

func (r *fakeRepo) Manifest(_ context.Context, name string) (*image.Manifest, error) {
	if m := r.manifests[name]; m != nil {
		return m, nil
	}
	return nil, store.ErrNotFound
}

func (r *fakeRepo) Damaged(_ context.Context, f func(image.ID, image.Location) error) error {
	for _, d := range r.damaged {
		if err := f(d.id, d.at); err != nil {
			return err
		}
	}
	return nil
}

// testID makes ID n. Its first 8 bytes are one of 256 values, as in the test
// mode of repositories.
func testID(n int) (id image.ID) {
	s := rand.NewPCG(uint64(n), 1)
	id[7] = byte(n)
	for i := 8; i < len(id); i += 8 {
		binary.BigEndian.PutUint64(id[i:], s.Uint64())
	}
	return id
}

func testSegment(n int) (id image.SegmentID) {
	s := rand.NewPCG(uint64(n), 2)
	binary.BigEndian.PutUint64(id[:], s.Uint64())
	binary.BigEndian.PutUint64(id[8:], s.Uint64())
	return id
}

// testFooter makes a data segment that holds the IDs with these numbers.
func testFooter(n int, ids ...int) *segment.Footer {
	f := &segment.Footer{ID: testSegment(n), Kind: segment.Data, Size: 1 << 20}
	for _, id := range ids {
		f.Records = append(f.Records, segment.Record{ID: testID(id), Kind: segment.Data, Plain: 65536, Stored: 30000})
	}
	return f
}

// testPages makes a page segment whose pages have IDs with these numbers.
func testPages(n int, ids ...int) (*segment.Footer, []*image.Page) {
	f := testFooter(n, ids...)
	f.Kind = segment.Pages
	pages := make([]*image.Page, len(ids))
	for i, id := range ids {
		f.Records[i].Kind = segment.Pages
		pages[i] = testPage(id)
	}
	return f, pages
}

func testPage(n int) *image.Page {
	p := new(image.Page)
	for i := range p.Entries {
		if i%5 != 0 {
			p.Entries[i] = testID(n*1000 + i)
			p.Hints[i] = image.Location{Segment: testSegment(n), Record: uint32(i)}
		}
	}
	return p
}

func source(pages []*image.Page) PageSource {
	if pages == nil {
		return nil
	}
	return func(_ context.Context, f func(int, *image.Page) error) error {
		for i, p := range pages {
			if err := f(i, p); err != nil {
				return err
			}
		}
		return nil
	}
}

func testManifest(n int) (string, *image.Manifest) {
	m := &image.Manifest{
		Volume: fmt.Sprintf("host/disk%d", n), Seq: uint64(n), Time: time.Unix(int64(n), 5).UTC(), BlockSize: 65536,
		Size: int64(n) << 20, Root: testID(n), Tracker: image.Tracking{Generation: []byte{1, 2}},
	}
	m.ID[3] = byte(n)
	return fmt.Sprintf("images/%02x/%016x", n, n), m
}

func testOptions(t testing.TB) Options {
	return Options{Dir: t.TempDir() + "/catalog", Repository: [16]byte{1, 2, 3}, BlockSize: 65536, Memory: MinMemory}
}

func mustOpen(t testing.TB, opts Options) *Catalog {
	t.Helper()
	c, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustClose(t testing.TB, c *Catalog) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustAdd(t testing.TB, c *Catalog, f *segment.Footer, pages []*image.Page) {
	t.Helper()
	if err := c.AddSegment(t.Context(), f, source(pages)); err != nil {
		t.Fatal(err)
	}
}

// lookup returns where the blocks with these numbers are.
func lookup(t testing.TB, c *Catalog, ns ...int) []image.Location {
	t.Helper()
	ids := make([]image.ID, len(ns))
	for i, n := range ns {
		ids[i] = testID(n)
	}
	at := make([]image.Location, len(ns))
	if err := c.Lookup(context.Background(), ids, at); err != nil {
		t.Fatal(err)
	}
	return at
}

func at(n int, record uint32) image.Location {
	return image.Location{Segment: testSegment(n), Record: record}
}

func sortLocations(l []image.Location) []image.Location {
	l = slices.Clone(l)
	slices.SortFunc(l, func(a, b image.Location) int {
		return cmp.Or(compareSegments(a.Segment, b.Segment), cmp.Compare(a.Record, b.Record))
	})
	return l
}
