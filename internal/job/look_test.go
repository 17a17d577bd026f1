package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"platter/block"
	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store"
	"platter/image/store/dir"
	"platter/image/store/vfs"
)

// listed returns made-up images, as manifests lists them.
func listed() []*image.Manifest {
	day := func(d, h int) time.Time { return time.Date(2026, 11, d, h, 30, 15, 500e6, time.Local) }
	m := func(id byte, volume string, seq uint64, at time.Time) *image.Manifest {
		return &image.Manifest{ID: image.ImageID{0xab, 0xcd, 0xef, 0x01, id}, Volume: volume, Seq: seq, Time: at}
	}
	return []*image.Manifest{
		m(1, "one/root", 1, day(1, 2)), m(2, "one/root", 2, day(2, 2)), m(3, "two/root", 1, day(2, 3)),
		m(4, "two/data", 1, day(3, 2)), m(5, "three/data", 7, day(3, 3)), m(6, "one/tank/vm", 1, day(4, 1)),
		m(7, "one/abcdef0109", 1, day(4, 2)), m(8, "one/root", 3, day(4, 3)),
	}
}

// findAt finds an image on a host, with keys that are no writer's.
func findAt(host string, all []*image.Manifest, spec string) (*image.Manifest, error) {
	return (&Env{Host: host, Repo: &repo.Repo{Keys: keys.New()}}).find(all, spec)
}

func TestFindUnderstandsImageNames(t *testing.T) {
	for spec, want := range map[string]byte{
		"latest": 8, "root": 8, "one/root": 8, "two/root": 3, "vm": 0, "tank/vm": 6, "one/tank/vm": 6,
		"root@2026-11-02": 2, "root@2026-11-03": 2, "root@2026-11-01": 1, "root@2026-11-04T03:30": 8, "root@2026-11-04T03:29": 2,
		"root@2026-11-04 03:30:15": 8, "root@2026-11-04T03:30:14": 2, "two/root@2027-01-01": 3,
		"root@" + time.Date(2026, 11, 2, 2, 30, 15, 0, time.Local).Format(time.RFC3339): 2,
		"root@" + time.Date(2026, 11, 2, 2, 30, 14, 0, time.Local).Format(time.RFC3339): 1,
		"abcdef0103": 3, "ABCDEF0104": 4, "abcdef0109": 7,
		"abcdef010500000000000000000000000": 0, "abcdef01050000000000000000000000": 5,
		"abcdef0": 0, "nothing": 0, "": 0, "root@yesterday": 0, "root@2026-10-31": 0, "nothing@2026-11-02": 0,
	} {
		m, err := findAt("one", listed(), spec)
		switch {
		case want == 0 && err == nil:
			t.Errorf("%q: got image %d, want an error", spec, m.ID[4])
		case want != 0 && (err != nil || m.ID[4] != want):
			t.Errorf("%q: got %v, %v, want image %d", spec, m, err, want)
		}
	}
	for spec, want := range map[string][]string{
		"data":     {"three/data", "two/data"},
		"abcdef01": {"abcdef0101", "abcdef0108"},
		"nothing":  {"one/root", "two/root"},
	} {
		_, err := findAt("one", listed(), spec)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%q: got %v, want it to name %q", spec, err, w)
			}
		}
	}
	if m, err := findAt("three", listed(), "data"); err != nil || m.ID[4] != 5 {
		t.Errorf("this host's own data: got %v, %v", m, err)
	}
	if _, err := findAt("one", nil, "latest"); err == nil {
		t.Error("found an image where there is none")
	}
}

func TestImagesLeavesOutWhatCannotBeReadAndSaysSo(t *testing.T) {
	env := newEnv(t, 4096)
	d := &disk{name: "disk", data: make([]byte, 20*4096)}
	rng := seeded(t, 1)
	nights(t, env, d, rng, 3)
	mustBackup(t, env, &disk{name: "other", data: make([]byte, 4096)}, BackupOptions{})
	var warnings []string
	bare := &Env{Repo: env.Repo, Memory: 8 << 20, Host: "host", Warn: func(s string) { warnings = append(warnings, s) }}
	for _, e := range []*Env{env, bare} {
		all, _, err := Images(t.Context(), e, "")
		one, _, err2 := Images(t.Context(), e, "disk")
		if err != nil || err2 != nil || len(all) != 4 || len(one) != 3 || one[0].Seq != 1 || one[2].Seq != 3 || all[3].Volume != "host/other" {
			t.Errorf("got %d and %d images, %v, %v", len(all), len(one), err, err2)
		}
		if _, _, err := Images(t.Context(), e, "nothing"); err == nil {
			t.Error("images of no volume: no error")
		}
	}
	name, err := firstManifest(env)
	if err != nil {
		t.Fatal(err)
	}
	flipByte(t, env, name, 70)
	all, _, err := Images(t.Context(), bare, "")
	if err != nil || len(all) != 3 || len(warnings) != 1 || !strings.Contains(warnings[0], name) {
		t.Errorf("got %d images, %v, warnings %q", len(all), err, warnings)
	}
}

func TestDiffOfImagesOfTwoSizes(t *testing.T) {
	const bs = 4096
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 300*bs+100)}
	random(seeded(t, 2), d.data)
	a := mustBackup(t, env, d, BackupOptions{}).Image
	d.data[5*bs]++
	d.data[7*bs-1]++
	d.data[100*bs]++
	d.data = append(d.data, make([]byte, 1000)...)
	b := mustBackup(t, env, d, BackupOptions{}).Image
	want := []block.Extent{{Offset: 5 * bs, Length: 2 * bs}, {Offset: 100 * bs, Length: bs}, {Offset: 300 * bs, Length: 1100}}
	for _, pair := range [][2]*image.Manifest{{a, b}, {b, a}} {
		got, err := Diff(t.Context(), env, pair[0].ID.String(), pair[1].ID.String())
		if err != nil || !slices.Equal(got.Extents, want) || got.Bytes != 3*bs+1100 {
			t.Errorf("got %+v, %v, want %v", got, err, want)
		}
	}
	if got, err := Diff(t.Context(), env, a.ID.String(), a.ID.String()); err != nil || len(got.Extents) != 0 || got.Bytes != 0 {
		t.Errorf("with itself: got %+v, %v", got, err)
	}
}

func TestStatsAgreeWithAndWithoutCatalog(t *testing.T) {
	env := newEnv(t, 4096)
	d := &disk{name: "disk", data: make([]byte, 100*4096+5)}
	nights(t, env, d, seeded(t, 3), 3)
	bare := &Env{Repo: env.Repo, Memory: 8 << 20, Host: "host"}
	a, err := Stats(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Stats(t.Context(), bare)
	if err != nil || *a != *b {
		t.Errorf("got %+v and %+v, %v", a, b, err)
	}
	if a.Images != 3 || a.Volumes != 1 || a.Logical != 3*(100*4096+5) || a.Segments != segments(t, env) || a.Blocks == 0 || a.Plain == 0 || a.Stored == 0 {
		t.Errorf("got %+v", a)
	}
}

func TestInspectShowsEveryObjectAndItsDamage(t *testing.T) {
	ctx := context.Background()
	root := filepath.Join(t.TempDir(), "repo")
	st, err := dir.Create(root, vfs.OS())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r, err := repo.Init(ctx, st, repo.InitOptions{BlockSize: 4096, IDAlgorithm: algorithm()})
	if err != nil {
		t.Fatal(err)
	}
	env := envOf(t, r)
	d := &disk{name: "disk", data: make([]byte, 50*4096)}
	rng := seeded(t, 4)
	images, _ := nights(t, env, d, rng, 2)
	forget(t, env, images[0])
	if err := r.NoteDamage(ctx, []image.ID{{1}}, []image.Location{{Record: 3}}); err != nil {
		t.Fatal(err)
	}
	holder, err := r.Acquire(ctx, repo.LeaseBackup, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Release(ctx)
	seen := map[string]bool{}
	if err := st.List(ctx, "", func(o store.Info) error {
		kind, _, _ := strings.Cut(o.Name, "/")
		seen[kind] = true
		for _, with := range []*repo.Repo{r, nil} {
			inspectObject(t, with, r, filepath.Join(root, o.Name), o.Name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"config", "keys", "segments", "images", "leases", "trash"} {
		if !seen[kind] {
			t.Errorf("no object under %s was looked at", kind)
		}
	}
	if err := Inspect(ctx, nil, nil, filepath.Join(root, "absent"), new(bytes.Buffer)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: got %v", err)
	}
	if err := Inspect(ctx, nil, nil, root, new(bytes.Buffer)); err == nil {
		t.Error("a directory: no error")
	}
}

// inspectObject inspects a file, and then each of a few damaged copies.
func inspectObject(t *testing.T, with, r *repo.Repo, path, name string) {
	t.Helper()
	ctx := context.Background()
	var out bytes.Buffer
	if err := Inspect(ctx, with, nil, path, &out); err != nil || !strings.Contains(out.String(), name) {
		t.Errorf("%s: %v:\n%s", name, err, &out)
	}
	for _, key := range [][]byte{r.Keys.ID[:], r.Keys.Structure[:]} {
		if strings.Contains(out.String(), fmt.Sprintf("%x", key)) {
			t.Errorf("%s: a key is shown", name)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(filepath.Dir(elsewhere), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{17, 60, len(whole) / 2, len(whole) - 100} {
		bad := bytes.Clone(whole)
		bad[off] ^= 0x21
		if err := os.WriteFile(elsewhere, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		err := Inspect(ctx, r, nil, elsewhere, new(bytes.Buffer))
		padding := strings.HasPrefix(name, "segments/") && whole[off] == 0
		if !errors.Is(err, ErrDamaged) && !padding {
			t.Errorf("%s, byte %d flipped: got %v, want damage", name, off, err)
		}
	}
	for _, n := range []int{0, 10, len(whole) / 2, len(whole) - 1} {
		if err := os.WriteFile(elsewhere, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Inspect(ctx, r, nil, elsewhere, new(bytes.Buffer)); err == nil {
			t.Errorf("%s cut to %d bytes: no error", name, n)
		}
	}
}

func TestInspectKeepsContentFromSpeakingToTheTerminal(t *testing.T) {
	var out bytes.Buffer
	p := printable{&out}
	if n, err := p.Write([]byte("a\x1b[2Jb\u009bc\xffd\n")); n != 12 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	if got, want := out.String(), `a\x1b[2Jb\u009bc`+"\ufffdd\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
