package job

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/faulty"
	"platter/image/store/mem"
)

// pruned makes four images of a disk and forgets the first three.
func pruned(t *testing.T, env *Env) (images []*image.Manifest, contents [][]byte) {
	t.Helper()
	clock(env)
	images, contents = nights(t, env, &disk{name: "disk", data: make([]byte, 4<<20)}, seeded(t, 1), 4)
	pruneLast(t, env, 1)
	wantNumbers(t, env, 4)
	return images, contents
}

func mustUndelete(t *testing.T, env *Env, spec string) *UndeleteReport {
	t.Helper()
	r, err := Undelete(context.Background(), env, UndeleteOptions{Image: spec, Reason: "undeleted"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUndeleteBringsBackTheVeryImage(t *testing.T) {
	// D44: before anything is condemned, nothing has to be stored.
	env := newEnv(t, 4<<10)
	images, contents := pruned(t, env)
	ctx := context.Background()
	list := must(ListDeleted(ctx, env, "disk"))
	if len(list) != 3 || list[1].Image.ID != images[1].ID || !list[1].Restorable || !strings.Contains(list[1].Reason, "not one of the last 1") {
		t.Fatalf("deleted: %+v", list)
	}
	other := envOf(t, env.Repo)
	if _, err := other.Catalog.Sync(ctx, env.Repo, nil); err != nil {
		t.Fatal(err)
	}
	before := segments(t, env)
	r := mustUndelete(t, env, images[1].ID.String()[:8])
	if r.Image.Seq != 2 || r.Stored != 0 || segments(t, env) != before {
		t.Errorf("number %d, %d bytes stored, %d segments; want 2, none, %d", r.Image.Seq, r.Stored, segments(t, env), before)
	}
	wantNumbers(t, env, 2, 4)
	wantNumbers(t, other, 2, 4)
	if got := content(t, env, images[1]); !bytes.Equal(got, contents[1]) {
		t.Error("it restores to other bytes")
	}
	// The chain of manifests is whole, the image stays, and none is deleted twice.
	for _, e := range []*Env{env, other} {
		if report, err := Verify(ctx, e, VerifyOptions{ReadData: true}); err != nil || report.Images != 2 {
			t.Errorf("verify: %+v, %v", report, err)
		}
	}
	pruneLast(t, other, 1)
	wantNumbers(t, env, 2, 4)
	if list := must(ListDeleted(ctx, env, "")); len(list) != 2 {
		t.Errorf("%d deleted images, want 2", len(list))
	}
	if _, err := Undelete(ctx, env, UndeleteOptions{Image: images[1].ID.String(), Reason: "x"}); err == nil {
		t.Error("an image that is there was undeleted")
	}
	// Forgotten once more, it can come back once more.
	if _, err := Unpin(ctx, env, UnpinOptions{Image: images[1].ID.String()}); err != nil {
		t.Fatal(err)
	}
	pruneLast(t, other, 1)
	wantNumbers(t, env, 4)
	mustUndelete(t, other, "disk@"+images[1].Time.Format(time.RFC3339Nano))
	wantNumbers(t, env, 2, 4)
}

func TestUndeleteStoresAgainWhatIsCondemned(t *testing.T) {
	// D44, in the grace period and past its end, with collections afterwards.
	for _, grace := range []time.Duration{time.Hour, 24 * time.Hour} {
		env := newEnv(t, 4<<10)
		images, contents := pruned(t, env)
		ctx := context.Background()
		gc := envOf(t, env.Repo)
		report := mustCollect(t, gc, CollectOptions{Grace: 24 * time.Hour})
		if len(report.Condemned) == 0 {
			t.Fatal("nothing was condemned")
		}
		env.Repo.Store.(*mem.Store).Advance(grace)
		r := mustUndelete(t, env, images[0].ID.String())
		if r.Stored == 0 {
			t.Error("nothing was stored again")
		}
		// What it stands on now is in no segment that was condemned then.
		for _, s := range report.Condemned {
			if err := env.Repo.Store.Delete(ctx, segment.Name(s.Segment)); err != nil {
				t.Fatal(err)
			}
		}
		if got := content(t, env, images[0]); !bytes.Equal(got, contents[0]) {
			t.Error("the image leans on condemned segments")
		}
		for range 2 {
			mustCollect(t, gc, CollectOptions{})
		}
		if got := content(t, env, images[0]); !bytes.Equal(got, contents[0]) {
			t.Error("a collection took what the image needs")
		}
		if got := content(t, env, images[3]); !bytes.Equal(got, contents[3]) {
			t.Error("the image that was kept differs")
		}
	}
}

func TestUndeleteRefusesWhatIsGone(t *testing.T) {
	env := newEnv(t, 4<<10)
	images, contents := pruned(t, env)
	ctx := context.Background()
	for range 2 {
		mustCollect(t, env, CollectOptions{})
	}
	before := segments(t, env)
	_, err := Undelete(ctx, env, UndeleteOptions{Image: images[0].ID.String(), Reason: "x"})
	if !errors.Is(err, errGone) || !strings.Contains(err.Error(), "gone from the repository") {
		t.Errorf("got %v", err)
	}
	wantNumbers(t, env, 4)
	if n := segments(t, env); n != before || countObjects(t, env, "pins/") != 0 {
		t.Errorf("%d segments, want %d, and no pin", n, before)
	}
	if live, _, err := env.Repo.Leases(ctx); err != nil || len(live) != 0 {
		t.Errorf("leases left: %+v, %v", live, err)
	}
	if got := content(t, env, images[3]); !bytes.Equal(got, contents[3]) {
		t.Error("the image that was kept differs")
	}
	if list := must(ListDeleted(ctx, env, "")); len(list) != 3 || list[0].Restorable {
		t.Errorf("image 1 is said to be restorable: %+v", list)
	}
}

func TestCollectionDuringUndelete(t *testing.T) {
	// A collector condemns, and another deletes without grace, at every step of
	// an undelete: it fails and leaves nothing, or the image is whole.
	for nth := 1; nth <= 12; nth++ {
		under := mem.New()
		st := faulty.New(under)
		env := envOf(t, newRepo(t, st, 4<<10))
		under.Advance(time.Since(must(under.Now(context.Background()))))
		ctx := context.Background()
		images, contents := nights(t, env, &disk{name: "disk", data: make([]byte, 1<<20)}, seeded(t, uint64(nth)), 3)
		pruneLast(t, env, 1)
		direct := *env.Repo
		direct.Store = under
		gc := envOf(t, &direct)
		if nth%2 == 0 {
			mustCollect(t, gc, CollectOptions{Grace: time.Hour})
		}
		var steps atomic.Int64
		st.Before(func(faulty.Op) {
			if steps.Add(1) == int64(nth*3) {
				for range 2 {
					mustCollect(t, gc, CollectOptions{})
				}
			}
		})
		r, err := Undelete(ctx, env, UndeleteOptions{Image: images[0].ID.String(), Reason: "x"})
		st.Before(nil)
		if err != nil {
			t.Logf("at step %d: %v", nth*3, err)
		}
		for range 2 {
			mustCollect(t, gc, CollectOptions{})
		}
		there := len(numbers(t, env)) == 2
		if there != (r != nil) {
			t.Fatalf("at step %d: the image is there: %v; %+v, %v", nth*3, there, r, err)
		}
		if there {
			if got := content(t, gc, images[0]); !bytes.Equal(got, contents[0]) {
				t.Errorf("at step %d: the image that came back differs", nth*3)
			}
		}
		if got := content(t, gc, images[2]); !bytes.Equal(got, contents[2]) {
			t.Errorf("at step %d: the image that was kept differs", nth*3)
		}
	}
}

func TestUndeleteFailsWithItsStoreAndLeavesNothing(t *testing.T) {
	under := mem.New()
	st := faulty.New(under)
	env := envOf(t, newRepo(t, st, 4<<10))
	under.Advance(time.Since(must(under.Now(context.Background()))))
	images, contents := nights(t, env, &disk{name: "disk", data: make([]byte, 1<<20)}, seeded(t, 1), 2)
	pruneLast(t, env, 1)
	mustCollect(t, env, CollectOptions{Grace: time.Hour})
	full := errors.New("full")
	for _, prefix := range []string{"leases/", "segments/", "pins/", "images/"} {
		st.Fail(faulty.Rule{Kind: faulty.Put, Prefix: prefix, Err: full})
		if _, err := Undelete(context.Background(), env, UndeleteOptions{Image: images[0].ID.String(), Reason: "x"}); !errors.Is(err, full) {
			t.Errorf("%s cannot be written: %v", prefix, err)
		}
		st.Heal()
		wantNumbers(t, env, 2)
		if n := countObjects(t, env, "pins/"); n != 0 {
			t.Errorf("%s cannot be written: %d pins left", prefix, n)
		}
	}
	mustUndelete(t, env, images[0].ID.String())
	if got := content(t, env, images[0]); !bytes.Equal(got, contents[0]) {
		t.Error("the image differs")
	}
}

func TestUndeleteMeetsAWriterThatGivesTheNumberBack(t *testing.T) {
	// Another run has put a manifest under the freed name and is about to find
	// the tombstone: nothing of it is taken for the image.
	env := newEnv(t, 4<<10)
	images, _ := pruned(t, env)
	ctx := context.Background()
	name := env.Repo.ManifestName(images[2])
	if err := env.Repo.Store.Put(ctx, name, []byte("another's")); err != nil {
		t.Fatal(err)
	}
	tomb := must(env.Repo.Tombstone(ctx, name))
	if err := env.Repo.Revive(ctx, name, tomb); !errors.Is(err, store.ErrExists) {
		t.Errorf("got %v", err)
	}
	if err := env.Repo.Store.Delete(ctx, name); err != nil {
		t.Fatal(err)
	}
	mustUndelete(t, env, images[2].ID.String())
	object := must(env.Repo.Store.Get(ctx, name, 1<<20))
	if !bytes.Equal(object, tomb.Object) {
		t.Error("the name has other bytes than before")
	}
}

func TestPruneAtWorkForgetsTheUndeletedImage(t *testing.T) {
	// A prune that began before the pin may forget the image again: undelete
	// says so instead of reporting an image that is about to go.
	env := newEnv(t, 4<<10)
	images, _ := pruned(t, env)
	ctx := context.Background()
	prune := must(env.Repo.Acquire(ctx, repo.LeasePrune, [16]byte{7}))
	defer prune.Release(ctx)
	r, err := Undelete(ctx, env, UndeleteOptions{Image: images[2].ID.String(), Reason: "x"})
	if err == nil || !strings.Contains(err.Error(), "a prune is at work") || r == nil {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestSealedImagesComeBack(t *testing.T) {
	x := newSealedExhibit(t)
	ctx := context.Background()
	list := must(ListDeleted(ctx, x.env, ""))
	back := 0
	for _, d := range list {
		if d.Restorable {
			mustUndelete(t, x.env, d.Image.ID.String())
			back++
		} else if _, err := Undelete(ctx, x.env, UndeleteOptions{Image: d.Image.ID.String(), Reason: "x"}); !errors.Is(err, errGone) {
			t.Errorf("an image whose blocks were collected: %v, want %v", err, errGone)
		}
	}
	if len(list) != 3 || back == 0 || back == len(list) {
		t.Fatalf("%d deleted images, %d come back; want 3, and some of them", len(list), back)
	}
	if report, err := Verify(ctx, x.env, VerifyOptions{ReadData: true}); err != nil || report.Images != len(x.want)+back {
		t.Errorf("%+v, %v", report, err)
	}
}

// A mortal store takes so many more objects and deletions; none, and it takes
// any number.
type mortal struct {
	store.Store
	dies bool
	left int
}

func (m *mortal) die() error {
	if m.left--; m.dies && m.left < 0 {
		return errKilled
	}
	return nil
}

func (m *mortal) Put(ctx context.Context, name string, parts ...[]byte) error {
	if err := m.die(); err != nil {
		return err
	}
	return m.Store.Put(ctx, name, parts...)
}

func (m *mortal) Delete(ctx context.Context, name string) error {
	if err := m.die(); err != nil {
		return err
	}
	return m.Store.Delete(ctx, name)
}

// D44: what an image needs may have been moved since it was pruned, and the rest
// of it condemned or deleted, by a collection that stopped anywhere: the image
// comes back whole, and stays so, or it is refused and nothing of it is left.
func TestUndeleteAfterRepacking(t *testing.T) {
	whole, refused, moved := 0, 0, 0
	for n := 0; ; n++ {
		env := newEnv(t, 4<<10)
		clock(env)
		images, contents := nights(t, env, &disk{name: "disk", data: make([]byte, 256<<10)}, seeded(t, uint64(n)), 3)
		pruneLast(t, env, 1)
		under := env.Repo.Store.(*mem.Store)
		st := &mortal{Store: under}
		r := *env.Repo
		r.Store = st
		gc := envOf(t, &r)
		if n%2 == 1 { // the second deletes what the first condemned
			moved += len(mustCollect(t, gc, CollectOptions{}).Repacked)
		}
		st.dies, st.left = true, n/2
		_, died := Collect(t.Context(), gc, CollectOptions{MaxDelete: 1})
		st.dies = false
		under.Advance(repo.LeaseTTL + time.Minute) // it could not give its lease up
		_, err := Undelete(t.Context(), env, UndeleteOptions{Image: images[0].ID.String(), Reason: "x"})
		switch {
		case err == nil:
			whole++
			images, contents = slices.Delete(images, 1, 2), slices.Delete(contents, 1, 2)
		case errors.Is(err, errGone):
			refused++
			images, contents = images[2:], contents[2:]
		default:
			t.Fatalf("%d: %v", n, err)
		}
		for range 2 {
			if got := numbers(t, env); len(got) != len(images) {
				t.Errorf("%d: images %d, want %d of them", n, got, len(images))
			}
			sameImages(t, env, images, contents)
			mustCollect(t, gc, CollectOptions{})
		}
		if n%2 == 1 && died == nil {
			break
		}
	}
	if whole == 0 || refused == 0 || moved == 0 {
		t.Errorf("%d images came back, %d were refused, %d segments were moved", whole, refused, moved)
	}
}
