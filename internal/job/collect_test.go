package job

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"platter/block"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store/mem"
	"platter/retention"
)

// clock sets the store's clock to this machine's, as collections want.
func clock(env *Env) {
	st := env.Repo.Store.(*mem.Store)
	st.Advance(time.Since(must(st.Now(context.Background()))))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func mustCollect(t *testing.T, env *Env, opts CollectOptions) *CollectReport {
	t.Helper()
	if opts.MaxDelete == 0 {
		opts.MaxDelete = 1
	}
	r, err := Collect(context.Background(), env, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// nights makes so many images of a disk of which a part changes every time.
func nights(t *testing.T, env *Env, d *disk, r *rand.Rand, n int) (images []*image.Manifest, contents [][]byte) {
	t.Helper()
	for range n {
		random(r, d.data[r.IntN(len(d.data)/2):][:len(d.data)/4])
		images = append(images, mustBackup(t, env, d, BackupOptions{}).Image)
		contents = append(contents, bytes.Clone(d.data))
	}
	return images, contents
}

func TestPruneThenCollectFreesWhatNoImageNeeds(t *testing.T) {
	env := newEnv(t, 4<<10)
	clock(env)
	d := &disk{name: "disk", data: make([]byte, 4<<20)}
	images, contents := nights(t, env, d, seeded(t, 1), 5)
	p, err := Prune(context.Background(), env, PruneOptions{Policy: retention.Policy{Last: 1}})
	if err != nil || p.Kept != 1 || p.Dropped != 4 {
		t.Fatalf("prune: %+v, %v; want 1 kept, 4 dropped", p, err)
	}
	r := mustCollect(t, env, CollectOptions{Grace: time.Hour})
	if len(r.Condemned) == 0 || len(r.Deleted) != 0 {
		t.Fatalf("condemned %d, deleted %d; want some, none", len(r.Condemned), len(r.Deleted))
	}
	if again := mustCollect(t, env, CollectOptions{Grace: time.Hour}); len(again.Condemned) != len(r.Condemned) || len(again.Deleted) != 0 {
		t.Errorf("a second run: condemned %d, deleted %d; want %d, none", len(again.Condemned), len(again.Deleted), len(r.Condemned))
	}
	before := segments(t, env)
	r = mustCollect(t, env, CollectOptions{})
	if len(r.Deleted) == 0 || segments(t, env) != before-len(r.Deleted)+r.Written {
		t.Errorf("deleted %d and wrote %d, %d segments left of %d", len(r.Deleted), r.Written, segments(t, env), before)
	}
	if got := content(t, env, images[4]); !bytes.Equal(got, contents[4]) {
		t.Error("the image that was kept differs")
	}
	if m := mustBackup(t, env, d, BackupOptions{}).Image; !bytes.Equal(content(t, env, m), d.data) {
		t.Error("an image made after the collection differs")
	}
}

func segments(t *testing.T, env *Env) (n int) {
	t.Helper()
	err := env.Repo.Segments(context.Background(), func(image.SegmentID, int64, time.Time) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCollectWaitsForABackupThatBeganBefore(t *testing.T) {
	// D20: a run that may have hit a segment before it was condemned protects it.
	env := newEnv(t, 4<<10)
	clock(env)
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	random(seeded(t, 2), d.data)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	want := bytes.Clone(d.data)
	second := envOf(t, env.Repo)
	started, proceed, done := make(chan bool), make(chan bool), make(chan error)
	other := &disk{name: "other", data: d.data}
	other.hook = func(off int64) {
		if off == 0 {
			started <- true
			<-proceed
		}
	}
	var late *image.Manifest
	go func() {
		reports, err := Backup(context.Background(), second, BackupOptions{Sources: []block.Source{other}})
		if err == nil {
			late = reports[0].Image
		}
		done <- err
	}()
	<-started
	forget(t, env, m)
	r := mustCollect(t, env, CollectOptions{})
	if len(r.Deleted) != 0 || len(r.Condemned) == 0 {
		t.Errorf("deleted %d, condemned %d; want none, some", len(r.Deleted), len(r.Condemned))
	}
	proceed <- true
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustCollect(t, env, CollectOptions{})
	if got := content(t, env, late); !bytes.Equal(got, want) {
		t.Error("the late image differs")
	}
}

func forget(t *testing.T, env *Env, m *image.Manifest) {
	t.Helper()
	err := env.Catalog.Manifests(context.Background(), func(name string, o *image.Manifest) error {
		if o.ID == m.ID {
			return env.Repo.Forget(context.Background(), name, "test")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBackupTreatsCondemnedSegmentsAsAbsent(t *testing.T) {
	env := newEnv(t, 4<<10)
	clock(env)
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	random(seeded(t, 3), d.data)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	forget(t, env, m)
	if r := mustCollect(t, env, CollectOptions{Grace: time.Hour}); len(r.Condemned) != 2 {
		t.Fatalf("condemned %d segments, want 2", len(r.Condemned))
	}
	again := mustBackup(t, env, d, BackupOptions{}).Image
	if again.Stats.New != int64(len(d.data)) {
		t.Errorf("stored %d new bytes, want all %d", again.Stats.New, len(d.data))
	}
	mustCollect(t, env, CollectOptions{})
	if got := content(t, env, again); !bytes.Equal(got, d.data) {
		t.Error("image differs")
	}
}

func TestCollectDeletesNothingWhileAnImageCannotBeRead(t *testing.T) {
	// D21.
	env := newEnv(t, 4<<10)
	clock(env)
	st := env.Repo.Store.(*mem.Store)
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	images, _ := nights(t, env, d, seeded(t, 4), 3)
	forget(t, env, images[0])
	name := must(firstManifest(env))
	object := must(st.Get(context.Background(), name, 1<<20))
	object[len(object)/2] ^= 1
	st.Replace(name, object)
	before := segments(t, env)
	if _, err := Collect(context.Background(), env, CollectOptions{MaxDelete: 1}); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("got %v, want a damaged manifest", err)
	}
	if segments(t, env) != before {
		t.Error("segments were deleted")
	}
}

func firstManifest(env *Env) (first string, err error) {
	err = env.Repo.Manifests(context.Background(), func(name string) error {
		if first == "" {
			first = name
		}
		return nil
	})
	return first, err
}

func TestCollectHeedsTheCapAndTheClock(t *testing.T) {
	env := newEnv(t, 4<<10)
	clock(env)
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	images, _ := nights(t, env, d, seeded(t, 5), 3)
	for _, m := range images {
		forget(t, env, m)
	}
	before := segments(t, env)
	if _, err := Collect(context.Background(), env, CollectOptions{MaxDelete: 0.5}); err == nil {
		t.Error("deleting everything was not refused by the cap")
	}
	env.Repo.Store.(*mem.Store).Advance(48 * time.Hour)
	if r := mustCollect(t, env, CollectOptions{}); len(r.Deleted) != 0 || len(r.Notices) == 0 {
		t.Errorf("deleted %d with clocks two days apart, notices %q", len(r.Deleted), r.Notices)
	}
	if segments(t, env) != before {
		t.Error("segments were deleted")
	}
	if r := mustCollect(t, env, CollectOptions{DryRun: true}); len(r.Deleted) == 0 && len(r.Condemned) == 0 {
		t.Error("a dry run tells nothing")
	}
}

func TestOnlyOneCollectionAtATime(t *testing.T) {
	env := newEnv(t, 4<<10)
	clock(env)
	h, err := env.Repo.Acquire(context.Background(), repo.LeaseCollect, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Collect(context.Background(), env, CollectOptions{MaxDelete: 1}); err == nil {
		t.Error("a second collection was not refused")
	}
	h.Release(context.Background())
	mustCollect(t, env, CollectOptions{})
}

func TestBackupStoresAgainWhatWasCondemnedMeanwhile(t *testing.T) {
	// D22, with a collector that does not see the lease: one that ran out.
	env := newEnv(t, 4<<10)
	clock(env)
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	random(seeded(t, 6), d.data)
	first := mustBackup(t, env, d, BackupOptions{}).Image
	other := &disk{name: "other", data: bytes.Clone(d.data)}
	other.hook = firstRead(func() {
		var list []repo.CondemnedSegment
		err := env.Repo.Segments(context.Background(), func(id image.SegmentID, size int64, _ time.Time) error {
			list = append(list, repo.CondemnedSegment{Segment: id, Size: size, Epoch: 1})
			return nil
		})
		if err == nil {
			err = env.Repo.PublishCondemned(context.Background(), &repo.Condemned{Epoch: 1, Segments: list})
		}
		if err != nil {
			t.Error(err)
		}
	})
	m := mustBackup(t, env, other, BackupOptions{}).Image
	condemned := must(env.Repo.NewestCondemned(context.Background()))
	if len(condemned.Segments) == 0 {
		t.Fatal("nothing was condemned")
	}
	for _, s := range condemned.Segments {
		if err := env.Repo.Store.Delete(context.Background(), segment.Name(s.Segment)); err != nil {
			t.Fatal(err)
		}
	}
	if got := content(t, env, m); !bytes.Equal(got, d.data) {
		t.Error("the image leans on segments that were condemned while it was made")
	}
	_ = first
}
