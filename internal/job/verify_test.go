package job

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"platter/block"
	"platter/image"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
)

func everyByte() VerifyOptions { return VerifyOptions{ReadData: true} }

func mustVerify(t *testing.T, env *Env, opts VerifyOptions) *VerifyReport {
	t.Helper()
	r, err := Verify(context.Background(), env, opts)
	if err != nil {
		t.Fatalf("verify: %v: %+v", err, r)
	}
	return r
}

// damagedBy verifies and returns the damage found.
func damagedBy(t *testing.T, env *Env, opts VerifyOptions) []Damage {
	t.Helper()
	r, err := Verify(context.Background(), env, opts)
	if err == nil {
		return nil
	}
	if !errors.Is(err, ErrDamaged) || r == nil || len(r.Damage) == 0 {
		t.Fatalf("verify: %v, report %+v, want damage", err, r)
	}
	return r.Damage
}

func TestVerifyFindsAWholeRepositoryWhole(t *testing.T) {
	for _, bs := range []int{4 << 10, 64 << 10} {
		env := newEnv(t, bs)
		if r := mustVerify(t, env, everyByte()); r.Images != 0 || r.Segments != 0 {
			t.Errorf("empty repository: %+v", r)
		}
		rng := seeded(t, 1)
		d := &disk{name: "disk", data: make([]byte, 300*bs+17)}
		d.fill(rng, bs)
		images, _ := nights(t, env, d, rng, 4)
		mustBackup(t, env, &disk{name: "zeros", data: make([]byte, 5*bs)}, BackupOptions{})
		mustBackup(t, env, &disk{name: "empty"}, BackupOptions{})
		bare := &Env{Repo: env.Repo, Memory: 8 << 20, Host: "host"}
		for _, e := range []*Env{env, bare} {
			r := mustVerify(t, e, VerifyOptions{})
			if r.Images != 6 || r.Pages == 0 || r.BytesRead != 0 || r.Scope != "structure" {
				t.Errorf("structure: %+v", r)
			}
			all := mustVerify(t, e, everyByte())
			if all.Blocks == 0 || all.BytesRead == 0 || all.Segments != segments(t, env) || all.Scope != "every byte" {
				t.Errorf("every byte: %+v of %d segments", all, segments(t, env))
			}
			one := mustVerify(t, e, VerifyOptions{Images: []string{images[0].ID.String(), "disk"}, ReadData: true})
			if one.Images != 2 || one.Blocks == 0 || one.Blocks > all.Blocks {
				t.Errorf("two images: %+v", one)
			}
			share := mustVerify(t, e, VerifyOptions{Subset: 0.01})
			if share.Segments != 1 || share.BytesRead == 0 || share.BytesRead >= all.BytesRead {
				t.Errorf("a share: %+v of %+v", share, all)
			}
		}
	}
}

func TestVerifyNamesWhatIsDamagedAndTheNextBackupHealsIt(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 500*bs)}
	random(seeded(t, 2), d.data)
	copy(d.data[77*bs:78*bs], d.data[300*bs:301*bs]) // two places
	first := mustBackup(t, env, d, BackupOptions{}).Image
	was := bytes.Clone(d.data)
	d.data[0]++
	second := mustBackup(t, env, d, BackupOptions{}).Image
	id := env.Repo.Hasher().Block(d.data[300*bs : 301*bs])
	at, err := env.Catalog.Locate(t.Context(), id)
	if err != nil || len(at) != 1 {
		t.Fatal(at, err)
	}
	f, _ := env.Repo.Footer(t.Context(), at[0].Segment)
	flipByte(t, env, segment.Name(f.ID), f.Records[at[0].Record].Offset+50)
	if got := damagedBy(t, env, VerifyOptions{}); got != nil {
		t.Errorf("structure: got %+v, want none: data was not read", got)
	}
	got := damagedBy(t, env, everyByte())
	want := map[string]int{}
	for _, m := range []*image.Manifest{first, second} {
		for _, n := range []int64{77, 300} {
			want[m.ID.String()+block.Extent{Offset: n * bs, Length: bs}.String()]++
		}
	}
	for _, g := range got {
		want[g.Image+g.Extent.String()]--
		if g.At != at[0] || g.Object != segment.Name(f.ID) || g.Volume != "host/disk" || g.Problem == "" {
			t.Errorf("got %+v", g)
		}
	}
	for place, n := range want {
		if n != 0 {
			t.Errorf("%s: reported %d times too few", place, n)
		}
	}
	// A second verification notes nothing twice.
	before := countObjects(t, env, "trash/damaged/")
	damagedBy(t, env, everyByte())
	if after := countObjects(t, env, "trash/damaged/"); after != before || before != 1 {
		t.Errorf("%d notes, then %d, want 1", before, after)
	}
	// The next backup stores the block again, and then all images are whole.
	third := mustBackup(t, env, d, BackupOptions{}).Image
	if third.Stats.New != bs {
		t.Errorf("stored %d new bytes, want %d", third.Stats.New, bs)
	}
	for _, m := range []*image.Manifest{second, third} {
		if !bytes.Equal(content(t, env, m), d.data) {
			t.Errorf("image %d is not healed", m.Seq)
		}
	}
	if !bytes.Equal(content(t, env, first), was) {
		t.Error("the first image is not healed")
	}
	mustVerify(t, env, everyByte())
}

func countObjects(t *testing.T, env *Env, prefix string) (n int) {
	t.Helper()
	if err := env.Repo.Store.List(context.Background(), prefix, func(store.Info) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestVerifyMissesNoLostObject(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	rng := seeded(t, 3)
	d := &disk{name: "disk", data: make([]byte, 400*bs+9)}
	random(rng, d.data)
	images, _ := nights(t, env, d, rng, 3)
	st := env.Repo.Store.(*mem.Store)
	ctx := t.Context()
	var names []string
	if err := st.List(ctx, "", func(o store.Info) error {
		if o.Name != "config" && !strings.HasPrefix(o.Name, "keys/") {
			names = append(names, o.Name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		whole, _ := st.Get(ctx, name, 1<<30)
		if err := st.Delete(ctx, name); err != nil {
			t.Fatal(err)
		}
		bare := &Env{Repo: env.Repo, Memory: 8 << 20, Host: "host"}
		got := damagedBy(t, bare, VerifyOptions{})
		_, seq, manifest := parseManifest(name)
		switch {
		case manifest && seq == 3:
			if got != nil {
				t.Errorf("%s: got %+v, but a newest image that is withheld leaves no trace", name, got)
			}
		case len(got) == 0 || got[0].Object != name:
			t.Errorf("%s is gone: got %+v", name, got)
		case !manifest && got[0].Image == "":
			t.Errorf("%s is gone: got %+v, want an image", name, got)
		}
		st.Replace(name, whole)
		clear := func() {
			_ = st.List(ctx, "trash/", func(o store.Info) error { return st.Delete(ctx, o.Name) })
		}
		clear()
	}
	mustVerify(t, env, everyByte())
	// Pruned images leave tombstones: no gap.
	forget(t, env, images[1])
	mustVerify(t, env, VerifyOptions{})
}

func parseManifest(name string) (tag string, seq uint64, ok bool) {
	parts := strings.Split(name, "/")
	if parts[0] != "images" {
		return "", 0, false
	}
	for _, c := range parts[2] {
		seq = seq<<4 | uint64(strings.IndexRune("0123456789abcdef", c))
	}
	return parts[1], seq, true
}

// Every flip of a bit and every cut is found by reading every byte, or does no
// harm: all images can be read.
func TestVerifyFindsEveryFlipThatHarms(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	rng := seeded(t, 4)
	d := &disk{name: "disk", data: make([]byte, 60*bs+9)}
	d.fill(rng, bs)
	images, contents := nights(t, env, d, rng, 2)
	st := env.Repo.Store.(*mem.Store)
	ctx := t.Context()
	var names []string
	if err := st.List(ctx, "", func(o store.Info) error {
		if o.Name != "config" && !strings.HasPrefix(o.Name, "keys/") {
			names = append(names, o.Name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	found, harmless := 0, 0
	for _, name := range names {
		whole, _ := st.Get(ctx, name, 1<<30)
		for off := 0; off < len(whole); off += 1 + rng.IntN(len(whole)/30+1) {
			bad := bytes.Clone(whole)
			bad[off] ^= 1 << rng.IntN(8)
			if rng.IntN(10) == 0 {
				bad = bad[:off]
			}
			st.Replace(name, bad)
			bare := &Env{Repo: env.Repo, Memory: 8 << 20, Host: "host"}
			if damagedBy(t, bare, everyByte()) != nil {
				found++
			} else {
				harmless++
				for i, m := range images {
					got, err := readImage(bare, m)
					if err != nil || !bytes.Equal(got, contents[i]) {
						t.Fatalf("%s, byte %d: verify found nothing, and image %d: %v", name, off, i, err)
					}
				}
			}
			_ = st.List(ctx, "trash/", func(o store.Info) error { return st.Delete(ctx, o.Name) })
		}
		st.Replace(name, whole)
	}
	t.Logf("%d found, %d harmless", found, harmless)
	if found == 0 {
		t.Error("nothing was found")
	}
}

func TestVerifyMergesNeighboursAndSparesImagesWithAnotherCopy(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 300*bs)}
	random(rand.New(rand.NewPCG(5, 5)), d.data)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	id := env.Repo.Hasher().Block(d.data[100*bs : 101*bs])
	at, _ := env.Catalog.Locate(t.Context(), id)
	f, _ := env.Repo.Footer(t.Context(), at[0].Segment)
	for n := range 3 {
		id := env.Repo.Hasher().Block(d.data[(100+n)*bs : (101+n)*bs])
		for i := range f.Records {
			if f.Records[i].ID == id {
				flipByte(t, env, segment.Name(f.ID), f.Records[i].Offset)
			}
		}
	}
	got := damagedBy(t, env, everyByte())
	var bytes int64
	for _, g := range got {
		bytes += g.Extent.Length
		if g.Image != m.ID.String() || g.Extent.Offset < 100*bs || g.Extent.End() > 103*bs {
			t.Errorf("got %+v", g)
		}
	}
	if bytes != 3*bs {
		t.Errorf("%d bytes damaged, want %d: %+v", bytes, 3*bs, got)
	}
}

func TestVerifyRefusesAbsurdShares(t *testing.T) {
	for _, share := range []float64{-0.1, 1.1} {
		if _, err := Verify(t.Context(), newEnv(t, 4096), VerifyOptions{Subset: share}); !errors.Is(err, ErrUsage) {
			t.Errorf("share %v: got %v, want a usage error", share, err)
		}
	}
}

// An image that was made after verify listed the manifests, and whose successor
// was forgotten before it listed tombstones, is not one that is gone.
func TestImagesMadeWhileVerifyLooksAreNotMissed(t *testing.T) {
	env := newEnv(t, 4096)
	d := &disk{name: "disk", data: make([]byte, 64<<10)}
	nights(t, env, d, seeded(t, 1), 1)
	busy := *env.Repo
	busy.Store = restless{env.Repo.Store, "images/", func() {
		made, _ := nights(t, env, d, seeded(t, 2), 2)
		forget(t, env, made[1])
	}}
	if r, err := Verify(t.Context(), &Env{Repo: &busy, Memory: 8 << 20, Host: "host"}, VerifyOptions{}); err != nil {
		t.Errorf("%v: %+v", err, r.Damage)
	}
}
