package crashfs

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
)

// States yields up to k file systems that a crash at this moment may leave,
// each for itself, ready to be used and to crash again. The first ones are the
// extremes, those of the list below, the others follow from seed. When
// everything is durable there is one.
//
// f may go on being used, and States be called again.
func (f *FS) States(seed uint64, k int) iter.Seq[*FS] {
	return func(yield func(*FS) bool) {
		if !f.dirty() {
			k = min(k, 1)
		}
		for i := range k {
			if !yield(f.after(seed, i)) {
				return
			}
		}
	}
}

// A chooser decides what survives.
type chooser struct {
	name   string
	random bool
	edit   func(e *edit) bool
	// data returns what is left of a file that is not wholly synced.
	data func(n *node) []byte
}

func (f *FS) after(seed uint64, i int) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := choose(seed, i)
	copies := make(map[*node]*node)
	return newFS(c.survivor(f.root, copies), f.clock, "state "+c.name)
}

func choose(seed uint64, i int) chooser {
	yes, no := func(*edit) bool { return true }, func(*edit) bool { return false }
	made, removed := func(e *edit) bool { return e.to != "" }, func(e *edit) bool { return e.to == "" }
	extremes := []chooser{
		{name: "all that was not synced lost", edit: no, data: lost},
		{name: "all kept", edit: yes, data: kept},
		{name: "names kept, data lost", edit: yes, data: lost},
		{name: "names kept, data zeros", edit: yes, data: zeros},
		{name: "removals kept, new names lost", edit: removed, data: kept},
		{name: "new names kept, removals lost", edit: made, data: kept},
	}
	if i < len(extremes) {
		return extremes[i]
	}
	rng := rand.New(rand.NewPCG(seed, uint64(i)))
	// Some states lose nearly everything, some nearly nothing.
	odds := []float64{0.1, 0.5, 0.9}
	names, data := odds[rng.IntN(3)], odds[rng.IntN(3)]
	return chooser{
		name:   fmt.Sprintf("random %d", i),
		random: true,
		edit:   func(*edit) bool { return rng.Float64() < names },
		data:   func(n *node) []byte { return torn(n, rng, data) },
	}
}

// survivor returns what is left of n. A file that has two names stays one
// file.
func (c *chooser) survivor(n *node, copies map[*node]*node) *node {
	if n.names == nil && n.closed && n.synced == len(n.data) {
		return n // nothing changes it any more
	}
	if s, ok := copies[n]; ok {
		return s
	}
	s := &node{modified: n.modified}
	copies[n] = s
	if n.names == nil {
		s.data = kept(n)
		if n.synced < len(n.data) {
			s.data = c.data(n)
		}
		s.synced, s.closed = len(s.data), true
		return s
	}
	s.names = c.surviving(n)
	if !c.random {
		for name, child := range s.names {
			s.names[name] = c.survivor(child, copies)
		}
		return s
	}
	for _, name := range slices.Sorted(maps.Keys(s.names)) { // so that a seed repeats
		s.names[name] = c.survivor(s.names[name], copies)
	}
	return s
}

// surviving returns what is left of the names in a directory.
func (c *chooser) surviving(n *node) map[string]*node {
	if len(n.pending) == 0 {
		return maps.Clone(n.names)
	}
	left := maps.Clone(n.durable)
	for _, e := range n.pending {
		if c.edit(e) {
			e.apply(left)
		}
	}
	return left
}

func lost(n *node) []byte { return n.data[:n.synced:n.synced] }

func kept(n *node) []byte { return n.data[:len(n.data):len(n.data)] }

func zeros(n *node) []byte {
	p := make([]byte, len(n.data))
	copy(p, n.data[:n.synced])
	return p
}

// torn keeps each sector past the synced ones with the given odds; the others
// are zeros or junk. The file ends anywhere from there to its seen end.
func torn(n *node, rng *rand.Rand, odds float64) []byte {
	end := len(n.data)
	if rng.Float64() >= odds {
		end = n.synced + rng.IntN(end-n.synced+1)
	}
	p := append([]byte(nil), n.data[:end]...)
	sector, junk := []int{512, 4096}[rng.IntN(2)], byte(rng.IntN(2)*0xa5)
	for at := n.synced; at < end; {
		next := min(end, (at/sector+1)*sector)
		if rng.Float64() >= odds {
			for i := range p[at:next] {
				p[at+i] = junk
			}
		}
		at = next
	}
	return p
}

// dirty reports whether anything that can be reached is not durable.
func (f *FS) dirty() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.root.dirty()
}

func (n *node) dirty() bool {
	if n.synced < len(n.data) || len(n.pending) > 0 {
		return true
	}
	for _, c := range n.names {
		if c.dirty() {
			return true
		}
	}
	return false
}
