package job

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store/faulty"
	"platter/image/store/mem"
	"platter/retention"
)

func pruneLast(t *testing.T, env *Env, n int) *PruneReport {
	t.Helper()
	r, err := Prune(context.Background(), env, PruneOptions{Policy: retention.Policy{Last: n}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ids returns the numbers of the images there are.
func numbers(t *testing.T, env *Env) (list []uint64) {
	t.Helper()
	for _, m := range must(allImages(context.Background(), env)) {
		list = append(list, m.Seq)
	}
	return list
}

func wantNumbers(t *testing.T, env *Env, want ...uint64) {
	t.Helper()
	got := numbers(t, env)
	if len(got) != len(want) {
		t.Fatalf("images %d, want %d", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("images %d, want %d", got, want)
		}
	}
}

func mustPin(t *testing.T, env *Env, opts PinOptions) *repo.Pin {
	t.Helper()
	if opts.Reason == "" {
		opts.Reason = "a reason"
	}
	p, err := Pin(context.Background(), env, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPinnedImagesOutliveEveryPrune(t *testing.T) {
	// D42, on a machine other than the one that pinned.
	env := newEnv(t, 4<<10)
	clock(env)
	ctx := context.Background()
	images, _ := nights(t, env, &disk{name: "disk", data: make([]byte, 1<<20)}, seeded(t, 1), 5)
	mustPin(t, env, PinOptions{Image: images[1].ID.String(), Until: time.Now().Add(90 * 24 * time.Hour)})
	mustPin(t, env, PinOptions{Image: images[2].ID.String(), Hold: true, Reason: "a case"})
	other := envOf(t, env.Repo)
	report := pruneLast(t, other, 1)
	wantNumbers(t, env, 2, 3, 5)
	for _, v := range report.Verdicts {
		switch v.Image {
		case images[1].ID.String():
			if !strings.Contains(v.Reason, "pinned: a reason, until ") {
				t.Errorf("reason %q", v.Reason)
			}
		case images[2].ID.String():
			if !strings.Contains(v.Reason, "pinned: legal hold: a case") {
				t.Errorf("reason %q", v.Reason)
			}
		}
	}
	// The pin ends by the store's clock; the hold does not.
	env.Repo.Store.(*mem.Store).Advance(91 * 24 * time.Hour)
	pruneLast(t, other, 1)
	wantNumbers(t, env, 3, 5)
	if _, err := Unpin(ctx, env, UnpinOptions{Image: images[2].ID.String()}); err == nil || !strings.Contains(err.Error(), "--hold") {
		t.Errorf("a hold was removed as a pin: %v", err)
	}
	if _, err := Unpin(ctx, env, UnpinOptions{Image: images[2].ID.String(), Hold: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpin(ctx, env, UnpinOptions{Image: images[2].ID.String(), Hold: true}); err == nil {
		t.Error("removed twice")
	}
	pruneLast(t, other, 1)
	wantNumbers(t, env, 5)
}

func TestPinsThatCannotBeMeant(t *testing.T) {
	env := newEnv(t, 4<<10)
	clock(env)
	ctx := context.Background()
	images, _ := nights(t, env, &disk{name: "disk", data: make([]byte, 1<<20)}, seeded(t, 1), 1)
	id := images[0].ID.String()
	for _, opts := range []PinOptions{
		{Image: id},
		{Image: id, Reason: " "},
		{Image: id, Reason: "x", Hold: true, Until: time.Now().Add(time.Hour)},
		{Image: id, Reason: "x", Until: time.Now().Add(-time.Hour)},
	} {
		if _, err := Pin(ctx, env, opts); !errors.Is(err, ErrUsage) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
	if pins := must(env.Repo.Pins(ctx)); len(pins) != 0 {
		t.Errorf("pins %+v", pins)
	}
}

func TestWriteOnlyKeysRemoveNoPin(t *testing.T) {
	x := newSealedExhibit(t)
	m := must(allImages(context.Background(), x.env))[0]
	mustPin(t, x.env, PinOptions{Image: m.ID.String()})
	before := len(must(x.env.Repo.Pins(context.Background())))
	agent := *x.env.Repo
	agent.Keys = must(agent.Keys.NewWriter(true))
	env := &Env{Repo: &agent, Memory: 8 << 20, Host: "host"}
	if _, err := Unpin(context.Background(), env, UnpinOptions{Image: m.ID.String()}); !errors.Is(err, keys.ErrRights) {
		t.Errorf("got %v", err)
	}
	if pins := must(env.Repo.Pins(context.Background())); len(pins) != before {
		t.Errorf("%d pins are left, want %d", len(pins), before)
	}
}

func TestPruneStopsAtAPinThatCannotBeRead(t *testing.T) {
	// D42: nobody knows what it keeps.
	env := newEnv(t, 4<<10)
	clock(env)
	images, _ := nights(t, env, &disk{name: "disk", data: make([]byte, 1<<20)}, seeded(t, 1), 3)
	pin := mustPin(t, env, PinOptions{Image: images[0].ID.String()})
	name := "pins/" + pin.ID
	object := must(env.Repo.Store.Get(context.Background(), name, 1<<30))
	env.Repo.Store.(*mem.Store).Replace(name, flipped(object, len(object)/2, 4))
	if _, err := Prune(context.Background(), env, PruneOptions{Policy: retention.Policy{Last: 1}}); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("got %v, want an error that names %s", err, name)
	}
	wantNumbers(t, env, 1, 2, 3)
	if _, err := Verify(context.Background(), env, VerifyOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: %v", err)
	}
}

func TestPinWaitsForThePruneThatMayNotHaveSeenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		st := mem.New()
		env := &Env{Repo: newRepo(t, st, 4<<10), Memory: 8 << 20, Host: "host"}
		m := &image.Manifest{ID: image.ImageID{1}, Volume: "host/a", BlockSize: 4 << 10, Time: time.Now()}
		name := must(env.Repo.Commit(ctx, m))
		begin := func() *repo.Holder { return must(env.Repo.Acquire(ctx, repo.LeasePrune, [16]byte{9})) }
		pin := func(wait time.Duration) chan error {
			done := make(chan error, 1)
			go func() {
				_, err := Pin(ctx, env, PinOptions{Image: "host/a", Reason: "x", Wait: wait})
				done <- err
			}()
			synctest.Wait()
			return done
		}
		// It spares the image.
		prune := begin()
		done := pin(time.Minute)
		if len(done) > 0 {
			t.Fatalf("the pin did not wait: %v", <-done)
		}
		prune.Release(ctx)
		if err := <-done; err != nil {
			t.Errorf("the prune spared the image: %v", err)
		}
		// It takes longer than anybody waits.
		prune = begin()
		if err := <-pin(time.Minute); err == nil || !strings.Contains(err.Error(), "a prune is at work") {
			t.Errorf("a long prune: %v", err)
		}
		// It does not spare it.
		done = pin(time.Minute)
		if err := env.Repo.Forget(ctx, name, "test"); err != nil {
			t.Fatal(err)
		}
		prune.Release(ctx)
		if err := <-done; err == nil || !strings.Contains(err.Error(), "undelete it") {
			t.Errorf("a prune that was quicker: %v", err)
		}
	})
}

func TestPruneReadsPinsUnderItsLease(t *testing.T) {
	// Who sees no lease of a prune has stored a pin that every prune will see.
	under := mem.New()
	st := faulty.New(under)
	env := envOf(t, newRepo(t, st, 4<<10))
	under.Advance(time.Since(must(under.Now(context.Background()))))
	nights(t, env, &disk{name: "disk", data: make([]byte, 1<<20)}, seeded(t, 1), 2)
	st.Fail(faulty.Rule{Kind: faulty.List, Prefix: "pins/", Nth: 1, Err: errors.New("no answer")})
	st.Fail(faulty.Rule{Kind: faulty.Put, Prefix: "leases/", Nth: 1, Err: errors.New("no lease")})
	if _, err := Prune(context.Background(), env, PruneOptions{Policy: retention.Policy{Last: 1}}); err == nil || !strings.Contains(err.Error(), "no lease") {
		t.Errorf("got %v, want it to fail at the lease", err)
	}
	st.Heal()
	st.Fail(faulty.Rule{Kind: faulty.List, Prefix: "pins/", Nth: 1, Err: errors.New("no answer")})
	if _, err := Prune(context.Background(), env, PruneOptions{Policy: retention.Policy{Last: 1}}); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("got %v, want it to fail at the pins", err)
	}
	st.Heal()
	wantNumbers(t, env, 1, 2)
	if live, _, err := env.Repo.Leases(context.Background()); err != nil || len(live) != 0 {
		t.Errorf("leases left: %+v, %v", live, err)
	}
	pruneLast(t, env, 1)
	wantNumbers(t, env, 2)
}

func TestPruneForgetsNoMoreThanItMay(t *testing.T) {
	// D43.
	env := newEnv(t, 4<<10)
	clock(env)
	ctx := context.Background()
	nights(t, env, &disk{name: "few", data: make([]byte, 1<<20)}, seeded(t, 1), 2)
	nights(t, env, &disk{name: "many", data: make([]byte, 1<<20)}, seeded(t, 2), 8)
	policy := func(n int) PruneOptions { return PruneOptions{Policy: retention.Policy{Last: n}, MaxDelete: 0.5} }
	r, err := Prune(ctx, env, policy(3))
	if !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), "5 of the 8 images of host/many") || !r.Refused || r.Dropped != 5 {
		t.Errorf("got %+v, %v", r, err)
	}
	opts := policy(4)
	opts.MaxCount = 3
	if _, err := Prune(ctx, env, opts); !errors.Is(err, ErrTooMany) {
		t.Errorf("4 images where 3 may go: %v", err)
	}
	if n := len(numbers(t, env)); n != 10 {
		t.Fatalf("%d images, want all 10", n)
	}
	if r, err := Prune(ctx, env, policy(4)); err != nil || r.Dropped != 4 || len(numbers(t, env)) != 6 {
		t.Errorf("exactly half: %+v, %v", r, err)
	}
}

func TestPoliciesByTagAndVolume(t *testing.T) {
	env := newEnv(t, 4<<10)
	clock(env)
	d := &disk{name: "disk", data: make([]byte, 1<<20)}
	for n := range 6 {
		random(seeded(t, uint64(n)), d.data[:4096])
		tags := []string{"nightly"}
		if n%3 == 0 {
			tags = []string{"release"}
		}
		mustBackup(t, env, d, BackupOptions{Tags: tags})
	}
	nights(t, env, &disk{name: "other", data: make([]byte, 1<<20)}, seeded(t, 9), 3)
	r, err := Prune(context.Background(), env, PruneOptions{Rules: []retention.Rule{
		{Name: "releases", Tags: []string{"release"}, All: true},
		{Name: "disks", Volumes: []string{"*/disk"}, Policy: retention.Policy{Last: 1}},
	}})
	if err != nil || r.Kept != 6 || r.Dropped != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, v := range r.Verdicts {
		if v.Volume == "host/other" && (!v.Keep || v.Reason != "no policy is for it") {
			t.Errorf("%+v", v)
		}
	}
}

func TestLastVerifiedImageIsKeptAndDamageUndoesIt(t *testing.T) {
	// D23: what one machine verified counts when another prunes.
	env := newEnv(t, 4<<10)
	clock(env)
	ctx := context.Background()
	st := env.Repo.Store.(*mem.Store)
	d := &disk{name: "disk", data: make([]byte, 1<<20)}
	images, _ := nights(t, env, d, seeded(t, 1), 3)
	verify := func(opts VerifyOptions, want error) {
		t.Helper()
		st.Advance(time.Second)
		bare := &Env{Repo: env.Repo, Memory: 8 << 20, Host: "elsewhere"}
		if _, err := Verify(ctx, bare, opts); !errors.Is(err, want) {
			t.Fatalf("verify: %v, want %v", err, want)
		}
	}
	check := func(i int) repo.Check { return must(env.Repo.Checks(ctx))[env.Repo.ManifestName(images[i])] }
	verify(VerifyOptions{Images: []string{images[1].ID.String()}, ReadData: true}, nil)
	verify(VerifyOptions{}, nil)
	if c := check(1); !c.Verified() || !c.Structure.After(c.Data) {
		t.Errorf("verified by every byte, then by structure: %+v", c)
	}
	if c := check(2); c.Verified() || c.Structure.IsZero() {
		t.Errorf("verified by structure alone: %+v", c)
	}
	more, _ := nights(t, env, d, seeded(t, 2), 2)
	pruneLast(t, env, 1)
	wantNumbers(t, env, 2, 5)
	if n := countObjects(t, env, "verified/"); n != 1 {
		t.Errorf("%d objects of results, want 1", n)
	}
	// A block of both is found damaged: neither is verified any more.
	name := spoilBlock(t, env, more[1])
	verify(VerifyOptions{ReadData: true}, ErrDamaged)
	if c := must(env.Repo.Checks(ctx))[env.Repo.ManifestName(more[1])]; c.Verified() || c.Damaged.IsZero() {
		t.Errorf("%s is damaged: %+v", name, c)
	}
	// Images that are gone for a day leave the results.
	pruneLast(t, env, 1)
	st.Advance(48 * time.Hour)
	if _, err := Verify(ctx, env, VerifyOptions{}); err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if checks := must(env.Repo.Checks(ctx)); len(checks) > 2 {
		t.Errorf("results of %d images, want those of the images there are", len(checks))
	}
}

// spoilBlock flips a bit in the first block that the run of an image stored.
func spoilBlock(t *testing.T, env *Env, m *image.Manifest) (object string) {
	t.Helper()
	for _, f := range footers(t, env.Repo, segment.Data) {
		if hex.EncodeToString(f.Run[:]) != m.Run {
			continue
		}
		object = segment.Name(f.ID)
		data := must(env.Repo.Store.Get(context.Background(), object, 1<<30))
		env.Repo.Store.(*mem.Store).Replace(object, flipped(data, int(f.Records[0].Offset)+3, 2))
		return object
	}
	t.Fatalf("image %s stored no block", m.ID)
	return ""
}

// A prune that finds an image forgotten by another since it judged it goes on.
func TestPruneFindsImagesForgotten(t *testing.T) {
	env := newEnv(t, 4<<10)
	images, _ := nights(t, env, &disk{name: "disk", data: make([]byte, 64<<10)}, seeded(t, 1), 4)
	busy := *env.Repo
	busy.Store = restless{env.Repo.Store, "pins/", func() { forget(t, env, images[1]) }}
	pruneLast(t, &Env{Repo: &busy, Catalog: env.Catalog, Memory: env.Memory, Host: env.Host}, 1)
	wantNumbers(t, env, 4)
}
