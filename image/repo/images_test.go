package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
	"platter/image/store/mem"
)

func newManifest(r *Repo, volume string, id byte) *image.Manifest {
	return &image.Manifest{ID: image.ImageID{id}, Volume: volume, BlockSize: r.Config.BlockSize, Size: 4097, Time: mem.Epoch()}
}

func commit(t testing.TB, r *Repo, volume string, id byte) string {
	t.Helper()
	name, err := r.Commit(t.Context(), newManifest(r, volume, id))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func listed(t testing.TB, r *Repo) (names []string) {
	t.Helper()
	if err := r.Manifests(t.Context(), func(name string) error { names = append(names, name); return nil }); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCommitNumbersImagesAndChainsThem(t *testing.T) {
	r, st := newRepo(t)
	var before image.Digest
	for n := uint64(1); n <= 20; n++ {
		m := newManifest(r, "h/a", byte(n))
		name, err := r.Commit(t.Context(), m)
		if err != nil || m.Seq != n || m.Predecessor != before {
			t.Fatalf("image %d: number %d, follows %v (want %v), %v", n, m.Seq, m.Predecessor, before, err)
		}
		if want := manifestName(r.Keys.VolumeTag("h/a", ""), n); name != want {
			t.Fatalf("name %s, want %s", name, want)
		}
		got, digest, err := r.ManifestDigest(t.Context(), name)
		if err != nil || got.ID != m.ID || got.Seq != n {
			t.Fatalf("image %d reads back as %+v, %v", n, got, err)
		}
		before = digest
		if n == 10 {
			commit(t, r, "h/b", 1) // another volume counts for itself
		}
	}
	if names := listed(t, r); len(names) != 21 || !slices.IsSorted(names) {
		t.Errorf("%d manifests, want 21 in order", len(names))
	}
	st.Replace("images/x", nil)
	st.Replace("images/"+r.Keys.VolumeTag("h/a", "")+"/0000000000000000", nil) // numbers begin at 1
	if names := listed(t, r); len(names) != 21 {
		t.Errorf("%d manifests listed beside junk, want 21", len(names))
	}
}

func TestRacingCommitsTakeDifferentNumbers(t *testing.T) {
	r, _ := newRepo(t)
	const n = 16
	var wg sync.WaitGroup
	seqs := make([]uint64, n)
	for i := range n {
		wg.Go(func() {
			m := newManifest(r, "h/a", byte(i+1))
			if _, err := r.Commit(t.Context(), m); err != nil {
				t.Error(err)
			}
			seqs[i] = m.Seq
		})
	}
	wg.Wait()
	slices.Sort(seqs)
	for i, seq := range seqs {
		if seq != uint64(i+1) {
			t.Fatalf("numbers %v, want 1 to %d", seqs, n)
		}
	}
	names := listed(t, r)
	var before image.Digest
	for _, name := range names {
		m, digest, err := r.ManifestDigest(t.Context(), name)
		if err != nil || m.Predecessor != before {
			t.Fatalf("%s follows %v, want %v (%v)", name, m.Predecessor, before, err)
		}
		before = digest
	}
}

func TestForgetLeavesATombstone(t *testing.T) {
	// D18.
	r, st := newRepo(t)
	var names []string
	for n := range 4 {
		names = append(names, commit(t, r, "h/a", byte(n+1)))
	}
	_, second, err := r.ManifestDigest(t.Context(), names[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(t.Context(), names[1], "old"); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, r); slices.Contains(got, names[1]) || len(got) != 3 {
		t.Errorf("listed after forgetting: %v", got)
	}
	grave, err := r.tombstone(t.Context(), "trash/"+names[1])
	if err != nil || grave.Image.ID != (image.ImageID{2}) || grave.Digest != second || grave.Reason != "old" || grave.Time.IsZero() {
		t.Errorf("tombstone %+v, %v", grave, err)
	}
	if gaps, err := r.Gaps(t.Context(), "h/a"); err != nil || len(gaps) != 0 {
		t.Errorf("gaps %v, %v, want none", gaps, err)
	}
	if err := r.Forget(t.Context(), names[1], "again"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("forgotten twice: %v", err)
	}
	// One that vanished is told from one that was pruned.
	if err := st.Delete(t.Context(), names[2]); err != nil {
		t.Fatal(err)
	}
	if gaps, err := r.Gaps(t.Context(), "h/a"); err != nil || !slices.Equal(gaps, []uint64{3}) {
		t.Errorf("gaps %v, %v, want 3", gaps, err)
	}
}

func TestNumbersAreNotUsedAgain(t *testing.T) {
	r, _ := newRepo(t)
	commit(t, r, "h/a", 1)
	last := commit(t, r, "h/a", 2)
	_, digest, err := r.ManifestDigest(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(t.Context(), last, "test"); err != nil {
		t.Fatal(err)
	}
	m := newManifest(r, "h/a", 3)
	if _, err := r.Commit(t.Context(), m); err != nil || m.Seq != 3 || m.Predecessor != digest {
		t.Errorf("number %d after a pruned 2, follows %v, want %v (%v)", m.Seq, m.Predecessor, digest, err)
	}
}

func TestNumberFreedMeanwhileIsNotTaken(t *testing.T) {
	// Another run makes and forgets an image between the look at the last
	// number and the claim of the next: the name is free, the number used.
	r, st := newRepo(t)
	commit(t, r, "h/a", 1)
	done := false
	other := *r
	r.Store = hooked{st, func(string) error {
		if !done {
			done = true
			return other.Forget(t.Context(), commit(t, &other, "h/a", 2), "test")
		}
		return nil
	}}
	m := newManifest(r, "h/a", 3)
	name, err := r.Commit(t.Context(), m)
	r.Store = st
	grave, problem := r.tombstone(t.Context(), "trash/"+manifestName(r.Keys.VolumeTag("h/a", ""), 2))
	if err != nil || problem != nil || m.Seq != 3 || m.Predecessor != grave.Digest {
		t.Errorf("number %d, follows %v, want 3 and %v (%v, %v)", m.Seq, m.Predecessor, grave.Digest, err, problem)
	}
	if names := listed(t, r); len(names) != 2 || names[1] != name {
		t.Errorf("listed %v", names)
	}
	if gaps, err := r.Gaps(t.Context(), "h/a"); err != nil || len(gaps) != 0 {
		t.Errorf("gaps %v, %v", gaps, err)
	}
}

func TestForgetAfterOneThatDied(t *testing.T) {
	r, st := newRepo(t)
	name := commit(t, r, "h/a", 1)
	dead := errors.New("dead")
	r.Store = refusing{st, dead}
	if err := r.Forget(t.Context(), name, "first"); !errors.Is(err, dead) {
		t.Fatal(err)
	}
	r.Store = st
	if got := listed(t, r); len(got) != 1 {
		t.Fatalf("listed %v: while the manifest is there the image exists", got)
	}
	if err := r.Forget(t.Context(), name, "second"); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, r); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
}

// refusing fails deletions.
type refusing struct {
	store.Store
	err error
}

func (r refusing) Delete(context.Context, string) error { return r.err }

func TestDamagedEndOfAChainDoesNotStopNewImages(t *testing.T) {
	for what, damage := range map[string]func(*Repo, *mem.Store, string){
		"manifest": func(_ *Repo, st *mem.Store, name string) { st.Replace(name, []byte("damaged")) },
		"tombstone": func(r *Repo, st *mem.Store, name string) {
			if err := r.Forget(t.Context(), name, "test"); err != nil {
				t.Fatal(err)
			}
			st.Replace("trash/"+name, []byte("damaged"))
		},
	} {
		r, st := newRepo(t)
		commit(t, r, "h/a", 1)
		damage(r, st, commit(t, r, "h/a", 2))
		m := newManifest(r, "h/a", 3)
		if _, err := r.Commit(t.Context(), m); err != nil || m.Seq != 3 || m.Predecessor != (image.Digest{}) {
			t.Errorf("damaged %s: number %d, follows %v, %v", what, m.Seq, m.Predecessor, err)
		}
	}
}

func TestCommitFailsWithItsStore(t *testing.T) {
	r, st := newRepo(t)
	for _, want := range []error{store.ErrNotDurable, store.ErrFull} {
		r.Store = hooked{st, func(string) error { return want }}
		if _, err := r.Commit(t.Context(), newManifest(r, "h/a", 1)); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	r.Store = st
	if got := listed(t, r); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
}

func TestManifestsThatLieAreRefused(t *testing.T) {
	r, st := newRepo(t)
	name := commit(t, r, "h/a", 1)
	set := func(field string, v any) func(map[string]any) { return func(m map[string]any) { m[field] = v } }
	extent := func(off, n int64) []map[string]int64 { return []map[string]int64{{"offset": off, "length": n}} }
	whole, err := st.Get(t.Context(), name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		change func(map[string]any)
		want   error
	}{
		"nothing":               {nil, nil},
		"an unknown field":      {set("colour", 1), nil},
		"a feature":             {set("features", []string{"x"}), keys.ErrNewer},
		"another volume":        {set("volume", "h/b"), image.ErrCorrupt},
		"another number":        {set("seq", 2), image.ErrCorrupt},
		"number 0":              {set("seq", 0), image.ErrCorrupt},
		"a negative number":     {set("seq", -1), image.ErrCorrupt},
		"another block size":    {set("block_size", 8192), image.ErrCorrupt},
		"block size 0":          {set("block_size", 0), image.ErrCorrupt},
		"a negative size":       {set("size", -1), image.ErrCorrupt},
		"the largest size":      {set("size", int64(image.MaxSize)), nil},
		"too large a size":      {set("size", int64(image.MaxSize)+1), image.ErrCorrupt},
		"size as text":          {set("size", "1"), image.ErrCorrupt},
		"no ID":                 {set("id", fmt.Sprintf("%032d", 0)), image.ErrCorrupt},
		"half an ID":            {set("id", "00"), image.ErrCorrupt},
		"half a root":           {set("root", "00"), image.ErrCorrupt},
		"an unreadable range":   {set("unreadable", extent(0, 4097)), nil},
		"one past the end":      {set("unreadable", extent(1, 4097)), image.ErrCorrupt},
		"one before the start":  {set("unreadable", extent(-1, 1)), image.ErrCorrupt},
		"one of negative bytes": {set("unreadable", extent(1, -1)), image.ErrCorrupt},
		"one around the end":    {set("unreadable", extent(1<<63-1, 1<<63-1)), image.ErrCorrupt},
	} {
		rewrite(t, st, r.Keys, keys.KindManifest, name, tt.change, nil)
		if _, err := r.Manifest(t.Context(), name); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", what, err, tt.want)
		}
		st.Replace(name, whole)
	}
	// A manifest under another's name.
	other := manifestName(r.Keys.VolumeTag("h/a", ""), 2)
	st.Replace(other, whole)
	if _, err := r.Manifest(t.Context(), other); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("manifest 1 as number 2: %v", err)
	}
	if _, err := r.Manifest(t.Context(), manifestName(r.Keys.VolumeTag("h/a", ""), 3)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no manifest: %v", err)
	}
}

func TestParseManifestName(t *testing.T) {
	tag := "0123456789abcdef0123456789abcdef"
	if got, seq, ok := ParseManifestName("images/" + tag + "/00000000000000ff"); !ok || got != tag || seq != 255 {
		t.Errorf("got %s, %d, %v", got, seq, ok)
	}
	for _, bad := range []string{
		"", "images", "images/", "images/" + tag, "images/" + tag + "/", "images/" + tag + "/1", "images/" + tag + "/0000000000000000",
		"images/" + tag + "/00000000000000fg", "images/" + tag[1:] + "/0000000000000001", "x/" + tag + "/0000000000000001",
		"images/" + tag + "/0000000000000001/x", "images/" + tag + "/+000000000000001", "images/" + tag + "/00000000000000FF",
	} {
		if _, _, ok := ParseManifestName(bad); ok {
			t.Errorf("%q was taken for a manifest", bad)
		}
	}
}

// FuzzManifest reads manifests of made-up JSON, sealed as they should be.
func FuzzManifest(f *testing.F) {
	r, st := newRepo(f)
	m := newManifest(r, "h/a", 1)
	if err := json.Unmarshal([]byte(`{"unreadable":[{"offset":1,"length":2}]}`), m); err != nil {
		f.Fatal(err)
	}
	name, err := r.Commit(f.Context(), m)
	if err != nil {
		f.Fatal(err)
	}
	object, err := st.Get(f.Context(), name, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	payload, _, err := r.Keys.Payload(keys.KindManifest, name, object)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(payload))
	f.Add(`{"size":-1}`)
	f.Add(strings.Replace(string(payload), "{", `{"unreadable":[{"offset":1,"length":2}],`, 1))
	f.Fuzz(func(t *testing.T, text string) {
		object, _, err := r.Keys.Seal(keys.KindManifest, name, rawJSON(text))
		if err != nil {
			t.Skip("not JSON")
		}
		st.Replace(name, object)
		m, err := r.Manifest(context.Background(), name)
		if err != nil {
			if !errors.Is(err, image.ErrCorrupt) && !errors.Is(err, keys.ErrNewer) {
				t.Fatalf("got %v", err)
			}
			return
		}
		if n := m.Blocks(); n < 0 || n > image.MaxSize/MinBlockSize || image.Levels(n) > image.MaxLevels {
			t.Fatalf("%d blocks", n)
		}
		for _, e := range m.Unreadable {
			if e.Offset < 0 || e.Length < 0 || e.End() < 0 || e.End() > m.Size {
				t.Fatalf("unreadable %v of %d bytes", e, m.Size)
			}
		}
	})
}

type rawJSON string

func (r rawJSON) MarshalJSON() ([]byte, error) { return []byte(r), nil }
