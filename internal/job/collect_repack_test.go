package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"platter/catalog"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/faulty"
	"platter/image/store/mem"
)

// worn makes a repository of several images of a disk, of which the last ones
// are left: most segments are needed in part.
func worn(t *testing.T, env *Env, seed uint64) (images []*image.Manifest, contents [][]byte) {
	t.Helper()
	d := &disk{name: "disk", data: make([]byte, 1<<20+777)}
	images, contents = nights(t, env, d, seeded(t, seed), 8)
	for _, m := range images[:6] {
		forget(t, env, m)
	}
	return images[6:], contents[6:]
}

// sameImages reads images without a catalog, with it, and verifies every byte.
func sameImages(t *testing.T, env *Env, images []*image.Manifest, contents [][]byte) {
	t.Helper()
	for i, m := range images {
		for _, e := range []*Env{{Repo: env.Repo, Memory: env.Memory}, env} {
			got, err := readImage(e, m)
			if err != nil || !bytes.Equal(got, contents[i]) {
				t.Errorf("image %d differs (%v)", m.Seq, err)
			}
		}
	}
	bare := &Env{Repo: env.Repo, Memory: env.Memory, Host: "host"}
	if v, err := Verify(context.Background(), bare, VerifyOptions{ReadData: true}); err != nil {
		t.Errorf("verify: %v: %+v", err, v.Damage)
	}
}

func storedBytes(t *testing.T, env *Env) (n int64) {
	t.Helper()
	err := env.Repo.Segments(context.Background(), func(_ image.SegmentID, size int64, _ time.Time) error { n += size; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCollectRepacksWhatIsNeededInPart(t *testing.T) {
	// D45, in clear and sealed.
	for name, env := range map[string]*Env{"clear": newEnv(t, 4<<10), "sealed": newSealedEnv(t)} {
		clock(env)
		images, contents := worn(t, env, 40)
		before := storedBytes(t, env)
		dry := mustCollect(t, env, CollectOptions{MaxUnused: 0.02, DryRun: true})
		if len(dry.Repacked) == 0 || dry.Moved == 0 || storedBytes(t, env) != before {
			t.Errorf("%s: a dry run tells of %d segments and %d bytes", name, len(dry.Repacked), dry.Moved)
		}
		r := mustCollect(t, env, CollectOptions{MaxUnused: 0.02, Grace: time.Hour})
		if len(r.Repacked) != len(dry.Repacked) || r.Written == 0 || r.Moved == 0 || r.Waiting == 0 {
			t.Errorf("%s: %+v, and the dry run told of %d segments", name, r, len(dry.Repacked))
		}
		sameImages(t, env, images, contents) // while both places are there
		for _, s := range r.Repacked {
			if _, err := env.Repo.Store.Head(context.Background(), segment.Name(s.Segment)); err != nil {
				t.Errorf("%s: a source is gone within the grace: %v", name, err)
			}
		}
		mustCollect(t, env, CollectOptions{MaxUnused: 0.02})
		for _, s := range r.Repacked {
			if _, err := env.Repo.Store.Head(context.Background(), segment.Name(s.Segment)); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: a source is still there: %v", name, err)
			}
		}
		again := mustCollect(t, env, CollectOptions{MaxUnused: 0.02})
		if len(again.Repacked) != 0 {
			t.Errorf("%s: repacked %d segments again", name, len(again.Repacked))
		}
		live := int64(0)
		for _, c := range contents[1:] {
			live += int64(len(c)) // random, so that it is stored as it is
		}
		if after := storedBytes(t, env); after >= before*8/10 {
			t.Errorf("%s: %d bytes stored, %d before", name, after, before)
		}
		sameImages(t, env, images, contents)
		// A new machine knows it all, and the next night stores nothing again.
		fresh := envOf(t, env.Repo)
		d := &disk{name: "disk", data: contents[1]}
		if m := mustBackup(t, fresh, d, BackupOptions{}).Image; m.Stats.New != 0 {
			t.Errorf("%s: with a new catalog %d bytes were stored again", name, m.Stats.New)
		}
	}
}

func TestOldHintsLeadToWhatWasMoved(t *testing.T) {
	// A restore without a catalog reads no footer but those it needs, however
	// often the blocks were moved; and finds all when the moves are lost.
	under := mem.New()
	under.Advance(time.Since(mem.Epoch()))
	st := faulty.New(under)
	env := envOf(t, newRepo(t, st, 4<<10))
	d := &disk{name: "disk", data: make([]byte, 6<<20)}
	random(seeded(t, 41), d.data)
	first := mustBackup(t, env, d, BackupOptions{}).Image
	want := bytes.Clone(d.data)
	other := &disk{name: "other", data: make([]byte, 2<<20)}
	for round := range 3 { // each makes parts of what holds the first image useless
		random(seeded(t, uint64(50+round)), other.data)
		copy(other.data[1<<20:], want[round<<20:][:1<<20])
		m := mustBackup(t, env, other, BackupOptions{}).Image
		forget(t, env, m)
		repackAll(t, env)
		mustCollect(t, env, CollectOptions{})
	}
	if _, err := under.Head(context.Background(), segment.Name(first.RootAt.Segment)); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("nothing was moved: %v", err)
	}
	for range 20 { // others that have nothing to do with it
		b := env.Repo.NewSegment(make([]byte, 64<<10), segment.Data, [16]byte{3})
		b.Add(segment.Record{ID: image.ID{9, byte(segments(t, env))}, Plain: 100}, make([]byte, 100))
		object, f := b.Seal()
		if err := under.Put(context.Background(), segment.Name(f.ID), object); err != nil {
			t.Fatal(err)
		}
	}
	st.Forget()
	if got := content(t, env, first); !bytes.Equal(got, want) {
		t.Error("image differs")
	}
	if n := st.Count(faulty.List, "segments/"); n != 0 {
		t.Errorf("listed the segments %d times", n)
	}
	heads := st.Count(faulty.Head, "segments/")
	t.Logf("%d heads, %d reads of segments for a cold read", heads, st.Count(faulty.ReadAt, "segments/"))
	if heads > 12 {
		t.Errorf("looked at %d segments", heads)
	}
	// Without the moves one scan of footers does for all windows.
	err := env.Repo.MovesNames(context.Background(), func(name string, _ int64) error { return under.Delete(context.Background(), name) })
	if err != nil {
		t.Fatal(err)
	}
	st.Forget()
	rd := (&Env{Repo: env.Repo, Memory: 64 << 20}).reader()
	for range 3 {
		if _, err := readImageBy(rd, first); err != nil {
			t.Error(err)
		}
	}
	if n := st.Count(faulty.List, "segments/"); n > 2 {
		t.Errorf("without moves: listed the segments %d times, want once for pages and once for blocks", n)
	}
}

// A restless store has somebody do something between a listing and what is made
// of it.
type restless struct {
	store.Store
	prefix string // of the listing
	act    func()
}

func (r restless) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	var list []store.Info
	err := r.Store.List(ctx, prefix, func(o store.Info) error { list = append(list, o); return nil })
	if prefix == r.prefix {
		r.act()
	}
	for _, o := range list {
		err = errors.Join(err, f(o))
	}
	return err
}

// D47: a reader that looks through all segments while collectors move what it
// looks for, and delete where it was, finds it all the same, some time.
func TestReaderFindsWhatIsMovedWhileItLooks(t *testing.T) {
	env := newEnv(t, 4<<10)
	clock(env)
	d := &disk{name: "disk", data: make([]byte, 1<<20)}
	random(seeded(t, 43), d.data)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	move := func() {
		repackAll(t, env)
		mustCollect(t, env, CollectOptions{})
		err := env.Repo.MovesNames(t.Context(), func(name string, _ int64) error { return env.Repo.Store.Delete(t.Context(), name) })
		if err != nil {
			t.Error(err)
		}
	}
	move()
	for _, often := range []int{1, 3} {
		busy := *env.Repo
		busy.Store = restless{env.Repo.Store, "segments/", func() {
			if often--; often >= 0 {
				move()
			}
		}}
		got, err := readImage(&Env{Repo: &busy, Memory: 64 << 20}, m)
		if err != nil || !bytes.Equal(got, d.data) {
			t.Errorf("the image differs (%v)", err)
		}
	}
}

// What a store lists and for a moment does not find is read all the same.
func TestReaderTriesAgainWhatIsListed(t *testing.T) {
	st := faulty.New(mem.New())
	env := envOf(t, newRepo(t, st, 4<<10))
	d := &disk{name: "disk", data: make([]byte, 1<<20)}
	random(seeded(t, 45), d.data)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	for _, kind := range []faulty.Kind{faulty.Head, faulty.ReadAt} {
		for nth := 1; nth <= 4; nth++ {
			st.Fail(faulty.Rule{Kind: kind, Prefix: "segments/", Nth: nth, Err: store.ErrNotFound})
			got, err := readImage(&Env{Repo: env.Repo, Memory: 8 << 20}, m)
			if err != nil || !bytes.Equal(got, d.data) {
				t.Errorf("%v %d finds nothing: %v", kind, nth, err)
			}
			st.Heal()
		}
	}
}

// D21: a manifest that was listed and is not found stops the collection, unless
// it was pruned meanwhile.
func TestImageThatIsNotFoundStopsTheCollection(t *testing.T) {
	for _, pruned := range []bool{false, true} {
		env := newEnv(t, 4<<10)
		clock(env)
		d := &disk{name: "disk", data: make([]byte, 1<<20)}
		random(seeded(t, 44), d.data)
		mustBackup(t, env, d, BackupOptions{})
		name := env.Repo.ManifestName(mustBackup(t, env, &disk{name: "other", data: make([]byte, 1<<20)}, BackupOptions{}).Image)
		busy := *env
		busy.Repo = new(repo.Repo)
		*busy.Repo = *env.Repo
		st := &forgetful{Store: env.Repo.Store, name: name, first: func() {
			if pruned {
				if err := env.Repo.Forget(t.Context(), name, "test"); err != nil {
					t.Error(err)
				}
			}
		}}
		busy.Repo.Store = st
		if _, err := Collect(t.Context(), &busy, CollectOptions{MaxDelete: 1}); (err == nil) != pruned {
			t.Errorf("pruned %v: collect: %v", pruned, err)
		}
	}
}

// A forgetful store does not find an object that it lists.
type forgetful struct {
	store.Store
	name  string
	first func() // called before that happens first
	told  bool
}

func (f *forgetful) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if name != f.name {
		return f.Store.Get(ctx, name, limit)
	}
	if !f.told {
		f.told = true
		f.first()
	}
	return nil, fmt.Errorf("get %s: %w", name, store.ErrNotFound)
}

// repackAll has every segment moved.
func repackAll(t *testing.T, env *Env) {
	t.Helper()
	c, err := beginCollect(context.Background(), env, CollectOptions{MaxDelete: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.end(context.Background())
	if err := c.condemn(context.Background()); err != nil {
		t.Fatal(err)
	}
	var sources []source
	for _, l := range c.marks.segments {
		if l.used {
			sources = append(sources, source{l, false})
		}
	}
	if sources, err = c.settledSources(context.Background(), sources); err == nil {
		err = c.move(context.Background(), sources)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSmallSegmentsAreMerged(t *testing.T) {
	for name, env := range map[string]*Env{"clear": newEnv(t, 4<<10), "sealed": newSealedEnv(t)} {
		clock(env)
		d := &disk{name: "disk", data: make([]byte, 1<<20)}
		images, contents := nights(t, env, d, seeded(t, 42), 2*mergeCount)
		before := segments(t, env)
		r := mustCollect(t, env, CollectOptions{MaxUnused: 1})
		if len(r.Repacked) != before || r.Written != 2 {
			t.Errorf("%s: merged %d of %d segments to %d, want all to one of each kind", name, len(r.Repacked), before, r.Written)
		}
		for _, s := range r.Repacked {
			if !s.Merged {
				t.Errorf("%s: segment %s was repacked for want of use", name, s.Segment)
			}
		}
		mustCollect(t, env, CollectOptions{MaxUnused: 1})
		if n := segments(t, env); n != 2 {
			t.Errorf("%s: %d segments left, want 2", name, n)
		}
		sameImages(t, env, images, contents)
		kinds := map[segment.Kind]int{}
		for _, kind := range []segment.Kind{segment.Data, segment.Pages} {
			kinds[kind] = len(footers(t, env.Repo, kind))
		}
		if kinds[segment.Data] != 1 || kinds[segment.Pages] != 1 {
			t.Errorf("%s: segments of kinds %v, want one of each", name, kinds)
		}
	}
}

func TestFullKeyTablesDoNotKeepMergingForEver(t *testing.T) {
	// 60 nights in a sealed repository are 60 origins of each kind: more than a
	// segment has room for.
	env := newSealedEnv(t)
	d := &disk{name: "disk", data: make([]byte, 200<<10)}
	images, contents := nights(t, env, d, seeded(t, 43), 60)
	moved := 0
	for range 5 {
		moved = len(mustCollect(t, env, CollectOptions{MaxUnused: 1}).Repacked)
	}
	if moved != 0 {
		t.Errorf("the fifth collection still moves %d segments", moved)
	}
	sameImages(t, env, images[55:], contents[55:])
}

func TestDamagedRecordsAreNotMoved(t *testing.T) {
	env := newEnv(t, 4<<10)
	clock(env)
	st := env.Repo.Store.(*mem.Store)
	_, contents := worn(t, env, 44)
	plan := mustCollect(t, env, CollectOptions{MaxUnused: 0.02, DryRun: true})
	var bad image.SegmentID
	for _, f := range footers(t, env.Repo, segment.Data) {
		for _, s := range plan.Repacked {
			if f.ID == s.Segment {
				bad = f.ID
			}
		}
	}
	object := must(st.Get(context.Background(), segment.Name(bad), 1<<30))
	f := must(env.Repo.Footer(context.Background(), bad))
	for i := range f.Records { // one of them is live
		object[f.Records[i].Offset+3] ^= 1
	}
	st.Replace(segment.Name(bad), object)
	r := mustCollect(t, env, CollectOptions{MaxUnused: 0.02})
	if !strings.Contains(strings.Join(r.Notices, "\n"), bad.String()) {
		t.Errorf("notices %q do not name segment %s", r.Notices, bad)
	}
	for range 3 {
		for _, s := range mustCollect(t, env, CollectOptions{MaxUnused: 0.02}).Repacked {
			if s.Segment == bad {
				t.Error("a segment with damaged records was repacked")
			}
		}
	}
	if _, err := st.Head(context.Background(), segment.Name(bad)); err != nil {
		t.Errorf("the damaged segment: %v", err)
	}
	// The next night stores again what the damage took.
	if _, err := Verify(context.Background(), env, VerifyOptions{ReadData: true}); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: %v, want damage", err)
	}
	d := &disk{name: "disk", data: contents[1]}
	m := mustBackup(t, env, d, BackupOptions{}).Image
	if got := content(t, env, m); !bytes.Equal(got, contents[1]) {
		t.Error("the image made after that differs")
	}
}

func TestTheCatalogsWordIsNotEnoughToDeleteBy(t *testing.T) {
	// D46: a second copy that the catalog believes in is gone bad.
	env := newEnv(t, 4<<10)
	clock(env)
	st := env.Repo.Store.(*mem.Store)
	d := &disk{name: "disk", data: make([]byte, 1<<20)}
	random(seeded(t, 45), d.data)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	repackAll(t, env)
	var moved *segment.Footer
	for _, f := range footers(t, env.Repo, segment.Data) {
		if f.Moved {
			moved = f
		}
	}
	object := must(st.Get(context.Background(), segment.Name(moved.ID), 1<<30))
	keep := bytes.Clone(object)
	object[len(object)-300] ^= 1 // in the footer
	st.Replace(segment.Name(moved.ID), object)
	for range 3 {
		if r := mustCollect(t, env, CollectOptions{}); len(r.Deleted) > 1 || len(r.Notices) == 0 {
			t.Errorf("deleted %d segments, notices %q", len(r.Deleted), r.Notices)
		}
	}
	if got := content(t, env, m); !bytes.Equal(got, d.data) {
		t.Error("the image differs")
	}
	st.Replace(segment.Name(moved.ID), keep)
	mustCollect(t, env, CollectOptions{})
	if got := content(t, env, m); !bytes.Equal(got, d.data) {
		t.Error("the image differs after the copy came back")
	}
}

func TestIndexesFollowTheSegments(t *testing.T) {
	under := mem.New()
	under.Advance(time.Since(mem.Epoch()))
	st := faulty.New(under)
	env := envOf(t, newRepo(t, st, 4<<10))
	d := &disk{name: "disk", data: make([]byte, 600<<10)}
	rnd := seeded(t, 46)
	indexes := func() (n int, covered map[image.SegmentID]bool) {
		covered = map[image.SegmentID]bool{}
		err := env.Repo.Indexes(context.Background(), func(name string, _ int64) error {
			n++
			for _, s := range must(env.Repo.Index(context.Background(), name)) {
				covered[s.ID] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n, covered
	}
	for round := range 6 {
		images, _ := nights(t, env, d, rnd, indexFloor/2)
		r := mustCollect(t, env, CollectOptions{MaxUnused: 1})
		n, covered := indexes()
		if n > 1 {
			t.Errorf("round %d: %d indexes of small segments, want one", round, n)
		}
		if left := segments(t, env) - len(covered); left > indexFloor+len(r.Condemned) {
			t.Errorf("round %d: %d segments are in no index, %d of them condemned", round, left, len(r.Condemned))
		}
		for _, m := range images[:len(images)-1] {
			forget(t, env, m)
		}
	}
	// A newcomer reads few ends.
	images, contents := nights(t, env, d, rnd, 2*indexFloor)
	mustCollect(t, env, CollectOptions{MaxUnused: 1, MinAge: time.Hour})
	st.Forget()
	c, report, err := catalog.Rebuild(context.Background(), catalog.Options{
		Dir: t.TempDir(), Repository: env.Repo.ID, BlockSize: 4 << 10, Memory: catalog.MinMemory,
	}, env.Repo, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if heads := st.Count(faulty.Head, "segments/"); heads > 0 || report.Skipped > 0 {
		t.Errorf("a rebuild looked at %d segments one by one, and skipped %d", heads, report.Skipped)
	}
	if gets := st.Count(faulty.Get, "index/footers/"); gets == 0 {
		t.Error("a rebuild read no index")
	}
	again := &Env{Repo: env.Repo, Catalog: c, Memory: env.Memory}
	last := len(images) - 1
	if got, err := readImage(again, images[last]); err != nil || !bytes.Equal(got, contents[last]) {
		t.Errorf("by the rebuilt catalog: the image differs (%v)", err)
	}
	// A damaged index is written again.
	var name string
	_ = env.Repo.Indexes(context.Background(), func(n string, _ int64) error { name = n; return nil })
	under.Replace(name, []byte("damaged"))
	fresh := envOf(t, env.Repo)
	if r := mustCollect(t, fresh, CollectOptions{MaxUnused: 1}); r.Indexes == 0 || len(r.Notices) == 0 {
		t.Errorf("beside a damaged index: %d written, notices %q", r.Indexes, r.Notices)
	}
	if _, covered := indexes(); len(covered) == 0 {
		t.Error("no segment is in an index")
	}
}

func TestACollectorThatSleptDoesNoHarm(t *testing.T) {
	// One is stopped before it publishes, another collects twice, and the first
	// goes on. Whatever it says then, nothing may be lost.
	for _, where := range []string{"put trash/segments/", "put segments/", "put index/moves/", "delete segments/"} {
		under := mem.New()
		under.Advance(time.Since(mem.Epoch()))
		st := faulty.New(under)
		env := envOf(t, newRepo(t, st, 4<<10))
		images, contents := worn(t, env, 47)
		plain := *env.Repo
		plain.Store = under
		other := envOf(t, &plain)
		if where == "delete segments/" {
			mustCollect(t, other, CollectOptions{Grace: 0})
		}
		asleep := false
		kind, prefix, _ := strings.Cut(where, " ")
		st.Before(func(op faulty.Op) {
			if asleep || string(op.Kind) != kind || !strings.HasPrefix(op.Name, prefix) {
				return
			}
			asleep = true
			under.Advance(2 * time.Hour)
			for range 3 {
				if _, err := Collect(context.Background(), other, CollectOptions{MaxDelete: 1}); err != nil {
					t.Errorf("%s: the other: %v", where, err)
				}
				under.Advance(-time.Minute)
			}
			under.Advance(3*time.Minute - 2*time.Hour)
		})
		_, err := Collect(context.Background(), env, CollectOptions{MaxDelete: 1})
		if !asleep {
			t.Fatalf("%s: never came", where)
		}
		t.Logf("%s: %v", where, err)
		sameImages(t, env, images, contents)
		for range 2 {
			mustCollect(t, other, CollectOptions{})
		}
		sameImages(t, other, images, contents)
	}
}

func TestACollectionThatDiedGoesOn(t *testing.T) {
	// It fails at each of its puts in turn; the next one ends up as a run
	// without a failure does, and with min age what was moved is not moved again.
	total := 0
	for nth := 1; ; nth++ {
		under := mem.New()
		under.Advance(time.Since(mem.Epoch()))
		st := faulty.New(under)
		env := envOf(t, newRepo(t, st, 4<<10))
		images, contents := worn(t, env, 48)
		under.Advance(time.Hour)
		st.Fail(faulty.Rule{Kind: faulty.Put, Nth: nth, Err: errors.New("killed")})
		_, err := Collect(context.Background(), env, CollectOptions{MaxDelete: 1, MinAge: time.Minute, Grace: time.Minute})
		st.Heal()
		sameImages(t, env, images, contents)
		if err == nil {
			break
		}
		under.Advance(repo.LeaseTTL - time.Hour)
		mustCollect(t, env, CollectOptions{MinAge: time.Minute, Grace: time.Minute})
		total++
		under.Advance(10 * time.Minute)
		for range 2 {
			mustCollect(t, env, CollectOptions{MinAge: time.Minute})
			under.Advance(10 * time.Minute)
		}
		sameImages(t, env, images, contents)
		if r := mustCollect(t, env, CollectOptions{MinAge: time.Minute, DryRun: true}); len(r.Repacked) > 0 {
			t.Errorf("put %d: %d segments are still to be repacked", nth, len(r.Repacked))
		}
	}
	if total < 4 {
		t.Errorf("only %d puts failed", total)
	}
	t.Logf("%d puts failed in turn", total)
}
