package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"platter/catalog"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/faulty"
	"platter/image/store/mem"
	"platter/retention"
)

// A tale is the life of a repository on a store that fails: init, backups of
// two disks, a prune, a collection, another backup. A step that fails is made
// again, and must then go well. After each step, every image that was
// acknowledged is there and right, and every other one that is there is right.
type tale struct {
	*testing.T
	under *mem.Store
	st    *faulty.Store
	repo  *repo.Repo // as the jobs see it
	env   *Env
	a, b  *disk
	want  map[image.ImageID][]byte // of images that were acknowledged
	// content that an image of a volume may hold, acknowledged or not
	may map[string][][]byte
	// problems are the errors that steps ended with.
	problems []error
}

func newTale(t *testing.T) *tale {
	under := mem.New()
	under.Advance(time.Since(mem.Epoch()))
	s := &tale{T: t, under: under, st: faulty.New(under), want: map[image.ImageID][]byte{}, may: map[string][][]byte{}}
	s.a, s.b = &disk{name: "a", data: make([]byte, 140*4096+5)}, &disk{name: "b", data: make([]byte, 20*4096)}
	random(seeded(t, 5), s.a.data[:40*4096])
	copy(s.a.data[130*4096:], "the second page")
	copy(s.b.data, s.a.data[10*4096:])
	return s
}

type taleStep struct {
	name string
	do   func(*tale) error
}

func taleSteps() []taleStep {
	return []taleStep{
		{"init", (*tale).init},
		{"first backup", func(s *tale) error { return s.backup(s.a, s.b) }},
		{"second backup", func(s *tale) error { return s.backup(s.a) }},
		{"third backup", func(s *tale) error { return s.backup(s.b, s.a) }},
		{"prune", (*tale).prune},
		{"collect", (*tale).collect},
		{"collect what was moved", (*tale).collect},
		{"last backup", func(s *tale) error { return s.backup(s.a, s.b) }},
	}
}

// run lives the tale to its end.
func (s *tale) run() error {
	for n, step := range taleSteps() {
		s.a.data[n*4096] ^= 0x55
		s.b.data[n*4096+7] ^= 0x55
		err := step.do(s)
		if e := s.check(); e != nil {
			return fmt.Errorf("after %s (%v): %w", step.name, err, e)
		}
		if err == nil {
			continue
		}
		s.problems = append(s.problems, fmt.Errorf("%s: %w", step.name, err))
		s.st.Heal()
		if err = step.do(s); err != nil {
			// A lease that could not be given up holds for its time.
			s.under.Advance(repo.LeaseTTL + time.Second)
			err = step.do(s)
		}
		if err == nil {
			err = s.check()
		}
		if err != nil {
			return fmt.Errorf("%s again: %w", step.name, err)
		}
	}
	s.st.Heal()
	_, err := Verify(context.Background(), &Env{Repo: s.repo, Memory: 8 << 20, Host: "host"}, VerifyOptions{ReadData: true})
	return err
}

func (s *tale) init() error {
	ctx := context.Background()
	r, err := repo.Init(ctx, s.st, repo.InitOptions{BlockSize: 4096, IDAlgorithm: algorithm()})
	if errors.Is(err, repo.ErrIsRepository) {
		r, err = repo.Open(ctx, s.st) // its answer was lost
	}
	if err != nil {
		return err
	}
	c, err := catalog.Open(ctx, catalog.Options{Dir: s.TempDir(), Repository: r.ID, BlockSize: 4096, Memory: catalog.MinMemory})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.Close() })
	s.repo, s.env = r, &Env{Repo: r, Catalog: c, Memory: 32 << 20, Version: "test", Host: "host"}
	return nil
}

func (s *tale) backup(disks ...*disk) error {
	opts := BackupOptions{}
	for _, d := range disks {
		opts.Sources = append(opts.Sources, d)
		s.may["host/"+d.name] = append(s.may["host/"+d.name], bytes.Clone(d.data))
	}
	reports, err := Backup(context.Background(), s.env, opts)
	for _, r := range reports {
		made := s.may[r.Image.Volume]
		s.want[r.Image.ID] = made[len(made)-1]
	}
	return err
}

// prune keeps the last image of each volume.
func (s *tale) prune() error {
	for id := range s.want {
		delete(s.want, id) // which of them goes, the images there will tell
	}
	report, err := Prune(context.Background(), s.env, PruneOptions{Policy: retention.Policy{Last: 1}})
	if report == nil {
		return err
	}
	for _, v := range report.Verdicts {
		if v.Keep && err == nil {
			made := s.may[v.Volume]
			var id image.ImageID
			if err := id.UnmarshalText([]byte(v.Image)); err != nil {
				s.Fatal(err)
			}
			s.want[id] = made[len(made)-1]
		}
	}
	return err
}

func (s *tale) collect() error {
	_, err := Collect(context.Background(), s.env, CollectOptions{MaxDelete: 1, indexFloor: 1})
	return err
}

// check reads all images there are, past the faults and without a catalog.
func (s *tale) check() error {
	if s.repo == nil {
		return nil
	}
	plain := *s.repo
	plain.Store = s.under
	bare := &Env{Repo: &plain, Memory: 8 << 20, Host: "host"}
	there := map[image.ImageID]bool{}
	var warned []string
	bare.Warn = func(w string) { warned = append(warned, w) }
	images, _, err := Images(context.Background(), bare, "")
	if err != nil || len(warned) > 0 {
		return fmt.Errorf("list: %v %q", err, warned)
	}
	for _, m := range images {
		there[m.ID] = true
		got, err := readImage(bare, m)
		if err != nil {
			return fmt.Errorf("image %d of %s: %w", m.Seq, m.Volume, err)
		}
		if want, ok := s.want[m.ID]; ok && !bytes.Equal(got, want) {
			return fmt.Errorf("image %d of %s differs", m.Seq, m.Volume)
		}
		if !slices.ContainsFunc(s.may[m.Volume], func(c []byte) bool { return bytes.Equal(c, got) }) {
			return fmt.Errorf("image %d of %s is what the disk never held", m.Seq, m.Volume)
		}
	}
	for id := range s.want {
		if !there[id] {
			return fmt.Errorf("image %s was acknowledged and is gone", id)
		}
	}
	return nil
}

func TestEveryStoreOperationFailsOnce(t *testing.T) {
	sweep(t)
	// D1, D3, D8, D17 to D22. make test tries a sample, PLATTER_TEST_LONG=1 all.
	whole := newTale(t)
	if err := whole.run(); err != nil || len(whole.problems) > 0 {
		t.Fatalf("without faults: %v, %v", err, whole.problems)
	}
	counts := map[faulty.Kind]int{}
	for _, op := range whole.st.Ops() {
		counts[op.Kind]++
	}
	rng := seeded(t, 31)
	tried, failed := 0, 0
	for _, kind := range []faulty.Kind{faulty.Put, faulty.Delete, faulty.List, faulty.Get, faulty.ReadAt, faulty.Head, faulty.Now} {
		// Writes are tried more often: they are what can go wrong for good.
		most := 6
		if kind == faulty.Put || kind == faulty.Delete {
			most = 14
		}
		if long() {
			most = counts[kind]
		}
		stride := max(1, counts[kind]/most)
		for nth := 1 + rng.IntN(stride); nth <= counts[kind]; nth += stride {
			for _, after := range []bool{false, true} {
				if !long() && after != (rng.IntN(2) == 0) || after && kind != faulty.Put && kind != faulty.Delete {
					continue
				}
				tried++
				s := newTale(t)
				s.st.Fail(faulty.Rule{Kind: kind, Nth: nth, After: after})
				if err := s.run(); err != nil {
					t.Fatalf("%s %d of %d failed (after its effect: %v): %v\nerrors met: %v", kind, nth, counts[kind], after, err, s.problems)
				}
				if len(s.problems) > 0 {
					failed++
				}
			}
		}
	}
	t.Logf("%d faults of %v operations, %d steps failed", tried, counts, failed)
}

func TestEveryOperationOfAKindFails(t *testing.T) {
	sweep(t)
	// A store that does not do a thing at all until somebody mends it.
	for _, rule := range []faulty.Rule{
		{Kind: faulty.Put, Prefix: "segments/"},
		{Kind: faulty.Put, Prefix: "images/"},
		{Kind: faulty.Put, Prefix: "leases/"},
		{Kind: faulty.Put, Prefix: "trash/"},
		{Kind: faulty.Delete, Prefix: "images/"},
		{Kind: faulty.Delete, Prefix: "segments/"},
		{Kind: faulty.Delete, Prefix: "leases/"},
		{Kind: faulty.List, Prefix: "trash/"},
		{Kind: faulty.List, Prefix: "images/"},
		{Kind: faulty.Get, Prefix: "images/"},
		{Kind: faulty.ReadAt},
		{Kind: faulty.Now},
		{Kind: faulty.Put, Prefix: "segments/", Err: store.ErrNotDurable},
		{Kind: faulty.Put, Prefix: "images/", Err: store.ErrNotDurable, After: true},
		{Kind: faulty.Put, Prefix: "segments/", Err: store.ErrFull},
		{Kind: faulty.Put, Prefix: "segments/", Err: store.ErrNotDurable, After: true},
	} {
		s := newTale(t)
		s.st.Fail(rule)
		if err := s.run(); err != nil {
			t.Errorf("%+v: %v\nerrors met: %v", rule, err, s.problems)
		}
		if rule.Kind != faulty.Delete && rule.Kind != faulty.Now && rule.Kind != faulty.ReadAt && len(s.problems) == 0 {
			t.Errorf("%+v: no step failed", rule)
		}
	}
}

func TestFullStore(t *testing.T) {
	sweep(t)
	// D8: a backup that finds no room fails; what was there is untouched, and
	// the next one needs only the rest.
	whole := newTale(t)
	if err := whole.run(); err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, op := range whole.st.Ops() {
		if op.Kind == faulty.Put {
			total += op.Size
		}
	}
	steps := int64(12)
	if long() {
		steps = 200
	}
	full := 0
	for n := range steps {
		s := newTale(t)
		s.st.SetRoom(total * n / steps)
		if err := s.run(); err != nil {
			t.Fatalf("room for %d of %d bytes: %v\nerrors met: %v", total*n/steps, total, err, s.problems)
		}
		for _, p := range s.problems {
			if !errors.Is(p, store.ErrFull) {
				t.Errorf("room for %d bytes: %v, want full", total*n/steps, p)
			}
			full++
		}
	}
	if full < int(steps)/2 {
		t.Errorf("%d of %d stores were full", full, steps)
	}
}

func TestWhatIsNotDurableIsWrittenAgain(t *testing.T) {
	// D4: under a new name, once; a second failure ends the run.
	for _, prefix := range []string{"segments/", "images/"} {
		for _, after := range []bool{false, true} {
			for _, times := range []int{1, 2} {
				s := newTale(t)
				if err := errors.Join(s.init(), s.backup(s.b)); err != nil {
					t.Fatal(err)
				}
				s.st.Forget()
				for n := range times {
					s.st.Fail(faulty.Rule{Kind: faulty.Put, Prefix: prefix, Nth: n + 1, After: after, Err: store.ErrNotDurable})
				}
				err := s.backup(s.a)
				if (err == nil) != (times == 1) || err != nil && !errors.Is(err, store.ErrNotDurable) {
					t.Errorf("%s not durable %d times (after its effect: %v): %v", prefix, times, after, err)
				}
				if err := s.check(); err != nil {
					t.Errorf("%s not durable %d times (after its effect: %v): %v", prefix, times, after, err)
				}
				seen := map[string]bool{}
				for _, op := range s.st.Ops() {
					if op.Kind == faulty.Put && strings.HasPrefix(op.Name, "segments/") && seen[op.Name] {
						t.Errorf("%s was put twice", op.Name)
					}
					seen[op.Name] = true
				}
				s.st.Heal()
				if err := errors.Join(s.backup(s.a), s.check()); err != nil {
					t.Errorf("%s not durable %d times (after its effect: %v), then well: %v", prefix, times, after, err)
				}
			}
		}
	}
}

func TestOrderOfDurability(t *testing.T) {
	// D3, D25: lease, segments, manifest, and only then the catalog.
	s := newTale(t)
	if err := errors.Join(s.init(), s.backup(s.a)); err != nil {
		t.Fatal(err)
	}
	random(seeded(t, 6), s.a.data)
	s.st.Forget()
	var mu sync.Mutex
	var early []string
	s.st.Before(func(op faulty.Op) {
		if op.Kind != faulty.Put {
			return
		}
		known := map[string]bool{}
		err := s.env.Catalog.Segments(context.Background(), func(i catalog.SegmentInfo) error { known[segment.Name(i.ID)] = true; return nil })
		err = errors.Join(err, s.env.Catalog.Manifests(context.Background(), func(name string, _ *image.Manifest) error { known[name] = true; return nil }))
		if err != nil || known[op.Name] {
			mu.Lock()
			early = append(early, fmt.Sprint(op, err))
			mu.Unlock()
		}
	})
	if err := s.backup(s.a); err != nil {
		t.Fatal(err)
	}
	if len(early) > 0 {
		t.Errorf("the catalog knew before the store: %q", early)
	}
	var order []string
	for _, op := range s.st.Ops() {
		if op.Kind == faulty.Put || op.Kind == faulty.Delete {
			part, _, _ := strings.Cut(op.Name, "/")
			order = append(order, string(op.Kind)+" "+part)
		}
	}
	order = slices.Compact(order)
	if want := []string{"put leases", "put segments", "put images", "delete leases"}; !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
}

func TestOrderOfGivingBack(t *testing.T) {
	// D18, D19: a tombstone before the manifest goes; a list before a segment
	// goes, and leases and manifests are listed in between, in this order.
	s := newTale(t)
	if err := errors.Join(s.init(), s.backup(s.a), s.backup(s.b)); err != nil {
		t.Fatal(err)
	}
	random(seeded(t, 6), s.a.data)
	if err := s.backup(s.a); err != nil {
		t.Fatal(err)
	}
	s.st.Forget()
	if err := s.prune(); err != nil {
		t.Fatal(err)
	}
	isList := func(s string) bool { return strings.HasPrefix(s, "list") }
	got := slices.DeleteFunc(s.order("images/", "trash/images/"), isList)
	if want := []string{"put trash/images/", "delete images/"}; !slices.Equal(got, want) {
		t.Errorf("pruned in the order %q, want %q", got, want)
	}
	s.st.Forget()
	if err := s.collect(); err != nil {
		t.Fatal(err)
	}
	got = s.order("segments/", "leases/", "images/", "trash/segments/")
	first := slices.Index(got, "put trash/segments/")
	last := slices.Index(got, "delete segments/")
	if first < 0 || last < first {
		t.Fatalf("collected in the order %q", got)
	}
	between := slices.DeleteFunc(slices.Clone(got[first:last]), func(s string) bool { return !isList(s) })
	if want := []string{"list leases/", "list images/"}; !slices.Equal(between, want) {
		t.Errorf("between the list and the first deletion: %q, want %q", between, want)
	}
}

// order returns which puts, lists and deletions there were below prefixes.
func (s *tale) order(prefixes ...string) (list []string) {
	for _, op := range s.st.Ops() {
		if op.Kind != faulty.Put && op.Kind != faulty.List && op.Kind != faulty.Delete {
			continue
		}
		for _, p := range prefixes {
			if strings.HasPrefix(op.Name, p) && (op.Kind != faulty.List || op.Name == p) {
				list = append(list, string(op.Kind)+" "+p)
			}
		}
	}
	return slices.Compact(list)
}
