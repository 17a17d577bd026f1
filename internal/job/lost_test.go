package job

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"platter/catalog"
	"platter/image/store/mem"
)

// A loss is a repository that has lost about half of its objects, and the way
// back of docs/recovery.md.
type loss struct {
	*testing.T
	x    *exhibit
	st   *mem.Store
	env  *Env            // of a machine that knew the repository when it was whole
	bare *Env            // of one that knows nothing
	gone map[string]bool // objects
	lost map[string]bool // images that verify names
	// absent are those that are gone, and all that collections have deleted: who
	// cannot read any more where something was moved, looks for it where it was.
	absent map[string][]byte
}

func TestHalfOfTheStoreIsLost(t *testing.T) {
	sweep(t)
	// P9, P10, D9, D11. Which half, is drawn: of what holds data, of the
	// manifests, or of all but what opens the repository, of which a copy is kept.
	n := uint64(2)
	if long() {
		n = 500
	}
	first := firstSeed(t)
	for name, x := range map[string]*exhibit{"plain": newExhibit(t), "sealed": newSealedExhibit(t)} {
		whole, lost, healed := 0, 0, 0
		for seed := first; seed < first+n; seed++ {
			for _, prefix := range []string{"segments/", "images/", ""} {
				l := x.lose(t, seed, prefix)
				w := l.restoreAll("lost")
				whole, lost = whole+w, lost+len(x.want)-w
				healed += l.wayBack() - w
				l.env.Catalog.Close()
				if t.Failed() {
					t.Fatalf("%s: seed %d, half of %q: without %q", name, seed, prefix, sortedKeys(l.gone))
				}
			}
		}
		t.Logf("%s: %d images whole, %d lost, of which %d healed", name, whole, lost, healed)
		if whole == 0 || lost == 0 || healed == 0 {
			t.Errorf("%s: something never happened", name)
		}
	}
}

// lose takes away each object under a prefix by the toss of a coin.
func (x *exhibit) lose(t *testing.T, seed uint64, prefix string) *loss {
	t.Helper()
	ctx := context.Background()
	l := &loss{T: t, x: x, gone: map[string]bool{}, absent: maps.Clone(x.past)}
	rng := rand.New(rand.NewPCG(seed, uint64(len(prefix))))
	changes := map[string][]byte{}
	for _, name := range x.names(prefix) {
		if opens := name == "config" || strings.HasPrefix(name, "keys/"); !opens && rng.IntN(2) == 0 {
			changes[name], l.absent[name], l.gone[name] = nil, nil, true
		}
	}
	l.st = x.with(changes)
	r := must(x.open(l.st))
	c := must(catalog.Open(ctx, catalog.Options{Dir: t.TempDir(), Repository: r.ID, BlockSize: 4096, Memory: catalog.MinMemory}))
	then := &Env{Repo: x.env.Repo, Catalog: c, Memory: 64 << 20, Host: "host"}
	must(c.Sync(ctx, then.Repo, nil))
	if list := must(Withheld(ctx, then)); len(list) > 0 {
		t.Fatalf("missed of a whole repository: %+v", list)
	}
	l.env = &Env{Repo: r, Catalog: c, Memory: 64 << 20, Version: "test", Host: "host"}
	l.bare = &Env{Repo: r, Memory: 8 << 20, Host: "host"}
	return l
}

// restoreAll has verify say what is lost, and restores all images. It returns
// how many come back.
func (l *loss) restoreAll(when string) (whole int) {
	l.Helper()
	ctx := context.Background()
	report, err := Verify(ctx, l.bare, VerifyOptions{ReadData: true})
	if err != nil && !errors.Is(err, ErrDamaged) {
		l.Fatalf("%s: verify: %v", when, err)
	}
	l.lost = map[string]bool{}
	for _, d := range report.Damage {
		l.lost[d.Image] = true
	}
	images, _, err := Images(ctx, l.bare, "")
	if err != nil {
		l.Fatalf("%s: images: %v", when, err)
	}
	path := filepath.Join(l.TempDir(), "restored")
	for _, m := range images {
		want, kept := l.x.want[m.ID]
		if !kept {
			want = l.x.pruned[m.ID] // its tombstone is gone, and it may be listed again
		}
		got, readErr := readImage(l.bare, m)
		_, err := Restore(ctx, l.bare, RestoreOptions{Image: m.ID.String(), Target: path, Confirm: yes})
		switch {
		case err == nil && !bytes.Equal(readFile(l.T, path), want) || readErr == nil && !bytes.Equal(got, want):
			l.Errorf("%s: image %d of %s restores to other bytes", when, m.Seq, m.Volume)
		case err == nil != (readErr == nil):
			l.Errorf("%s: image %d of %s restores: %v, reads: %v", when, m.Seq, m.Volume, err, readErr)
		case err == nil == l.lost[m.ID.String()]:
			l.Errorf("%s: image %d of %s restores: %v, verify names it: %v", when, m.Seq, m.Volume, err, err == nil)
		case err != nil && (!errors.Is(err, ErrDamaged) || !says(err, l.absent)):
			l.Errorf("%s: image %d of %s: %v, want damage that names what is gone", when, m.Seq, m.Volume, err)
		case err == nil && kept:
			whole++
		}
		_ = os.Remove(path)
	}
	// Every manifest that is gone is missed: the newest of a line by the machine
	// that has seen it, all older ones by every machine.
	missed := map[string]bool{}
	for _, d := range report.Damage {
		missed[d.Object] = true
	}
	for _, a := range must(Withheld(ctx, l.env)) {
		missed[a.Object] = true
	}
	for name := range l.gone {
		if strings.HasPrefix(name, "images/") && when == "lost" && !missed[name] && !l.behind(name) {
			l.Errorf("%s is gone, and nobody misses it", name)
		}
	}
	return whole
}

// behind reports whether a newer image of the line is gone with nothing after
// it that is there: the newest of those stands for all.
func (l *loss) behind(name string) bool {
	line := l.x.names(name[:strings.LastIndex(name, "/")+1])
	i := slices.Index(line, name)
	return i < len(line)-1 && !slices.ContainsFunc(line[i+1:], func(n string) bool { return !l.gone[n] })
}

// wayBack does what docs/recovery.md says, and returns how many images come
// back in the end: back up again, give up what is gone, forget what is not whole.
// Then nothing is wrong any more, also where space is given back.
func (l *loss) wayBack() (whole int) {
	l.Helper()
	ctx := context.Background()
	newest := map[string][]byte{}
	for _, m := range must(allImages(ctx, l.x.env)) {
		if m.Writer == l.env.Repo.Keys.Writer().String() {
			newest[strings.TrimPrefix(m.Volume, "host/")] = l.x.want[m.ID]
		}
	}
	for _, name := range sortedKeys(newest) {
		m := mustBackup(l.T, l.env, &disk{name: name, data: newest[name]}, BackupOptions{}).Image
		l.x.want[m.ID] = newest[name]
		defer delete(l.x.want, m.ID)
	}
	whole = l.restoreAll("backed up again")
	if _, err := BuryLost(ctx, l.env, false); err != nil {
		l.Errorf("give up what is lost: %v", err)
	}
	for _, m := range must(allImages(ctx, l.env)) {
		if l.lost[m.ID.String()] {
			forget(l.T, l.env, m)
		}
	}
	for range 2 {
		mustCollect(l.T, l.env, CollectOptions{})
	}
	if list := must(Withheld(ctx, l.env)); len(list) > 0 {
		l.Errorf("in the end %+v is missed", list)
	}
	for what, env := range map[string]*Env{"this machine": l.env, "another": l.bare} {
		if report, err := Verify(ctx, env, VerifyOptions{ReadData: true}); err != nil {
			l.Errorf("in the end, on %s: %v: %+v", what, err, report)
		}
	}
	if n := l.restoreAll("in the end"); n != whole {
		l.Errorf("%d images are whole in the end, %d were before", n, whole)
	}
	return whole - len(newest)
}
