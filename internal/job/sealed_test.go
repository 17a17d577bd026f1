package job

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"platter/block"
	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
	"platter/retention"
)

var passphrase = []byte("correct horse")

func newSealedEnv(t *testing.T) *Env {
	t.Helper()
	r, err := repo.Init(context.Background(), mem.New(), repo.InitOptions{
		BlockSize: 4 << 10, IDAlgorithm: algorithm(), Encryption: &repo.Encryption{Passphrase: passphrase},
	})
	if err != nil {
		t.Fatal(err)
	}
	env := envOf(t, r)
	clock(env)
	return env
}

func TestSealedRepositoryKeepsEveryNight(t *testing.T) {
	env := newSealedEnv(t)
	d := &disk{name: "disk", data: make([]byte, 3<<20+777)}
	images, contents := nights(t, env, d, seeded(t, 21), 4)
	r, err := repo.Unlock(context.Background(), env.Repo.Store, &keys.Credentials{Passphrase: passphrase})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range images {
		if !bytes.Equal(content(t, &Env{Repo: r, Memory: 64 << 20}, m), contents[i]) {
			t.Errorf("image %d differs", i)
		}
	}
	v, err := Verify(context.Background(), env, VerifyOptions{ReadData: true})
	if err != nil || len(v.Damage) > 0 {
		t.Errorf("verify: %+v, %v", v.Damage, err)
	}
	fresh := envOf(t, r)
	if m := mustBackup(t, fresh, d, BackupOptions{}).Image; m.Stats.New != 0 {
		t.Errorf("with a new catalog %d bytes were stored again", m.Stats.New)
	}
}

func TestSealedRepositoryOpensWithNothingElse(t *testing.T) {
	st := newSealedEnv(t).Repo.Store
	for what, c := range map[string]*keys.Credentials{
		"no passphrase": nil, "a wrong one": {Passphrase: []byte("wrong")}, "a key file": {KeyFile: make([]byte, 32)},
	} {
		if _, err := repo.Unlock(context.Background(), st, c); !errors.Is(err, keys.ErrCredentials) {
			t.Errorf("%s: %v, want wrong password", what, err)
		}
	}
	plain := newEnv(t, 4<<10).Repo.Store
	if _, err := repo.Unlock(context.Background(), plain, &keys.Credentials{Passphrase: passphrase}); !errors.Is(err, keys.ErrCredentials) {
		t.Errorf("a passphrase for a repository in clear: %v, want a refusal", err)
	}
}

func TestSealedRepositoryShowsNoContent(t *testing.T) {
	env := newSealedEnv(t)
	secret := []byte("the secret recipe, stored over and over: ")
	d := &disk{name: "secretdisk", data: bytes.Repeat(secret, 50000)}
	m := mustBackup(t, env, d, BackupOptions{Tags: []string{"secrettag"}}).Image
	forget(t, env, mustBackup(t, env, d, BackupOptions{}).Image)
	once := &disk{name: "secretonce", data: make([]byte, 4096)}
	random(seeded(t, 27), once.data)
	forget(t, env, mustBackup(t, env, once, BackupOptions{}).Image)
	mustCollect(t, env, CollectOptions{Grace: time.Hour})
	f := footers(t, env.Repo, segment.Data)[0]
	if err := env.Repo.NoteDamage(context.Background(), []image.ID{f.Records[0].ID}, []image.Location{{Segment: f.ID}}); err != nil {
		t.Fatal(err)
	}
	lease := must(env.Repo.Acquire(context.Background(), repo.LeaseBackup, [16]byte{1}))
	defer lease.Release(context.Background())
	page := must(env.reader().Page(context.Background(), m.Root, m.RootAt))
	needles := [][]byte{secret[:12], []byte("secret"), []byte(`"host"`), []byte(`"boot"`)}
	for _, id := range []image.ID{m.Root, page.Entries[0], f.Records[0].ID} {
		needles = append(needles, id[8:20], []byte(id.String()[16:32]))
		if algorithm() == image.IDAlgorithm { // cut to 8 bits it is seven zeros and a byte, which stand anywhere
			needles = append(needles, id[:8], []byte(id.String()[:16]))
		}
	}
	kinds := map[string]bool{}
	eachObject(t, env.Repo.Store, func(name string, object []byte) {
		kind, _, _ := strings.Cut(strings.TrimPrefix(name, "trash/"), "/")
		kinds[kind+name[:2]] = true
		for _, n := range needles {
			if bytes.Contains(object, n) || strings.Contains(name, string(n)) {
				t.Errorf("%s holds %q in clear", name, n)
			}
		}
	})
	for _, k := range []string{"configco", "keyske", "segmentsse", "imagesim", "leasesle", "imagestr", "segmentstr", "damagedtr"} {
		if !kinds[k] {
			t.Errorf("no object of kind %s was looked at: %v", k, kinds)
		}
	}
}

func eachObject(t *testing.T, st store.Store, f func(name string, object []byte)) {
	t.Helper()
	err := st.List(context.Background(), "", func(o store.Info) error {
		object, err := st.Get(context.Background(), o.Name, segment.MaxSize)
		f(o.Name, object)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWriteOnlyKeysBackUpAndCannotRead(t *testing.T) {
	env := newSealedEnv(t)
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	images, contents := nights(t, env, d, seeded(t, 22), 2)
	writer := *env
	only := *env.Repo
	only.Keys = must(env.Repo.Keys.NewWriter(true))
	writer.Repo = &only
	again := mustBackup(t, &writer, d, BackupOptions{})
	if again.Image.Stats.New != 0 {
		t.Errorf("stored %d bytes of an unchanged disk", again.Image.Stats.New)
	}
	random(seeded(t, 23), d.data[:100<<10])
	m := mustBackup(t, &writer, d, BackupOptions{}).Image
	bare := &Env{Repo: &only, Memory: 64 << 20}
	if _, err := readImage(bare, m); !errors.Is(err, keys.ErrNoDataKey) {
		t.Errorf("reading with keys that only write: %v, want ErrNoDataKey", err)
	}
	if !bytes.Equal(content(t, env, m), d.data) || !bytes.Equal(content(t, env, images[1]), contents[1]) {
		t.Error("images differ for who has the data key")
	}
	if _, err := Verify(context.Background(), &writer, VerifyOptions{}); err != nil {
		t.Errorf("verify of the structure with keys that only write: %v", err)
	}
}

func TestSealedBlocksMoveWithoutTheDataKey(t *testing.T) {
	// A writer without the data key stores again what was condemned under it.
	env := newSealedEnv(t)
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	random(seeded(t, 24), d.data)
	mustBackup(t, env, d, BackupOptions{})
	writer := *env
	only := *env.Repo
	only.Keys = must(env.Repo.Keys.NewWriter(true))
	writer.Repo = &only
	other := &disk{name: "other", data: bytes.Clone(d.data)}
	var condemned []repo.CondemnedSegment
	other.hook = firstRead(func() {
		err := env.Repo.Segments(context.Background(), func(id image.SegmentID, size int64, _ time.Time) error {
			condemned = append(condemned, repo.CondemnedSegment{Segment: id, Size: size, Epoch: 1})
			return nil
		})
		if err == nil {
			err = env.Repo.PublishCondemned(context.Background(), &repo.Condemned{Epoch: 1, Segments: condemned})
		}
		if err != nil {
			t.Error(err)
		}
	})
	reports, err := Backup(context.Background(), &writer, BackupOptions{Sources: []block.Source{other}})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range condemned {
		if err := env.Repo.Store.Delete(context.Background(), segment.Name(s.Segment)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(content(t, env, reports[0].Image), d.data) {
		t.Error("image differs")
	}
}

func TestSealedObjectsCannotBeSwapped(t *testing.T) {
	// An object put under another's name, and one of another repository, are
	// refused; so is a record moved inside its segment.
	env := newSealedEnv(t)
	d := &disk{name: "disk", data: make([]byte, 1<<20)}
	nights(t, env, d, seeded(t, 25), 2)
	st := env.Repo.Store.(*mem.Store)
	var names []string
	objects := map[string][]byte{}
	eachObject(t, st, func(name string, object []byte) {
		names, objects[name] = append(names, name), object
	})
	for _, a := range names {
		for _, b := range names {
			if a == b || a == "config" || b == "config" {
				continue
			}
			st.Replace(a, objects[b])
			r, err := repo.Unlock(context.Background(), st, &keys.Credentials{Passphrase: passphrase})
			if err != nil {
				continue
			}
			if _, err := Verify(context.Background(), &Env{Repo: r, Memory: 64 << 20}, VerifyOptions{ReadData: true}); err == nil {
				t.Errorf("%s put under the name %s: verify found nothing", b, a)
			}
			st.Replace(a, objects[a])
		}
	}
}

func TestSealedPruneAndCollect(t *testing.T) {
	env := newSealedEnv(t)
	d := &disk{name: "disk", data: make([]byte, 2<<20)}
	images, contents := nights(t, env, d, seeded(t, 26), 4)
	if _, err := Prune(context.Background(), env, PruneOptions{Policy: retention.Policy{Last: 1}}); err != nil {
		t.Fatal(err)
	}
	if r := mustCollect(t, env, CollectOptions{}); len(r.Deleted) == 0 {
		t.Error("nothing was collected")
	}
	if !bytes.Equal(content(t, env, images[3]), contents[3]) {
		t.Error("the image that was kept differs")
	}
}
