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
		{rare: true, name: "a collector deletes past older leases", instead: watching, listed: only("collect", func(g *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix == "leases/" && g.p.memo().frozen {
				return nil
			}
			return page
		})},
		{rare: true, name: "a collector sees no leases", listed: only("collect", func(_ *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix == "leases/" {
				return nil
			}
			return page
		})},
		{rare: true, name: "a collector misses the newest image of a volume", listed: only("collect", func(g *gate, prefix, _ string, page []store.Info) []store.Info {
			if prefix != "images/" {
				return page
			}
			return slices.DeleteFunc(page, func(o store.Info) bool { return strings.HasSuffix(o.Name, "3") })
		})},
		{rare: true, name: "a collector publishes nothing", instead: skip("collect", "put", "trash/segments/")},
		{rare: true, name: "leases count as expired too soon", skew: map[string]time.Duration{"collect": repo.LeaseTTL + time.Minute}},
		{rare: true, name: "leases are not renewed", noTicks: true},
		{rare: true, name: "a lease's clock stands still while a machine sleeps", uptime: func(p *process) time.Duration { return time.Hour + p.machine.awake }},
		{rare: true, name: "a backup's lease is gone before its image is there", instead: earlyRelease},
		{rare: true, name: "a backup does not look at what was condemned meanwhile", instead: looked, listed: only("backup", noNews), uptime: func(p *process) time.Duration {
			if p.kind() == "backup" {
				return time.Hour
			}
			return time.Hour + p.s.elapsed
		}},
		{rare: true, name: "a backup takes condemned segments for good", got: forgiving},
		{rare: true, name: "a manifest is there before its segments are durable", late: "backup"},
		{rare: true, name: "a collector condemns what it moved before that is durable", late: "collect"},
		{rare: true, name: "prune leaves no tombstone", instead: skip("prune", "put", "trash/images/")},
		{rare: true, name: "a name that is taken is written to again", instead: overwrite},
	}
}

// secondLook shows a collector that is about to delete what it saw before.
func secondLook(g *gate, prefix, after string, page []store.Info) []store.Info {
	m := g.p.memo()
	if prefix != "images/" && prefix != "leases/" {
		return page
	}
	if m.frozen {
		return m.pages[prefix][after]
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

func overwrite(g *gate, kind, name string, f func() error) (bool, error) {
	if kind == "put" && strings.HasPrefix(name, "images/") {
		_ = g.under.Delete(g.p.s.t.Context(), name)
	}
	return false, nil
}

func TestSchedulesCatchBrokenPrograms(t *testing.T) {
	if testing.Short() {
		t.Skip("draws hundreds of schedules")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, m := range mutants() {
		if m.rare && !long() {
			continue
		}
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			const most = 3000
			for i := range uint64(most) {
				s := runSchedule(t, firstSeed(t)+i, m)
				if len(s.problems) > 0 {
					t.Logf("caught by schedule %d: %s", i+1, s.problems[0])
					return
				}
			}
			t.Errorf("not caught by %d schedules", most)
		})
	}
}
