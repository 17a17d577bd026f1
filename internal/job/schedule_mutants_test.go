package job

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store"
)

// memo is what a broken program remembers of its listings.
type memo struct {
	pages  map[string]map[string][]store.Info // by prefix, then by where the page begins
	frozen bool
	lease  string   // put last
	high   string   // newest list of condemned segments seen
	late   []func() // effects still to come
}

func (p *process) memo() *memo {
	if p.memory == nil {
		p.memory = &memo{pages: map[string]map[string][]store.Info{}}
	}
	return p.memory
}

// watch follows how far a collection is: from the list it publishes to its end
// it is about to delete.
func watch(g *gate, kind, name string) {
	m := g.p.memo()
	switch {
	case kind == "put" && strings.HasPrefix(name, "trash/segments/"):
		m.frozen = true
	case kind == "put" && strings.HasPrefix(name, "leases/") && strings.HasSuffix(name, "-00000001"):
		m.frozen = false
	}
	if kind == "put" && strings.HasPrefix(name, "leases/") {
		m.lease = name
	}
}

// fatal has two of the backups die right after their first manifest.
func fatal(g *gate, kind, name string, _ func() error) (bool, error) {
	watch(g, kind, name)
	if p := g.p; kind == "put" && strings.HasPrefix(name, "images/") && (p.name == "backup0" || p.name == "backup1") {
		p.dies = p.ops + 1
	}
	return false, nil
}

func watching(g *gate, kind, name string, _ func() error) (bool, error) {
	watch(g, kind, name)
	return false, nil
}

// only makes a fault that of one kind of process.
func only(kind string, f func(g *gate, prefix, after string, page []store.Info) []store.Info) func(*gate, string, string, []store.Info) []store.Info {
	return func(g *gate, prefix, after string, page []store.Info) []store.Info {
		if g.p.kind() != kind {
			return page
		}
		return f(g, prefix, after, page)
	}
}

// mutants are the errors that the protocol is there to prevent. A rule that
// another one stands in for is broken together with that: a backup that lives
// notices what was taken from it and begins anew (D22, D41).
func mutants() []*mutant {
	skip := func(kind, op, prefix string) func(g *gate, k, name string, f func() error) (bool, error) {
		return func(g *gate, k, name string, _ func() error) (bool, error) {
			return g.p.kind() == kind && k == op && strings.HasPrefix(name, prefix), nil
		}
	}
	return []*mutant{
		{seed: 81, name: "a collector does not look at leases and images again", instead: watching, listed: only("collect", secondLook)},
		{seed: 153, name: "a collector deletes past older leases, and backups die before they look again", instead: fatal, listed: only("collect", func(g *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix == "leases/" && g.p.memo().frozen {
				return nil
			}
			return page
		})},
		{seed: 174, name: "a collector sees no leases", listed: only("collect", func(_ *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix == "leases/" {
				return nil
			}
			return page
		})},
		{seed: 1, name: "a collector misses the newest image of a volume", listed: only("collect", func(g *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix != "images/" {
				return page
			}
			return slices.DeleteFunc(page, func(o store.Info) bool { return strings.HasSuffix(o.Name, "3") })
		})},
		{seed: 473, name: "a collector publishes nothing", instead: unpublished},
		{seed: 72, name: "leases count as expired too soon, and backups die before they look again", instead: fatal, skew: map[string]time.Duration{"collect": repo.LeaseTTL + time.Minute}},
		{seed: 3, name: "leases are not renewed and count as valid, and backups die before they look again", instead: fatal, after: slowly, noTicks: true, uptime: func(*process) time.Duration { return time.Hour }},
		{seed: 3, name: "a backup's lease is gone before its image is there, and backups die before they look again", instead: earlyRelease},
		{seed: 245, name: "a backup does not look at what was condemned meanwhile", instead: looked, listed: only("backup", noNews), uptime: func(p *process) time.Duration {
			if p.kind() == "backup" {
				return time.Hour
			}
			return time.Hour + p.s.elapsed
		}},
		{seed: 138, name: "a backup takes condemned segments for good", got: forgiving},
		{seed: 1, name: "a manifest is there before its segments are durable", late: "backup"},
		{seed: 1, name: "prune leaves no tombstone", instead: skip("prune", "put", "trash/images/")},
		{seed: 29, name: "a name that is taken is written to again", instead: overwrite},
	}
}

// secondLook shows a collector that is about to delete what it saw before.
func secondLook(g *gate, prefix, after string, page []store.Info) []store.Info {
	m := g.p.memo()
	if prefix != "images/" && prefix != "leases/" {
		return page
	}
	if m.frozen {
		return slices.DeleteFunc(slices.Clone(m.pages[prefix][after]), func(o store.Info) bool {
			_, err := g.under.Head(g.p.s.t.Context(), o.Name)
			return err != nil
		})
	}
	if after == "" {
		m.pages[prefix] = map[string][]store.Info{}
	}
	m.pages[prefix][after] = page
	return page
}

// earlyRelease takes a backup's lease away, and lets others look before its
// manifest is there.
func earlyRelease(g *gate, kind, name string, f func() error) (bool, error) {
	if g.p.kind() == "backup" && kind == "put" && strings.HasPrefix(name, "segments/") {
		_ = g.under.Delete(g.p.s.t.Context(), g.p.memo().lease)
		g.p.stalled = g.p.s.steps + 300
	}
	return fatal(g, kind, name, f)
}

// slowly lets more time pass than leases hold after a backup has put a segment,
// and others look before its manifest is there.
func slowly(s *schedule, p *process, what string) {
	if p.kind() == "backup" && strings.HasPrefix(what, "put segments/") {
		s.advance(repo.LeaseTTL + time.Minute)
		synctest.Wait()
		p.stalled = s.steps + 300
	}
}

// unpublished keeps a collector's lists to itself, and lets others begin between
// its last look and what it deletes.
func unpublished(g *gate, kind, name string, _ func() error) (bool, error) {
	watch(g, kind, name)
	if m := g.p.memo(); g.p.kind() == "collect" && m.frozen && kind == "list" && name == "images/" {
		g.p.stalled = g.p.s.steps + 300
	}
	return g.p.kind() == "collect" && kind == "put" && strings.HasPrefix(name, "trash/segments/"), nil
}

func looked(g *gate, kind, name string, _ func() error) (bool, error) {
	if kind == "put" {
		g.p.memo().frozen = strings.HasPrefix(name, "images/")
	}
	return false, nil
}

// noNews hides from a backup that has put its manifest what was condemned since
// it looked last.
func noNews(g *gate, prefix, _ string, page []store.Info) []store.Info {
	m := g.p.memo()
	if prefix != "trash/segments/" {
		return page
	}
	for _, o := range page {
		if !m.frozen {
			m.high = max(m.high, o.Name)
		}
	}
	return slices.DeleteFunc(page, func(o store.Info) bool { return o.Name > m.high })
}

// forgiving empties the list of condemned segments for a backup.
func forgiving(g *gate, name string, b []byte) []byte {
	if g.p.kind() != "backup" || !strings.HasPrefix(name, "trash/segments/") {
		return b
	}
	var c repo.Condemned
	if _, err := g.p.s.repo.Keys.Open(keys.KindCondemned, name, b, &c); err != nil {
		panic(err)
	}
	c.Segments = nil
	object, _, err := g.p.s.repo.Keys.Seal(keys.KindCondemned, name, c)
	if err != nil {
		panic(err)
	}
	return object
}

func overwrite(g *gate, kind, name string, f func() error) (bool, error) {
	if kind == "put" && strings.HasPrefix(name, "images/") {
		_ = g.under.Delete(g.p.s.t.Context(), name)
	}
	return false, nil
}

// TestSchedulesCatchBrokenPrograms plays for each broken program the schedule
// that is known to show it. Where the program has changed so much that it does
// not any more, others are tried, and the one that does is told, to be written
// down; PLATTER_TEST_LONG looks for it anew.
func TestSchedulesCatchBrokenPrograms(t *testing.T) {
	if testing.Short() {
		t.Skip("schedules repeat only without the race detector, which shuffles goroutines")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, m := range mutants() {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			most := 10_000
			if !long() {
				if most = 500; m.caughtBy(t, m.seed) {
					return
				}
			}
			for i := range uint64(most) {
				if seed := firstSeed(t) + i; m.caughtBy(t, seed) {
					t.Logf("caught by schedule %d: write down its seed, %d", i+1, seed)
					return
				}
			}
			t.Errorf("not caught by %d schedules", most)
		})
	}
}

// caughtBy reports whether an image is not what it must be in a schedule.
func (m *mutant) caughtBy(t *testing.T, seed uint64) bool {
	s := runSchedule(t, seed, m)
	for _, p := range s.problems {
		t.Logf("seed %d: %s", seed, p)
	}
	return slices.ContainsFunc(s.problems, func(p string) bool { return strings.HasPrefix(p, "image ") })
}
