package job

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/segment"
)

// synced brings an Env's catalog up to date.
func synced(t *testing.T, env *Env) *Env {
	t.Helper()
	if _, err := env.Catalog.Sync(context.Background(), env.Repo, nil); err != nil {
		t.Fatal(err)
	}
	return env
}

func TestAgentsDedupeAgainstThoseWhoReadAndWhatIsAttested(t *testing.T) {
	// D38.
	env := newSealedEnv(t)
	one, two := agentOf(t, env), agentOf(t, env)
	d := &disk{name: "one", data: make([]byte, 2<<20)}
	random(seeded(t, 41), d.data)
	same := func(name string) *disk { return &disk{name: name, data: d.data} }
	size := int64(len(d.data))
	if s := mustBackup(t, one, d, BackupOptions{}).Image.Stats; s.New != size {
		t.Fatalf("the first stored %d bytes, want %d", s.New, size)
	}
	if s := mustBackup(t, one, same("again"), BackupOptions{}).Image.Stats; s.New != 0 {
		t.Errorf("its own again: stored %d bytes, want 0", s.New)
	}
	if s := mustBackup(t, two, same("two"), BackupOptions{}).Image.Stats; s.New != size {
		t.Errorf("another agent's, not attested: stored %d bytes, want all of %d", s.New, size)
	}
	three := agentOf(t, env)
	if r := mustVerify(t, env, everyByte()); r.Attested == 0 {
		t.Errorf("attested %d segments", r.Attested)
	}
	if r := mustVerify(t, env, everyByte()); r.Attested != 0 {
		t.Errorf("attested %d segments once more", r.Attested)
	}
	m := mustBackup(t, three, same("three"), BackupOptions{}).Image
	if m.Stats.New != 0 || m.Stats.Overhead > 3*segment.Align {
		t.Errorf("another agent's, attested: stored %d bytes, and %d of maps", m.Stats.New, m.Stats.Overhead)
	}
	if !bytes.Equal(content(t, env, m), d.data) {
		t.Error("the image differs")
	}
	// What who reads has stored, an agent relies on at once.
	random(seeded(t, 42), d.data)
	mustBackup(t, env, same("full"), BackupOptions{})
	if s := mustBackup(t, three, same("four"), BackupOptions{}).Image.Stats; s.New != 0 {
		t.Errorf("that of one who reads: stored %d bytes, want 0", s.New)
	}
}

func TestManyAttestationsBecomeOne(t *testing.T) {
	env := newSealedEnv(t)
	agent := agentOf(t, env)
	d := &disk{name: "disk", data: make([]byte, 8192)}
	for n := range attestationsKept + 3 {
		random(seeded(t, uint64(n)), d.data)
		mustBackup(t, agent, d, BackupOptions{})
		mustVerify(t, env, everyByte())
	}
	if n := countObjects(t, env, "attest/"); n > 3 {
		t.Errorf("%d attestations are left", n)
	}
	for range 2 { // and the catalog forgets those that are gone
		trusted, err := env.trust(context.Background())
		if err != nil || len(trusted.attested) != segments(t, env) {
			t.Errorf("%d of %d segments attested, %v", len(trusted.attested), segments(t, env), err)
		}
	}
	s := 0
	if err := env.Catalog.Scan(context.Background(), attestSpace, "", func(string, []byte) error { s++; return nil }); err != nil || s > 3 {
		t.Errorf("the catalog remembers %d, %v", s, err)
	}
}

func TestCollectKeepsNoJunkInPlaceOfABlock(t *testing.T) {
	// D38: an agent has an image with the very pages of another's, and junk
	// under the IDs of its blocks.
	env := newSealedEnv(t)
	victim, rogue := agentOf(t, env), agentOf(t, env)
	tag := func(e *Env) string { return e.Repo.Keys.VolumeTag("host/disk", e.Repo.Keys.Writer().String()) }
	for tag(rogue) > tag(victim) { // its image is walked first
		rogue = agentOf(t, env)
	}
	d := &disk{name: "disk", data: make([]byte, 300*4096)}
	random(seeded(t, 43), d.data)
	mine := mustBackup(t, victim, d, BackupOptions{}).Image
	f := &forger{t, rogue}
	root := must(rogue.reader().Page(context.Background(), mine.Root, mine.RootAt))
	var leaves []image.Location
	for i, leaf := range root.Entries {
		if leaf.IsZero() {
			break
		}
		p := must(rogue.reader().Page(context.Background(), leaf, root.Hints[i]))
		var junk []forged
		for _, id := range p.Entries {
			if !id.IsZero() {
				junk = append(junk, forged{id, bytes.Repeat([]byte("junk"), 1024)})
			}
		}
		id, at := f.page(p.Entries[:], f.segment(segment.Data, junk...))
		if leaves = append(leaves, at); id != leaf {
			t.Fatal("the page is another")
		}
	}
	if len(leaves) < 2 {
		t.Fatalf("%d leaves, want 2 or more", len(leaves))
	}
	id, at := f.page(root.Entries[:], leaves)
	synced(t, rogue)
	f.commit(mine.Size, id, at)
	for range 3 {
		mustCollect(t, env, CollectOptions{MaxDelete: 1})
		if !bytes.Equal(content(t, env, mine), d.data) {
			t.Fatal("the image is lost")
		}
	}
	// The agent's next image relies on none of the junk.
	next := mustBackup(t, victim, d, BackupOptions{}).Image
	if !bytes.Equal(content(t, env, next), d.data) {
		t.Error("the next image differs")
	}
	if _, err := Verify(context.Background(), env, everyByte()); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: %v, want the junk named", err)
	}
	if got := segmentsBy(t, env, rogue.Repo.Keys.Writer()); len(got) == 0 {
		t.Error("nothing of the rogue's is left: this proves nothing")
	} else if trusted := must(env.trust(context.Background())); len(trusted.attested) > 0 {
		for _, id := range got {
			if _, ok := trusted.attested[id]; ok && footerOf(t, env, id).Kind == segment.Data {
				t.Errorf("junk in %s is attested", id)
			}
		}
	}
}

func segmentsBy(t *testing.T, env *Env, w keys.Writer) (list []image.SegmentID) {
	t.Helper()
	err := env.Repo.Segments(context.Background(), func(id image.SegmentID, _ int64, _ time.Time) error {
		if footerOf(t, env, id).Writer == w {
			list = append(list, id)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func footerOf(t *testing.T, env *Env, id image.SegmentID) *segment.Footer {
	t.Helper()
	return must(env.Repo.Footer(context.Background(), id))
}

func TestVolumesOfSeveralWritersAreAmbiguous(t *testing.T) {
	env := newSealedEnv(t)
	one, two := agentOf(t, env), agentOf(t, env)
	d := &disk{name: "disk", data: []byte(strings.Repeat("x", 5000))}
	a := mustBackup(t, one, d, BackupOptions{}).Image
	if m := must(Find(context.Background(), env, "disk")); m.ID != a.ID {
		t.Errorf("one writer: found %s, want %s", m.ID, a.ID)
	}
	b := mustBackup(t, two, d, BackupOptions{}).Image
	if a.Seq != 1 || b.Seq != 1 || a.Writer == b.Writer || !a.WriteOnly || b.Tracker.Parent != (image.ImageID{}) {
		t.Errorf("images %+v and %+v: want two lines", a, b)
	}
	for _, spec := range []string{"disk", "host/disk", "disk@2099-01-01"} {
		_, err := Find(context.Background(), env, spec)
		if err == nil || !strings.Contains(err.Error(), a.ID.String()) || !strings.Contains(err.Error(), b.ID.String()) {
			t.Errorf("%s: %v, want an error that names both", spec, err)
		}
	}
	for spec, want := range map[string]image.ImageID{
		a.ID.String(): a.ID, "disk%" + a.Writer[:16]: a.ID, "disk%" + strings.ToUpper(b.Writer[:8]): b.ID, "latest%" + a.Writer: a.ID, "disk@2099-01-01%" + b.Writer: b.ID,
	} {
		if m, err := Find(context.Background(), env, spec); err != nil || m.ID != want {
			t.Errorf("%s: %v, want %s", spec, err, want)
		}
	}
	for _, spec := range []string{"disk%", "disk%1234567", "disk%" + strings.Repeat("0", 64)} {
		if _, err := Find(context.Background(), env, spec); err == nil {
			t.Errorf("%s was found", spec)
		}
	}
	// An agent's own is what it means.
	if m := must(Find(context.Background(), two, "disk")); m.ID != b.ID {
		t.Errorf("found %s, want its own", m.ID)
	}
}
