package job

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"platter/catalog"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// A collection of a repository of ten million blocks and a thousand images
// marks them all within memory. The repository has no content, only structure;
// it takes 3 GiB in the temporary folder, and the test runs only with
// PLATTER_TEST_HUGE=1.
func TestCollectAHugeRepository(t *testing.T) {
	const bs, base, images, pagesChanged, changed, memory = 64 << 10, 9_000_000, 1000, 40, 25, 256 << 20
	ctx := context.Background()
	r := hugeRepository(t, bs)
	h := newHistory(t, r, base)
	for n := range images {
		h.night(n, pagesChanged, changed)
	}
	h.flush(h.data)
	h.flush(h.pages)
	c, err := catalog.Open(ctx, catalog.Options{Dir: t.TempDir(), Repository: r.ID, BlockSize: bs, Memory: memory / 4})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	env := &Env{Repo: r, Catalog: c, Memory: memory, Host: "host", Warn: func(s string) { t.Log(s) }}
	t.Logf("%d blocks, %d pages, %d images, %d segments", h.blocks, h.stored, images, segmentsOf(t, r))
	measure(t, "bring the catalog up to date", memory, func() error { return env.sync(ctx) })
	measure(t, "mark, plan and tell (--dry-run)", memory, func() error {
		report, err := Collect(ctx, env, CollectOptions{MaxDelete: 1, MaxUnused: 0.1, DryRun: true})
		if err == nil {
			t.Logf("%d segments in use, %d condemned, %d to repack", report.Segments, len(report.Condemned), len(report.Repacked))
		}
		if err == nil && len(report.Condemned)+len(report.Deleted) > 0 {
			t.Errorf("%d segments are said to be needless", len(report.Condemned)+len(report.Deleted))
		}
		return err
	})
	col, err := beginCollect(ctx, env, CollectOptions{MaxDelete: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer col.end(ctx)
	col.state = new(repo.Condemned)
	measure(t, "write indexes", memory, func() error { return col.index(ctx) })
}

// measure runs f and tells its time, processor time and peak of memory.
func measure(t *testing.T, what string, memory int64, f func() error) {
	t.Helper()
	forgetPeak(t, memory)
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start, cpu := time.Now(), used()
	if err := f(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	peak := resident(t, "VmHWM")
	t.Logf("%s: %.1f s, %.1f s of processor, %d MiB of memory at most", what, time.Since(start).Seconds(), (used() - cpu).Seconds(), peak>>20)
	if peak > memory {
		t.Errorf("%s: took %d MiB of memory, want %d at most", what, peak>>20, memory>>20)
	}
}

// A history is a volume whose images share most pages.
type history struct {
	t           *testing.T
	repo        *repo.Repo
	data, pages *shelf
	hasher      *image.Hasher
	leaves      []image.Page // the first few thousand of which change
	ids         []image.ID
	at          []image.Location
	known       map[image.ID]image.Location // inner pages
	blocks      uint64
	stored      int
	rng         *rand.Rand
	base        int64
}

// A shelf fills segments of one kind.
type shelf struct {
	kind segment.Kind
	buf  []byte
	b    *segment.Builder
	most int
}

// changingLeaves is how many leaves, of the volume's first, change at all.
const changingLeaves = 4000

func newHistory(t *testing.T, r *repo.Repo, base int64) *history {
	h := &history{
		t: t, repo: r, hasher: r.Hasher(), known: map[image.ID]image.Location{}, rng: rand.New(rand.NewPCG(3, 3)), base: base,
		data:  &shelf{kind: segment.Data, buf: store.AllocAligned(1 << 20), most: 1024},
		pages: &shelf{kind: segment.Pages, buf: store.AllocAligned(8 << 20), most: 1 << 16},
	}
	for n := int64(0); n < base; n += image.PageEntries {
		var p image.Page
		for i := range min(image.PageEntries, base-n) {
			p.Entries[i], p.Hints[i] = h.block()
		}
		id, at := h.page(&p)
		h.ids, h.at = append(h.ids, id), append(h.at, at)
		if len(h.leaves) < changingLeaves {
			h.leaves = append(h.leaves, p)
		}
	}
	return h
}

func (h *history) add(s *shelf, id image.ID, plain uint32, flags uint8, payload []byte) image.Location {
	if s.b != nil && (s.b.Len() >= s.most || !s.b.Fits(len(payload))) {
		h.flush(s)
	}
	if s.b == nil {
		s.b = h.repo.NewSegment(s.buf, s.kind, [16]byte{byte(s.kind)})
	}
	n := s.b.Add(segment.Record{ID: id, Plain: plain, Flags: flags}, payload)
	return image.Location{Segment: s.b.ID(), Record: n}
}

func (h *history) flush(s *shelf) {
	object, f := s.b.Seal()
	if err := h.repo.Store.Put(context.Background(), segment.Name(f.ID), object); err != nil {
		h.t.Fatal(err)
	}
	s.b = nil
}

// block stores a block that nobody reads.
func (h *history) block() (image.ID, image.Location) {
	h.blocks++
	id := image.ID{1}
	binary.BigEndian.PutUint64(id[8:], h.blocks*0x9E3779B97F4A7C15)
	return id, h.add(h.data, id, 64<<10, segment.FlagLZ4, []byte("filler"))
}

func (h *history) page(p *image.Page) (image.ID, image.Location) {
	plain := p.Encode(nil)
	id := h.hasher.Page(plain[:image.PageSize])
	h.stored++
	return id, h.add(h.pages, id, uint32(len(plain)), 0, plain)
}

// night changes some blocks in some leaves and commits an image.
func (h *history) night(n, leaves, blocks int) {
	if n > 0 {
		for range leaves {
			k := h.rng.IntN(len(h.leaves))
			p := &h.leaves[k]
			first := h.rng.IntN(image.PageEntries - blocks)
			for i := first; i < first+blocks; i++ {
				p.Entries[i], p.Hints[i] = h.block()
			}
			h.ids[k], h.at[k] = h.page(p)
		}
	}
	tree := image.NewTree(h.base, func(_ int, p *image.Page) (image.ID, image.Location, error) {
		id := h.hasher.Page(p.Content(nil))
		if at, ok := h.known[id]; ok {
			return id, at, nil
		}
		_, h.known[id] = h.page(p)
		return id, h.known[id], nil
	})
	for k := range h.ids {
		if err := tree.Subtree(0, h.ids[k], h.at[k]); err != nil {
			h.t.Fatal(err)
		}
	}
	m := &image.Manifest{Volume: "host/huge", BlockSize: h.repo.Config.BlockSize, Size: h.base * int64(h.repo.Config.BlockSize)}
	binary.LittleEndian.PutUint32(m.ID[:], uint32(n+1))
	var err error
	if m.Root, m.RootAt, err = tree.Finish(); err == nil {
		_, err = h.repo.Commit(context.Background(), m)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}
