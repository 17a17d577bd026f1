package cbttest

import (
	"platter/block"
	"platter/cbt"
)

// Nothing is known before the first image.
func firstRun(s *session) {
	s.change()
	r := s.begin("a")
	r.mark()
	r.distrusts(nil, "no generation at all")
	first := r.commit()
	s.change()
	s.image("a", first)
}

// A generation of another device, or of no device, says nothing of this one.
func foreignGeneration(s *session) {
	other := &session{Fixture: s.another(), ctx: s.ctx, random: s.random}
	for range 3 { // so that both histories have such a place
		s.write(block.Extent{Offset: 0, Length: 10})
		s.image("a", nil)
		other.write(block.Extent{Offset: 0, Length: 10})
		foreign := other.image("a", nil)
		r := s.begin("a")
		r.mark()
		r.distrusts(foreign.generation, "the generation of another device")
		r.distrusts(cbt.Generation("no generation"), "words")
		r.distrusts(make(cbt.Generation, 64), "64 zeros")
		r.commit()
	}
}

// What was committed away is gone, or still right.
func staleGeneration(s *session) {
	var all []*moment
	for i := range int64(4) {
		s.write(block.Extent{Offset: i * 100_000, Length: 5000})
		r := s.begin("a")
		r.mark()
		for _, m := range all {
			r.ask(m)
		}
		all = append(all, r.commit())
	}
}

// Single bytes on both sides of everything that a tracker may count in.
func edgesOfExtents(s *session) {
	last := s.image("a", nil)
	edges := []int64{512, 4096, 65536, 128 * 1024, s.Device.Size()}
	if s.Grain > 0 && s.Grain < s.Device.Size() {
		edges = append(edges, s.Grain, 3*s.Grain)
	}
	for _, edge := range edges {
		for _, e := range []block.Extent{
			{Offset: edge - 1, Length: 1},
			{Offset: edge, Length: 1},
			{Offset: edge - 1, Length: 2},
			{Offset: edge - 512, Length: 512},
			{Offset: edge - 512, Length: 513},
			{Offset: edge, Length: 4097},
			{Offset: 1, Length: edge},
			{Offset: 0, Length: edge},
		} {
			if e.End() > s.Device.Size() {
				continue
			}
			s.write(e)
			last = s.image("a", last)
		}
	}
}

// Zeros, however made, are changes.
func zeroesAndDiscards(s *session) {
	for i, erase := range []func(block.Extent) bool{
		s.zero,
		s.discard,
		func(e block.Extent) bool { s.put(e, make([]byte, e.Length)); return true },
	} {
		e := block.Extent{Offset: int64(i+1) * 131072, Length: 66048}
		s.write(e)
		before := s.image("a", nil)
		if erase(e) {
			s.image("a", before)
		}
	}
}

// What is written after the still view was taken is for the next image,
// whenever it comes: before mark, before the question, before commit.
func writesDuringRun(s *session) {
	last := s.image("a", nil)
	for range 3 {
		r := s.begin("a")
		s.write(block.Extent{Offset: 10_000, Length: 10})
		r.mark()
		s.write(block.Extent{Offset: 200_000, Length: 10})
		r.ask(last)
		s.write(block.Extent{Offset: 300_000, Length: 10})
		last = s.image("a", r.commit())
	}
}

// A run that fails has made no image: the next one compares with the same
// parent, and needs all that the failed one was told.
func runAbandoned(s *session) { interrupted(s, (*run).close) }

// So does one that dies.
func crashBeforeCommit(s *session) { interrupted(s, (*run).crash) }

func interrupted(s *session, end func(*run)) {
	last := s.image("a", nil)
	for range 3 {
		s.write(block.Extent{Offset: 50_000, Length: 10})
		r := s.begin("a")
		r.mark()
		r.ask(last)
		end(r)
		s.write(block.Extent{Offset: 400_000, Length: 10})
		r = s.begin("a")
		r.mark()
		if set := r.ask(last); set == nil && s.Grain > 0 {
			fail("the tracker lost the history although nothing was committed since")
		}
		last = r.commit()
	}
}

// The manifest is durable, and the run dies before it can say so: the next one
// compares with an image that the tracker was never told of.
func commitLost(s *session) {
	last := s.image("a", nil)
	for range 3 {
		s.write(block.Extent{Offset: 50_000, Length: 10})
		r := s.begin("a")
		r.mark()
		r.ask(last)
		s.write(block.Extent{Offset: 600_000, Length: 10})
		r.crash()
		s.write(block.Extent{Offset: 400_000, Length: 10})
		last = s.image("a", &r.now)
	}
}

// One consumer's commit takes nothing from another.
func twoConsumers(s *session) {
	a, b := s.image("a", nil), s.image("b", nil)
	for i := range int64(4) {
		s.write(block.Extent{Offset: i * 70_000, Length: 10})
		a = s.image("a", a)
		if i%2 == 1 {
			b = s.image("b", b)
		}
		s.image("a", b) // they may even ask with each other's
	}
}

// Every byte beyond the old end has changed, also when the device was longer
// once before.
func resized(s *session) {
	size := s.Device.Size()
	for _, sizes := range [][]int64{
		{size + 8192}, {size + 512*3}, {size / 2}, {size}, {size / 2, size}, {size * 2, size},
	} {
		s.write(block.Extent{Offset: s.Device.Size() - 99_000, Length: 90_000})
		last := s.image("a", nil)
		for _, to := range sizes {
			if !s.resize(to) {
				return
			}
			s.write(block.Extent{Offset: s.Device.Size() - 10, Length: 10})
		}
		r := s.begin("a")
		r.mark()
		if set, old := r.ask(last), int64(len(last.view)); set != nil {
			for off := old / sector * sector; off < set.Size(); off += sector {
				if !set.Contains(block.Extent{Offset: off, Length: sector}) {
					fail("the device grew from %d bytes to %d, and the set lacks the new sector at %d", old, set.Size(), off)
				}
			}
		}
		r.commit()
	}
}

// A history with a gap is none.
func unwatched(s *session) {
	if s.Unwatched == nil {
		return
	}
	last := s.image("a", nil)
	for range 3 {
		s.write(block.Extent{Offset: 50_000, Length: 10})
		check(s.Unwatched(func() error {
			s.write(block.Extent{Offset: 500_000, Length: 10})
			return nil
		}), "write unwatched")
		s.write(block.Extent{Offset: 700_000, Length: 10})
		last = s.image("a", last)
	}
}

// While nothing out of the way happens a tracker gives sets, which hold no
// more than what was written, rounded to its grain.
func cost(s *session) {
	if s.Grain == 0 {
		return
	}
	last := map[string]*moment{"a": s.image("a", nil), "b": s.image("b", nil)}
	for i := range 12 {
		for range s.random.IntN(4) {
			s.write(block.Extent{Offset: s.random.Int64N(s.Device.Size() - 3000), Length: 1 + s.random.Int64N(3000)})
		}
		consumer := []string{"a", "b", "a"}[i%3]
		r := s.begin(consumer)
		r.mark()
		set := r.ask(last[consumer])
		if set == nil {
			fail("the tracker lost the history of consumer %s, and nothing happened to it", consumer)
		}
		s.within(set, s.touched[last[consumer].touched:])
		if i%4 == 3 {
			r.close() // abandoned: the next run asks the same question
			continue
		}
		last[consumer] = r.commit()
	}
}

// within fails if the set holds what none of the extents touch.
func (s *session) within(set *cbt.Set, extents []block.Extent) {
	may := cbt.NewSet(set.Size())
	for _, e := range extents {
		from := e.Offset &^ (s.Grain - 1)
		may.Add(block.Extent{Offset: from, Length: (e.End()+s.Grain-1)&^(s.Grain-1) - from})
	}
	for e, ok := set.Next(0); ok; e, ok = set.Next(e.End()) {
		if m, _ := may.Next(e.Offset); m.Offset != e.Offset || m.End() < e.End() {
			fail("the set holds %v, of which only %v was written, with a grain of %d bytes", e, m, s.Grain)
		}
	}
}

// rounds mixes everything at random.
func rounds(s *session) {
	var images []*moment
	last := make(map[string]*moment)
	for range 30 {
		s.change()
		s.upheaval()
		consumer := []string{"a", "a", "b"}[s.random.IntN(3)]
		r := s.begin(consumer)
		s.change()
		r.mark()
		s.change()
		if m := last[consumer]; m != nil {
			r.ask(m)
		}
		if len(images) > 0 && s.random.IntN(4) == 0 {
			r.ask(images[s.random.IntN(len(images))])
		}
		s.change()
		switch s.random.IntN(6) {
		case 0:
			r.close()
			continue
		case 1:
			r.crash()
			continue
		case 2:
			r.crash() // with the manifest durable
		default:
			r.commit()
		}
		last[consumer] = &r.now
		images = append(images, &r.now)
	}
}

// upheaval resizes the device or looks away, rarely.
func (s *session) upheaval() {
	switch s.random.IntN(12) {
	case 0:
		s.resize((deviceSize/2 + s.random.Int64N(deviceSize)) / sector * sector)
	case 1:
		if s.Unwatched != nil {
			check(s.Unwatched(func() error { s.change(); return nil }), "write unwatched")
		}
	}
}
