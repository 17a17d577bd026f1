package job

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store/mem"
	"platter/retention"
)

// twoWriters returns a sealed repository of an administrator, and the Env of an
// agent that writes to it.
func twoWriters(t *testing.T) (admin, agent *Env) {
	t.Helper()
	all, err := repo.Init(t.Context(), mem.New(), repo.InitOptions{BlockSize: 4096, IDAlgorithm: algorithm(), Encryption: &repo.Encryption{KeyFile: keyFileOf(1).KeyFile}})
	if err != nil {
		t.Fatal(err)
	}
	admin = envOf(t, all)
	clock(admin)
	r := *all
	r.Keys = must(r.Keys.NewWriter(true))
	return admin, envOf(t, &r)
}

// copyOf has an agent put an image into its own line that bears another's ID.
func copyOf(t *testing.T, agent *Env, m *image.Manifest, change func(*image.Manifest)) *image.Manifest {
	t.Helper()
	c := *m
	c.Writer, c.WriteOnly = agent.Repo.Keys.Writer().String(), true
	change(&c)
	name := agent.Repo.ManifestName(&c)
	object, _, err := agent.Repo.Keys.Seal(keys.KindManifest, name, &c)
	if err == nil {
		err = agent.Repo.Store.Put(t.Context(), name, object)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// D23, D42: whoever copies an image's ID shares neither its pins nor what was
// found of it.
func TestNotesAreOfOneImageNotOfItsID(t *testing.T) {
	admin, agent := twoWriters(t)
	d := &disk{name: "disk", data: make([]byte, 64<<10)}
	random(seeded(t, 61), d.data)
	own := mustBackup(t, admin, d, BackupOptions{}).Image
	whole := copyOf(t, agent, own, func(*image.Manifest) {})
	broken := copyOf(t, agent, own, func(m *image.Manifest) { m.Seq, m.Root = 2, image.ID{1: 7} })
	if own.ID != whole.ID || own.ID != broken.ID {
		t.Fatal("the copies bear other IDs")
	}
	if _, err := putPin(t.Context(), admin, own, PinOptions{Reason: "a case"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), admin, everyByte()); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: %v, want it to find the broken copy", err)
	}
	notes := must(ReadNotes(t.Context(), admin))
	for what, c := range map[string]struct {
		m                *image.Manifest
		pinned, verified bool
	}{"the image": {own, true, true}, "a copy": {whole, false, true}, "a broken copy": {broken, false, false}} {
		n := notes.Of(c.m)
		if (n.pinned() != "") != c.pinned || n.verified() != c.verified {
			t.Errorf("%s is pinned: %q, verified: %v; want %v, %v", what, n.pinned(), n.verified(), c.pinned, c.verified)
		}
	}
}

// A pin that names no manifest is one that nobody knows what it keeps.
func TestPinOfNothingStopsPrunes(t *testing.T) {
	env := newEnv(t, 4<<10)
	nights(t, env, &disk{name: "disk", data: make([]byte, 64<<10)}, seeded(t, 1), 2)
	if err := env.Repo.PutPin(t.Context(), &repo.Pin{Manifest: "images/1", Reason: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Prune(t.Context(), env, PruneOptions{Policy: retention.Policy{Last: 1}}); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("prune: %v", err)
	}
	wantNumbers(t, env, 1, 2)
}

// D43: what an agent calls a volume's images does not raise what may be taken
// from those of others.
func TestCapOfAPruneIsCountedByLine(t *testing.T) {
	admin, agent := twoWriters(t)
	d := &disk{name: "many", data: make([]byte, 64<<10)}
	nights(t, admin, d, seeded(t, 1), 8)
	nights(t, agent, d, seeded(t, 2), 3)
	synced(t, admin)
	prune := func(last int) (*PruneReport, error) {
		return Prune(context.Background(), admin, PruneOptions{Policy: retention.Policy{Last: last}, MaxDelete: 0.5})
	}
	if r, err := prune(3); !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), "5 of the 8 images of host/many:") {
		t.Errorf("5 of 8, beside 3 of another: %+v, %v", r, err)
	}
	if r, err := prune(4); err != nil || r.Dropped != 4 {
		t.Errorf("4 of 8: %+v, %v", r, err)
	}
	r, err := prune(1)
	if want := fmt.Sprintf("2 of the 3 images of host/many%%%.16s", agent.Repo.Keys.Writer()); !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), want) {
		t.Errorf("%+v, %v, want %q", r, err, want)
	}
}
