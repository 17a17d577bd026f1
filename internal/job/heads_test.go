package job

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"platter/image"
	"platter/image/store"
	"platter/image/store/mem"
)

// A keeper holds a store, and shows of it what he likes.
type keeper struct {
	*testing.T
	env  *Env
	st   *mem.Store
	disk *disk
}

func newKeeper(t *testing.T) *keeper {
	t.Helper()
	env := newSealedEnv(t)
	k := &keeper{t, env, env.Repo.Store.(*mem.Store), &disk{name: "disk", data: make([]byte, 64<<10)}}
	for night := range 4 {
		random(seeded(t, uint64(70+night)), k.disk.data[:4096])
		k.backup()
	}
	return k
}

func (k *keeper) backup() *BackupReport {
	k.Helper()
	return mustBackup(k.T, k.env, k.disk, BackupOptions{})
}

// state is all objects, to be put back.
func (k *keeper) state() map[string][]byte {
	k.Helper()
	objects := map[string][]byte{}
	err := k.st.List(context.Background(), "", func(o store.Info) error {
		objects[o.Name] = must(k.st.Get(context.Background(), o.Name, 1<<30))
		return nil
	})
	if err != nil {
		k.Fatal(err)
	}
	return objects
}

func (k *keeper) setBack(objects map[string][]byte) {
	k.Helper()
	for name := range k.state() {
		if objects[name] == nil {
			k.withhold(name)
		}
	}
	for name, object := range objects {
		k.st.Replace(name, object)
	}
}

func (k *keeper) withhold(name string) {
	k.Helper()
	if err := k.st.Delete(context.Background(), name); err != nil {
		k.Fatal(err)
	}
}

// newest returns the newest image and its manifest's name.
func (k *keeper) newest() (*image.Manifest, string) {
	k.Helper()
	all := must(allImages(context.Background(), k.env))
	m := all[len(all)-1]
	return m, k.env.Repo.ManifestName(m)
}

func (k *keeper) withheld(env *Env) []Absent {
	k.Helper()
	return must(Withheld(context.Background(), env))
}

// missed wants an image to be missed here, by all commands, and nothing to be
// missed by a machine that has never seen it.
func (k *keeper) missed(object string) {
	k.Helper()
	for range 2 { // as often as one looks
		list := k.withheld(k.env)
		if len(list) != 1 || list[0].Object != object || list[0].Image == "" {
			k.Errorf("missed: %+v, want %s", list, object)
		}
	}
	v, err := Verify(context.Background(), k.env, VerifyOptions{})
	if !errors.Is(err, ErrDamaged) || !slices.ContainsFunc(v.Damage, func(d Damage) bool { return d.Object == object }) {
		k.Errorf("verify: %v %+v, want %s", err, v, object)
	}
	if list := k.withheld(envOf(k.T, k.env.Repo)); len(list) > 0 {
		k.Errorf("a new machine misses %+v", list)
	}
}

func (k *keeper) nothingMissed(what string) {
	k.Helper()
	if list := k.withheld(k.env); len(list) > 0 {
		k.Errorf("%s: %+v is missed", what, list)
	}
	if v, err := Verify(context.Background(), k.env, VerifyOptions{ReadData: true}); err != nil {
		k.Errorf("%s: verify: %v: %+v", what, err, v.Damage)
	}
}

func TestWithheldNewestImageIsMissed(t *testing.T) {
	k := newKeeper(t)
	k.nothingMissed("nothing happened")
	m, name := k.newest()
	object := must(k.st.Get(context.Background(), name, 1<<30))
	k.withhold(name)
	k.missed(name)
	// The next backup says so, and does not take its number: all machines see
	// the gap from then on.
	report := k.backup()
	if len(report.Absent) != 1 || report.Absent[0].Seq != m.Seq || report.Image.Seq != m.Seq+1 {
		t.Errorf("image %d was made and %+v is missed, want image %d without %d", report.Image.Seq, report.Absent, m.Seq+1, m.Seq)
	}
	fresh := envOf(t, k.env.Repo)
	if v, err := Verify(context.Background(), fresh, VerifyOptions{}); !errors.Is(err, ErrDamaged) || len(v.Damage) != 1 || v.Damage[0].Object != name {
		t.Errorf("verify on a new machine: %v %+v, want %s", err, v, name)
	}
	// It comes to light again, or is given up.
	k.st.Replace(name, object)
	k.nothingMissed("it is back")
	k.withhold(name)
	if list, err := BuryLost(context.Background(), fresh, true); err != nil || len(list) != 1 {
		t.Errorf("a dry run gives up %+v, %v", list, err)
	}
	if list, err := BuryLost(context.Background(), fresh, false); err != nil || len(list) != 1 || list[0].Seq != m.Seq {
		t.Errorf("given up: %+v, %v, want image %d", list, err, m.Seq)
	}
	k.nothingMissed("it was given up")
	if list := must(ListDeleted(context.Background(), k.env, "")); len(list) != 0 {
		t.Errorf("a lost image is offered to be brought back: %+v", list)
	}
	k.backup()
	k.nothingMissed("a backup later")
}

func TestRolledBackRepositoryIsMissed(t *testing.T) {
	k := newKeeper(t)
	before := k.state()
	k.backup()
	random(seeded(t, 75), k.disk.data[4096:8192])
	k.backup()
	_, name := k.newest()
	now := k.state()
	k.setBack(before)
	k.missed(name)
	// Another machine, which knows nothing, takes the numbers again.
	other := envOf(t, k.env.Repo)
	for range 2 {
		random(seeded(t, 76), k.disk.data[8192:][:4096])
		mustBackup(t, other, k.disk, BackupOptions{})
	}
	k.missed(name)
	k.setBack(now)
	k.nothingMissed("the newest state is back")
}

func TestPrunedImagesAreNotMissed(t *testing.T) {
	k := newKeeper(t)
	ctx := context.Background()
	m, name := k.newest()
	if err := k.env.Repo.Forget(ctx, name, "a test"); err != nil {
		t.Fatal(err)
	}
	k.nothingMissed("the newest image was pruned")
	if _, err := Undelete(ctx, k.env, UndeleteOptions{Image: m.ID.String(), Reason: "a test", By: "test@host"}); err != nil {
		t.Fatal(err)
	}
	k.nothingMissed("it was brought back")
	// A catalog of last week knows older images, a lost one none.
	old := envOf(t, k.env.Repo)
	k.withheld(old)
	k.backup()
	for _, env := range []*Env{old, envOf(t, k.env.Repo), {Repo: k.env.Repo, Memory: 8 << 20}} {
		if list := k.withheld(env); len(list) > 0 {
			t.Errorf("%+v is missed", list)
		}
	}
	all := must(allImages(ctx, k.env))
	for _, m := range all {
		forget(t, k.env, m)
	}
	k.nothingMissed("all was pruned")
	if r := k.backup(); r.Image.Seq != all[len(all)-1].Seq+1 || len(r.Absent) > 0 {
		t.Errorf("image %d, missed %+v", r.Image.Seq, r.Absent)
	}
	if got := content(t, k.env, must(allImages(ctx, k.env))[0]); !bytes.Equal(got, k.disk.data) {
		t.Error("the image differs")
	}
}
