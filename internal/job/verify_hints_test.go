package job

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"platter/image/store"
	"platter/image/store/mem"
)

func TestDamagedHintsAreToldAndReplaced(t *testing.T) {
	// An index and an object of moves are damaged: no image loses anything, verify
	// says so, and the next collection puts others in their place.
	env := newEnv(t, 4<<10)
	clock(env)
	images, contents := worn(t, env, 80)
	opts := CollectOptions{MaxUnused: 0.02, indexFloor: 1}
	mustCollect(t, env, opts)
	st := env.Repo.Store.(*mem.Store)
	objects := func(prefix string) (names []string) {
		err := st.List(context.Background(), prefix, func(o store.Info) error {
			names = append(names, o.Name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	damaged := append(objects("index/footers/"), objects("index/moves/")...)
	if len(damaged) < 2 {
		t.Fatalf("%q, want an index and moves", damaged)
	}
	if r, err := Verify(context.Background(), env, VerifyOptions{}); err != nil || r.Indexes == 0 || r.Indexed == 0 {
		t.Fatalf("verify: %v: %+v", err, r)
	}
	for _, name := range damaged {
		object := bytes.Clone(must(st.Get(context.Background(), name, 1<<30)))
		object[len(object)/2] ^= 1
		st.Replace(name, object)
	}
	r, err := Verify(context.Background(), env, VerifyOptions{})
	if !errors.Is(err, ErrDamaged) || len(r.Damage) != len(damaged) || !strings.Contains(r.Damage[0].Problem, noLoss) {
		t.Errorf("verify: %v: %+v, want %q", err, r.Damage, damaged)
	}
	sameContents := func() {
		for i, m := range images {
			if got, err := readImage(&Env{Repo: env.Repo, Memory: env.Memory}, m); err != nil || !bytes.Equal(got, contents[i]) {
				t.Errorf("image %d differs (%v)", m.Seq, err)
			}
		}
	}
	sameContents()
	mustCollect(t, env, opts)
	if len(objects("index/footers/")) == 0 {
		t.Error("there is no index any more")
	}
	sameImages(t, env, images, contents)
	// A collection where the damage was found by another machine.
	for _, name := range append(objects("index/footers/"), objects("index/moves/")...) {
		st.Replace(name, []byte("noise"))
	}
	fresh := envOf(t, env.Repo)
	mustCollect(t, fresh, opts)
	sameImages(t, fresh, images, contents)
}
