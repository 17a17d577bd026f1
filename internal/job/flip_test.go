package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"platter/catalog"
	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
)

// long reports whether the campaigns of hours are asked for.
func long() bool { return os.Getenv("PLATTER_TEST_LONG") != "" }

// sweep skips a test of many like steps unless make sweeps runs it, or a campaign.
func sweep(t *testing.T) {
	t.Helper()
	if os.Getenv("PLATTER_TEST_SWEEPS") == "" && !long() {
		t.Skip("SKIPPED, one of many like steps: make sweeps")
	}
}

// An exhibit is a small repository that holds one of everything, what its
// images contain, and a catalog that was up to date before anything happened
// to it.
type exhibit struct {
	objects map[string][]byte
	want    map[image.ImageID][]byte
	env     *Env // on the whole repository
	unlock  *keys.Credentials
	agent   *keys.Domain             // of a writer that cannot read, in an encrypted one
	past    map[string][]byte        // objects that were there once, and are gone
	pruned  map[image.ImageID][]byte // what images of the past contained
}

// open opens a store that holds the exhibit, or what became of it.
func (x *exhibit) open(st store.Store) (*repo.Repo, error) {
	return repo.Unlock(context.Background(), st, x.unlock)
}

// newExhibit makes the images of two volumes on several nights, one pruned, a
// condemned list, a damaged record with its note, and a lease.
func newExhibit(t *testing.T) *exhibit {
	t.Helper()
	return exhibitIn(t, newEnv(t, 4<<10), nil)
}

// newSealedExhibit makes an encrypted one, opened by a key file: that costs
// nothing, and a password a tenth of a second. Some of its images are an
// agent's that cannot read, and some of that one's segments are attested.
func newSealedExhibit(t *testing.T) *exhibit {
	t.Helper()
	k := &keys.Credentials{KeyFile: bytes.Repeat([]byte("key file "), 8)}
	r, err := repo.Init(context.Background(), mem.New(), repo.InitOptions{
		BlockSize: 4 << 10, IDAlgorithm: algorithm(), Encryption: &repo.Encryption{KeyFile: k.KeyFile},
	})
	if err != nil {
		t.Fatal(err)
	}
	return exhibitIn(t, envOf(t, r), k)
}

func exhibitIn(t *testing.T, env *Env, unlock *keys.Credentials) *exhibit {
	t.Helper()
	ctx := context.Background()
	clock(env)
	x := &exhibit{objects: map[string][]byte{}, want: map[image.ImageID][]byte{}, env: env, unlock: unlock, past: map[string][]byte{}, pruned: map[image.ImageID][]byte{}}
	rng := seeded(t, 11)
	a := &disk{name: "a", data: make([]byte, 131*4096+777)} // a map of two levels
	b := &disk{name: "b", data: make([]byte, 9*4096+1)}
	for off := 0; off+4096 < len(a.data); off += 4096 {
		switch block := a.data[off:][:4096]; {
		case off%(7*4096) == 0: // zeros
		case off%(11*4096) == 0:
			random(rng, block)
		default:
			random(rng, block[:20])
		}
	}
	random(rng, a.data[131*4096:])
	keep := func(d *disk) *image.Manifest {
		m := mustBackup(t, env, d, BackupOptions{Tags: []string{"x"}}).Image
		x.want[m.ID] = bytes.Clone(d.data)
		return m
	}
	gone := keep(a)
	for night := range 2 {
		random(rng, a.data[(20+night)*4096:][:100])
		copy(b.data, a.data[11*4096*night:])
		keep(a)
		keep(b)
	}
	x.record(t)
	forget(t, env, gone)
	x.pruned[gone.ID] = x.want[gone.ID]
	delete(x.want, gone.ID)
	if unlock != nil {
		x.agentImages(t, a)
	}
	extra := &disk{name: "extra", data: make([]byte, 4096)}
	random(rng, extra.data)
	forget(t, env, mustBackup(t, env, extra, BackupOptions{}).Image)
	x.record(t)
	mustCollect(t, env, CollectOptions{Grace: time.Hour, indexFloor: 1})
	x.record(t)
	mustCollect(t, env, CollectOptions{MaxUnused: 1, indexFloor: 1}) // deletes what was condemned
	random(rng, extra.data)
	forget(t, env, mustBackup(t, env, extra, BackupOptions{}).Image)
	mustCollect(t, env, CollectOptions{Grace: time.Hour, MaxUnused: 1, indexFloor: 1})
	// A note of a damaged record that is whole again elsewhere.
	f := footers(t, env.Repo, segment.Data)[0]
	if err := env.Repo.NoteDamage(ctx, []image.ID{f.Records[0].ID}, []image.Location{{Segment: f.ID}}); err != nil {
		t.Fatal(err)
	}
	last := keep(a)
	keep(b)
	mustPin(t, env, PinOptions{Image: last.ID.String(), Reason: "an exhibit", By: "test@host"})
	if err := env.Repo.NoteChecks(ctx, []repo.Check{{Manifest: env.Repo.ManifestName(last), Data: last.Time}}, func(repo.Check) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := env.Repo.NoteBoot(ctx, env.Repo.ManifestName(last), repo.Boot{Time: last.Time, Verdict: "booted"}, []byte("a picture")); err != nil {
		t.Fatal(err)
	}
	name := "leases/" + strings.Repeat("ab", 16) + "-00000001"
	lease := repo.Lease{Run: strings.Repeat("ab", 16), Kind: repo.LeaseBackup, Host: "elsewhere", Boot: "boot", PID: 1}
	object, _, err := env.Repo.Keys.Seal(keys.KindLease, name, lease)
	if err == nil {
		err = env.Repo.Store.Put(ctx, name, object)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := env.Catalog.Sync(ctx, env.Repo, nil); err != nil {
		t.Fatal(err)
	}
	x.record(t)
	maps.Copy(x.objects, x.past)
	for name := range x.past {
		if _, err := env.Repo.Store.Head(ctx, name); errors.Is(err, store.ErrNotFound) {
			delete(x.objects, name)
		} else {
			delete(x.past, name)
		}
	}
	for prefix, n := range map[string]int{"config": 1, "keys/": 1, "segments/": 6, "images/": 6, "leases/": 1, "trash/images/": 2, "trash/segments/": 1, "trash/damaged/": 1, "pins/": 1, "verified/": 1, "screens/": 1, "index/footers/": 1, "index/moves/": 1} {
		if got := len(x.names(prefix)); got < n {
			t.Fatalf("%d objects %s, want %d or more: %q", got, prefix, n, x.names(""))
		}
	}
	return x
}

// agentImages has an agent make images of a disk that is much like another's,
// and attests what it stored for the first.
func (x *exhibit) agentImages(t *testing.T, like *disk) {
	t.Helper()
	agent := agentOf(t, x.env)
	x.agent = agent.Repo.Keys
	d := &disk{name: "agent", data: bytes.Clone(like.data)}
	for night := range 2 {
		random(seeded(t, uint64(30+night)), d.data[40*4096:][:3*4096])
		m := mustBackup(t, agent, d, BackupOptions{}).Image
		x.want[m.ID] = bytes.Clone(d.data)
		if night == 0 {
			if r, err := Verify(context.Background(), x.env, VerifyOptions{ReadData: true}); err != nil || r.Attested == 0 {
				t.Fatalf("%+v, %v: want attested segments", r, err)
			}
		}
	}
}

// agentOf returns an Env of a new writer that cannot read, with a catalog of
// its own.
func agentOf(t *testing.T, env *Env) *Env {
	t.Helper()
	r := *env.Repo
	r.Keys = must(env.Repo.Keys.NewWriter(true))
	agent := envOf(t, &r)
	agent.Host = env.Host
	return agent
}

// record keeps all objects that are there now.
func (x *exhibit) record(t *testing.T) {
	t.Helper()
	err := x.env.Repo.Store.List(context.Background(), "", func(o store.Info) (err error) {
		x.past[o.Name], err = x.env.Repo.Store.Get(context.Background(), o.Name, 1<<30)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (x *exhibit) names(prefix string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(x.objects)), func(n string) bool { return !strings.HasPrefix(n, prefix) })
}

// with returns a store that holds the exhibit, with changes; nil is no object.
func (x *exhibit) with(changes map[string][]byte) *mem.Store {
	st := mem.New()
	st.Advance(time.Since(mem.Epoch()))
	for name, object := range x.objects {
		changed, ok := changes[name]
		switch {
		case !ok:
			st.Replace(name, object)
		case changed != nil:
			st.Replace(name, changed)
		}
	}
	return st
}

// known reports whether err is one that damage may lead to.
func known(err error) bool {
	return reader.Damaged(err) || errors.Is(err, ErrDamaged) || errors.Is(err, keys.ErrNewer)
}

// try lists and restores everything of a damaged repository, with and without
// a catalog that is as old as the damage, and verifies it. All that comes out
// must be right, or an error that is to the point; and what is lost, verify
// must tell. It reports what was lost.
func (x *exhibit) try(changes map[string][]byte) (lost bool, err error) {
	st := x.with(changes)
	r, err := x.open(st)
	if err != nil {
		opening := func(name string) bool { return name == "config" || strings.HasPrefix(name, "keys/") }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(changes)), opening) || !known(err) && !errors.Is(err, repo.ErrNoRepository) && (x.unlock == nil || !errors.Is(err, keys.ErrCredentials)) {
			return true, fmt.Errorf("open: %w", err)
		}
		return true, nil
	}
	bare := &Env{Repo: r, Memory: 8 << 20, Host: "host"}
	warm := &Env{Repo: r, Memory: 8 << 20, Host: "host", Catalog: x.env.Catalog}
	for _, env := range []*Env{bare, warm} {
		l, err := x.restoreAll(env, changes)
		if err != nil {
			return true, err
		}
		lost = lost || env == bare && l // the catalog may make good what is lost
	}
	report, err := Verify(context.Background(), bare, VerifyOptions{ReadData: true})
	if err != nil && !errors.Is(err, ErrDamaged) {
		return lost, fmt.Errorf("verify was cut short: %w", err)
	}
	if lost && err == nil && !x.withheld(changes) {
		return lost, fmt.Errorf("images are lost, and verify finds nothing")
	}
	if err != nil && !names(report, changes) {
		return lost, fmt.Errorf("verify names none of the objects changed: %+v", report.Damage)
	}
	return lost, nil
}

// withheld reports whether all that changed is that a volume's newest manifest
// is gone: nothing in a repository tells that from its never having been there.
func (x *exhibit) withheld(changes map[string][]byte) bool {
	for name, object := range changes {
		volume := x.names(name[:max(0, strings.LastIndex(name, "/"))])
		if object != nil || len(volume) == 0 || !strings.HasPrefix(name, "images/") || name != volume[len(volume)-1] {
			return false
		}
	}
	return true
}

func names(report *VerifyReport, changes map[string][]byte) bool {
	for _, d := range report.Damage {
		for name := range changes {
			if d.Object == strings.TrimPrefix(name, "trash/") || strings.Contains(d.Object+d.Problem, name) {
				return true
			}
		}
	}
	return false
}

// restoreAll restores every image that is listed, and reports whether any is
// lost.
func (x *exhibit) restoreAll(env *Env, changes map[string][]byte) (lost bool, err error) {
	images, _, err := Images(context.Background(), env, "")
	if err != nil {
		return true, fmt.Errorf("list: %w", err)
	}
	count := len(images)
	for _, m := range images {
		want, ok := x.want[m.ID]
		if !ok {
			want, ok = x.pruned[m.ID]
			count--
		}
		if !ok {
			return true, fmt.Errorf("an image %s was never made", m.ID)
		}
		got, err := readImage(env, m)
		switch {
		case err == nil && !bytes.Equal(got, want):
			return true, fmt.Errorf("image %s restores to other bytes", m.ID)
		case err != nil && !known(err):
			return true, fmt.Errorf("image %s: another error than damage: %w", m.ID, err)
		case err != nil && !says(err, changes):
			return true, fmt.Errorf("image %s: the error does not name the object: %w", m.ID, err)
		}
		lost = lost || err != nil
	}
	return lost || count != len(x.want), nil
}

func says(err error, changes map[string][]byte) bool {
	for name := range changes {
		if strings.Contains(err.Error(), name) {
			return true
		}
	}
	return false
}

// needed reports whether an image may be lost with an object.
func needed(name string) bool {
	return name == "config" || strings.HasPrefix(name, "keys/") || strings.HasPrefix(name, "segments/") || strings.HasPrefix(name, "images/")
}

// mustTry tries damage, and fails the test with what was done.
func (x *exhibit) mustTry(t *testing.T, what string, changes map[string][]byte) (lost bool) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			t.Fatalf("%s: panic: %v", what, p)
		}
	}()
	lost, err := x.try(changes)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if lost && !slices.ContainsFunc(slices.Collect(maps.Keys(changes)), needed) {
		t.Errorf("%s: images are lost", what)
	}
	return lost
}

func flipped(object []byte, i int, bits byte) []byte {
	b := bytes.Clone(object)
	b[i] ^= bits
	return b
}

func TestEveryFlippedByteOfARepository(t *testing.T) {
	sweep(t)
	// D6, D7, D9, D30. make test tries a sample, PLATTER_TEST_LONG=1 every byte.
	flipEveryByte(t, newExhibit(t), 12)
}

func TestEveryFlippedByteOfASealedRepository(t *testing.T) {
	sweep(t)
	flipEveryByte(t, newSealedExhibit(t), 5)
}

// flipEveryByte goes over all objects again and again, from another byte on each
// time, so that what is left out where time runs out lies everywhere.
func flipEveryByte(t *testing.T, x *exhibit, most int) {
	t.Helper()
	rng := seeded(t, 21)
	passes, tried, lost, all := 1, 0, 0, 0
	if long() {
		passes = 64
	}
	for _, object := range x.objects {
		all += len(object)
	}
	for pass := range passes {
		for _, name := range x.names("") {
			object := x.objects[name]
			first, stride := pass, passes
			if !long() {
				stride = max(1, len(object)/most)
				first = rng.IntN(stride)
			}
			for i := first; i < len(object); i += stride {
				if end, ok := t.Deadline(); ok && time.Until(end) < time.Minute {
					t.Logf("time is over: %d flips of %d bytes in %d objects, %d of them cost an image", tried, all, len(x.objects), lost)
					return
				}
				bits := byte(1 << rng.IntN(8))
				tried++
				if x.mustTry(t, fmt.Sprintf("%s: byte %d of %d ^ %#x", name, i, len(object), bits), map[string][]byte{name: flipped(object, i, bits)}) {
					lost++
				}
			}
		}
	}
	t.Logf("%d flips of %d bytes in %d objects, %d of them cost an image", tried, all, len(x.objects), lost)
}

// cuts are lengths at which things begin and end.
func cuts(name string, n int) []int {
	list := []int{0, 1, 8, 56, n / 2, n - 1}
	if strings.HasPrefix(name, "segments/") {
		list = append(list, 4095, 4096, 4096+16, n-512, n-511, n-4096, n/8192*4096)
	} else {
		list = append(list, n-32, n-33, n-96, n-97, n-200, n-201)
	}
	slices.Sort(list)
	return slices.DeleteFunc(slices.Compact(list), func(c int) bool { return c < 0 || c >= n })
}

func TestEveryTruncationOfARepository(t *testing.T) {
	sweep(t)
	cutEverywhere(t, newExhibit(t), 1)
}

func TestTruncationsOfASealedRepository(t *testing.T) {
	sweep(t)
	cutEverywhere(t, newSealedExhibit(t), 6)
}

// cutEverywhere tries every nth cut of each object, all if long.
func cutEverywhere(t *testing.T, x *exhibit, nth int) {
	t.Helper()
	for _, name := range x.names("") {
		object := x.objects[name]
		for i, n := range cuts(name, len(object)) {
			if i%nth != 0 && !long() {
				continue
			}
			lost := x.mustTry(t, fmt.Sprintf("%s cut to %d of %d bytes", name, n, len(object)), map[string][]byte{name: bytes.Clone(object[:n:n])})
			if strings.HasPrefix(name, "images/") && !lost {
				t.Errorf("%s cut to %d bytes: nothing is lost", name, n)
			}
		}
		x.mustTry(t, name+" longer by a page", map[string][]byte{name: append(bytes.Clone(object), make([]byte, 4096)...)})
		x.mustTry(t, name+" of zeros", map[string][]byte{name: make([]byte, len(object))})
	}
}

func TestEveryObjectOfARepositoryDeletedOrSwapped(t *testing.T) {
	sweep(t)
	deleteAndSwap(t, newExhibit(t))
}

func TestEveryObjectOfASealedRepositoryDeletedOrSwapped(t *testing.T) {
	sweep(t)
	deleteAndSwap(t, newSealedExhibit(t))
}

func deleteAndSwap(t *testing.T, x *exhibit) {
	t.Helper()
	all := x.names("")
	for _, name := range all {
		lost := x.mustTry(t, name+" deleted", map[string][]byte{name: nil})
		if strings.HasPrefix(name, "images/") && !lost {
			t.Errorf("%s deleted: nothing is lost", name)
		}
	}
	rng := seeded(t, 22)
	for i, a := range all {
		for j, b := range all {
			if i >= j || !long() && rng.IntN(10) > 0 {
				continue
			}
			x.mustTry(t, fmt.Sprintf("%s and %s swapped", a, b), map[string][]byte{a: x.objects[b], b: x.objects[a]})
		}
	}
}

func TestObjectsOfThePastAreOfNoUse(t *testing.T) {
	sweep(t)
	// What was there once is put back: by itself, and in the place of each newer
	// object of its kind.
	for _, x := range []*exhibit{newExhibit(t), newSealedExhibit(t)} {
		tried := 0
		for _, name := range sortedKeys(x.past) {
			tried++
			lost := x.mustTry(t, name+" put back", map[string][]byte{name: x.past[name]})
			if lost {
				t.Errorf("%s put back: images are lost", name)
			}
			kind := name[:strings.LastIndex(name, "/")+1]
			for i, now := range x.names(kind) {
				if i == 0 || long() {
					x.mustTry(t, name+" in the place of "+now, map[string][]byte{now: x.past[name]})
				}
			}
		}
		t.Logf("%d objects of the past", tried)
	}
}

func TestObjectsOfAnotherRepositoryAreRefused(t *testing.T) {
	sweep(t)
	x, y := newExhibit(t), newExhibit(t)
	for _, prefix := range []string{"segments/", "images/", "leases/", "trash/images/", "trash/segments/", "trash/damaged/", "index/footers/", "index/moves/", "pins/", "verified/", "screens/"} {
		ours, theirs := x.names(prefix), y.names(prefix)
		for i := range min(len(ours), len(theirs)) {
			x.mustTry(t, ours[i]+" of another repository", map[string][]byte{ours[i]: y.objects[theirs[i]]})
		}
	}
}

func TestDamageIsHealedByTheNextBackup(t *testing.T) {
	sweep(t)
	// D11: after a verification that found it, the same content is stored again,
	// and every image is whole, also with a catalog made anew.
	x := newExhibit(t)
	rng := seeded(t, 23)
	for n, name := range x.names("segments/") {
		size := len(x.objects[name])
		places := []int{5, 4096 + 16 + rng.IntN(200), size - 10}
		if long() {
			for range 200 {
				places = append(places, rng.IntN(size))
			}
		} else {
			places = places[n%3:][:1]
		}
		for _, i := range places {
			x.heal(t, fmt.Sprintf("%s: byte %d", name, i), x.with(map[string][]byte{name: flipped(x.objects[name], i, 1<<rng.IntN(8))}), rng)
		}
		if long() || n%3 == 0 {
			x.heal(t, name+" deleted", x.with(map[string][]byte{name: nil}), rng)
		}
	}
}

// heal verifies a damaged repository, backs up what it holds again, and wants
// all of it back.
func (x *exhibit) heal(t *testing.T, what string, st *mem.Store, rng *rand.Rand) {
	t.Helper()
	ctx := context.Background()
	r, err := repo.Open(ctx, st)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	opts := catalog.Options{Dir: t.TempDir(), Repository: r.ID, BlockSize: 4096, Memory: catalog.MinMemory}
	c := must(catalog.Open(ctx, opts))
	defer func() { c.Close() }()
	env := &Env{Repo: r, Catalog: c, Memory: 64 << 20, Version: "test", Host: "host"}
	if rng.IntN(2) == 0 {
		// This catalog knew the repository when it was whole.
		must(c.Sync(ctx, x.env.Repo, nil))
	}
	if _, err := Verify(ctx, env, VerifyOptions{ReadData: true}); err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatalf("%s: verify: %v", what, err)
	}
	images := must(allImages(ctx, env))
	for _, m := range images {
		d := &disk{name: strings.TrimPrefix(m.Volume, "host/"), data: x.want[m.ID]}
		again := mustBackup(t, env, d, BackupOptions{})
		if got := content(t, env, again.Image); !bytes.Equal(got, d.data) {
			t.Fatalf("%s: the new image of %s differs", what, m.Volume)
		}
	}
	whole := func(e *Env) {
		for _, m := range images {
			if got, err := readImage(e, m); err != nil || !bytes.Equal(got, x.want[m.ID]) {
				t.Fatalf("%s: image %d of %s is not whole again: %v", what, m.Seq, m.Volume, err)
			}
		}
	}
	whole(env)
	whole(&Env{Repo: r, Memory: 8 << 20})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, _, err = catalog.Rebuild(ctx, opts, r, nil); err != nil {
		t.Fatalf("%s: rebuild: %v", what, err)
	}
	env.Catalog = c
	whole(env)
}

func TestSegmentThatLostItsFooterIsNoHit(t *testing.T) {
	// No image needs it, and a catalog knows it from when it was whole: that of
	// who verifies, and that of another machine.
	for i, verifier := range []string{"here", "elsewhere"} {
		env := newEnv(t, 4<<10)
		d := &disk{name: "disk", data: make([]byte, 600<<10)}
		random(seeded(t, uint64(i)), d.data)
		forget(t, env, mustBackup(t, env, d, BackupOptions{}).Image)
		st := env.Repo.Store.(*mem.Store)
		for _, f := range append(footers(t, env.Repo, segment.Data), footers(t, env.Repo, segment.Pages)...) {
			object := must(st.Get(context.Background(), segment.Name(f.ID), 1<<30))
			st.Replace(segment.Name(f.ID), flipped(object, len(object)-100, 1))
		}
		by := env
		if verifier == "elsewhere" {
			by = &Env{Repo: env.Repo, Memory: 8 << 20, Host: "host"}
		}
		if _, err := Verify(context.Background(), by, VerifyOptions{ReadData: true}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("verify %s: %v, want damage", verifier, err)
		}
		m := mustBackup(t, env, d, BackupOptions{}).Image
		if got, err := readImage(&Env{Repo: env.Repo, Memory: 8 << 20}, m); err != nil || !bytes.Equal(got, d.data) {
			t.Errorf("verified %s: the next image is not whole: %v", verifier, err)
		}
	}
}

func TestRestoreOfADamagedRepositoryWritesNothingWrong(t *testing.T) {
	sweep(t)
	x := newExhibit(t)
	rng := seeded(t, 24)
	n := 1
	if long() {
		n = 100
	}
	path := filepath.Join(t.TempDir(), "restored")
	for _, name := range slices.Concat(x.names("segments/"), x.names("images/")) {
		for range n {
			i := rng.IntN(len(x.objects[name]))
			st := x.with(map[string][]byte{name: flipped(x.objects[name], i, 0x10)})
			env := &Env{Repo: must(repo.Open(context.Background(), st)), Memory: 8 << 20, Host: "host"}
			for id, want := range x.want {
				os.Remove(path)
				_, err := Restore(context.Background(), env, RestoreOptions{Image: id.String(), Target: path, Confirm: yes})
				lost := strings.HasPrefix(name, "images/") && err != nil
				switch {
				case err == nil && !bytes.Equal(readFile(t, path), want):
					t.Fatalf("%s, byte %d: image %s restores to other bytes", name, i, id)
				case err != nil && !lost && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name)):
					t.Fatalf("%s, byte %d: image %s: %v, want an error that names the segment", name, i, id, err)
				}
			}
		}
	}
}
