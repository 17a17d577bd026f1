package job

import (
	"runtime"
	"slices"
	"strings"
	"testing"
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

// mutants are the errors that the protocol is there to prevent.
func mutants() []*mutant {
	skip := func(kind, op, prefix string) func(g *gate, k, name string, f func() error) (bool, error) {
		return func(g *gate, k, name string, _ func() error) (bool, error) {
			return g.p.kind() == kind && k == op && strings.HasPrefix(name, prefix), nil
		}
	}
	return []*mutant{
		{name: "a collector does not look at leases and images again", instead: watching, listed: only("collect", secondLook)},
		{name: "a collector deletes past older leases", instead: watching, listed: only("collect", func(g *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix == "leases/" && g.p.memo().frozen {
				return nil
			}
			return page
		})},
		{name: "a collector sees no leases", listed: only("collect", func(_ *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix == "leases/" {
				return nil
			}
			return page
		})},
		{name: "a collector misses the newest image of a volume", listed: only("collect", func(g *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix != "images/" {
				return page
			}
			return slices.DeleteFunc(page, func(o store.Info) bool { return strings.HasSuffix(o.Name, "3") })
		})},
		{name: "a collector publishes nothing", instead: skip("collect", "put", "trash/segments/")},
		{name: "leases count as expired too soon", skew: map[string]time.Duration{"collect": repo.LeaseTTL + time.Minute}},
		{name: "leases are not renewed", noTicks: true},
		{name: "a lease's clock stands still while a machine sleeps", uptime: func(p *process) time.Duration { return time.Hour + p.machine.awake }},
		{name: "a backup's lease is gone before its image is there", instead: earlyRelease},
		{name: "a backup does not look at what was condemned meanwhile", instead: looked, listed: only("backup", noNews), uptime: func(p *process) time.Duration {
			if p.kind() == "backup" {
				return time.Hour
			}
			return time.Hour + p.s.elapsed
		}},
		{name: "a backup takes condemned segments for good", got: forgiving},
		{name: "a manifest is there before its segments are durable", late: "backup"},
		{name: "a collector that slept goes on, and publishes over another's list", instead: overList, uptime: func(p *process) time.Duration {
			if p.kind() == "collect" {
				return time.Hour
			}
			return time.Hour + p.s.elapsed
		}},
		{name: "prune leaves no tombstone", instead: skip("prune", "put", "trash/images/")},
		{name: "a name that is taken is written to again", instead: overwrite},
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

func earlyRelease(g *gate, kind, name string, _ func() error) (bool, error) {
	watch(g, kind, name)
	if g.p.kind() == "backup" && kind == "put" && strings.HasPrefix(name, "segments/") {
		_ = g.under.Delete(g.p.s.t.Context(), g.p.memo().lease)
	}
	return false, nil
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

func overList(g *gate, kind, name string, _ func() error) (bool, error) {
	if kind == "put" && strings.HasPrefix(name, "trash/segments/") {
		_ = g.under.Delete(g.p.s.t.Context(), name)
	}
	return false, nil
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

func (m *mutant) caughtBy(t *testing.T, seed uint64) bool {
	s := runSchedule(t, seed, m)
	if len(s.problems) > 0 {
		t.Logf("seed %d: %s", seed, s.problems[0])
	}
	return len(s.problems) > 0
}
