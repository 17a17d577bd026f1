package job

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"platter/block"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/faulty"
	"platter/image/store/mem"
)

// footers returns those of all segments of a kind.
func footers(t *testing.T, r *repo.Repo, kind segment.Kind) (list []*segment.Footer) {
	t.Helper()
	err := r.Segments(context.Background(), func(id image.SegmentID, _ int64, _ time.Time) error {
		f, err := r.Footer(context.Background(), id)
		if err == nil && f.Kind == kind {
			list = append(list, f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestCollectKeepsWhatNeitherHintNorCatalogKnows(t *testing.T) {
	// Every hint is wrong, for the segments were stored under second names; and
	// the catalog passes over the page segment, for a page in it is damaged.
	under := mem.New()
	under.Advance(time.Since(must(under.Now(context.Background()))))
	st := faulty.New(under)
	env := envOf(t, newRepo(t, st, 4<<10))
	r := seeded(t, 1)
	a := &disk{name: "a", data: make([]byte, 900<<10)}
	random(r, a.data)
	for _, nth := range []int{1, 3} { // data, data again, pages, pages again
		st.Fail(faulty.Rule{Kind: faulty.Put, Prefix: "segments/", Nth: nth, Err: store.ErrNotDurable})
	}
	first := must(Backup(context.Background(), env, BackupOptions{Sources: []block.Source{a}}))[0].Image
	st.Heal()
	if st.Count(faulty.Put, "segments/") != 4 {
		t.Fatalf("%d segments put, want 2 twice", st.Count(faulty.Put, "segments/"))
	}
	pages := footers(t, env.Repo, segment.Pages)[0]
	if pages.ID == first.RootAt.Segment {
		t.Fatal("the hint is right")
	}
	// The page segment also holds a page that no image needs, and that is bad.
	spoilt := spoil(t, env, under, pages)
	bare := envOf(t, env.Repo)
	for range 2 {
		mustCollect(t, bare, CollectOptions{})
	}
	if _, err := under.Head(context.Background(), segment.Name(spoilt)); err != nil {
		t.Errorf("the page segment is gone: %v", err)
	}
	if got := content(t, env, first); !bytes.Equal(got, a.data) {
		t.Error("the image differs")
	}
}

// spoil puts a page segment in place of another one: the same pages and one
// more, which is damaged.
func spoil(t *testing.T, env *Env, under *mem.Store, f *segment.Footer) image.SegmentID {
	t.Helper()
	ctx := context.Background()
	b := env.Repo.NewSegment(make([]byte, f.Size+8192), segment.Pages, f.Run)
	for i := range f.Records {
		rec := f.Records[i]
		payload := make([]byte, rec.Stored)
		if err := under.ReadAt(ctx, segment.Name(f.ID), payload, rec.Offset); err != nil {
			t.Fatal(err)
		}
		b.Add(rec, payload)
	}
	var p image.Page
	p.Entries[0] = image.ID{1}
	plain := p.Encode(nil)
	b.Add(segment.Record{ID: image.ID{2}, Plain: uint32(len(plain))}, plain) // no page has this ID
	data, spoilt := b.Seal()
	if err := under.Put(ctx, segment.Name(spoilt.ID), data); err != nil {
		t.Fatal(err)
	}
	if err := under.Delete(ctx, segment.Name(f.ID)); err != nil {
		t.Fatal(err)
	}
	return spoilt.ID
}

func TestBackupThatSleptThroughCollections(t *testing.T) {
	// Its lease runs out in the middle, and collections without grace take what
	// it has stored and what it has found stored, lists and all: it fails, or
	// its image is whole.
	for collections := 1; collections <= 3; collections++ {
		env := newEnv(t, 4<<10)
		clock(env)
		r := seeded(t, uint64(collections))
		old := &disk{name: "old", data: make([]byte, 2<<20)}
		random(r, old.data)
		before := mustBackup(t, env, old, BackupOptions{}).Image
		d := &disk{name: "disk", data: make([]byte, 22<<20)}
		random(r, d.data)
		copy(d.data, old.data)
		gc := envOf(t, env.Repo)
		var slept atomic.Bool
		d.hook = func(off int64) {
			if off < 18<<20 || slept.Swap(true) {
				return
			}
			for segments(t, env) < 3 { // until it has stored one of its own
				runtime.Gosched()
			}
			forget(t, env, before)
			env.Repo.Store.(*mem.Store).Advance(repo.LeaseTTL + time.Second)
			for range collections {
				mustCollect(t, gc, CollectOptions{})
			}
		}
		little := *env
		little.Memory = 32 << 20 // for segments of 8 MiB
		reports, err := Backup(context.Background(), &little, BackupOptions{Sources: []block.Source{d}})
		if err == nil {
			if got := content(t, env, reports[0].Image); !bytes.Equal(got, d.data) {
				t.Error("the image differs")
			}
		} else {
			t.Logf("%d collections: %v", collections, err)
		}
		d.hook = nil
		again := mustBackup(t, env, d, BackupOptions{}).Image
		if got := content(t, env, again); !bytes.Equal(got, d.data) {
			t.Errorf("%d collections: the next image differs", collections)
		}
	}
}

func TestBackupRescuesWhatItsMapPointsAwayFrom(t *testing.T) {
	// The pages say that the blocks lie in a segment that is long gone; they
	// were stored again, and where they are now is condemned meanwhile.
	env := newEnv(t, 4<<10)
	clock(env)
	ctx := context.Background()
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	random(seeded(t, 3), d.data)
	mustBackup(t, env, d, BackupOptions{})
	first := footers(t, env.Repo, segment.Data)[0]
	var ids []image.ID
	var at []image.Location
	for i, rec := range first.Records {
		ids, at = append(ids, rec.ID), append(at, image.Location{Segment: first.ID, Record: uint32(i)})
	}
	if err := env.Repo.NoteDamage(ctx, ids, at); err != nil {
		t.Fatal(err)
	}
	if m := mustBackup(t, env, d, BackupOptions{}).Image; m.Stats.New != int64(len(d.data)) {
		t.Fatalf("stored %d bytes again, want %d", m.Stats.New, len(d.data))
	}
	mustCollect(t, env, CollectOptions{})
	mustCollect(t, env, CollectOptions{})
	if _, err := env.Repo.Footer(ctx, first.ID); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("the damaged segment is still there: %v", err)
	}
	state := must(env.Repo.NewestCondemned(ctx))
	d.hook = firstRead(func() {
		next := &repo.Condemned{Epoch: state.Epoch + 1}
		err := env.Repo.Segments(ctx, func(id image.SegmentID, size int64, _ time.Time) error {
			next.Segments = append(next.Segments, repo.CondemnedSegment{Segment: id, Size: size, Epoch: next.Epoch})
			return nil
		})
		if err := errors.Join(err, env.Repo.PublishCondemned(ctx, next)); err != nil {
			t.Error(err)
		}
	})
	m := mustBackup(t, env, d, BackupOptions{}).Image
	for id := range must(env.Repo.NewestCondemned(ctx)).IDs() {
		if err := env.Repo.Store.Delete(ctx, segment.Name(id)); err != nil {
			t.Fatal(err)
		}
	}
	if got := content(t, env, m); !bytes.Equal(got, d.data) {
		t.Error("the image leans on segments that were condemned while it was made")
	}
}
