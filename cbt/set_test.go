package cbt

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"platter/block"
)

// model keeps a Set as one bool for each of its units.
type model struct {
	size, unit int64
	in         []bool
}

func newModel(size, unit int64) *model {
	return &model{size, unit, make([]bool, (size+unit-1)/unit)}
}

func (m *model) add(e block.Extent) {
	for i := range m.in {
		if m.touches(int64(i), e) {
			m.in[i] = true
		}
	}
}

func (m *model) contains(e block.Extent) bool {
	for i := range m.in {
		if m.in[i] && m.touches(int64(i), e) {
			return true
		}
	}
	return false
}

func (m *model) touches(unit int64, e block.Extent) bool {
	return e.Length > 0 && e.Offset < min(m.size, (unit+1)*m.unit) && e.End() > unit*m.unit
}

func (m *model) extents() (all []block.Extent) {
	for i := 0; i < len(m.in); i++ {
		if !m.in[i] {
			continue
		}
		j := i
		for j < len(m.in) && m.in[j] {
			j++
		}
		from := int64(i) * m.unit
		all = append(all, block.Extent{Offset: from, Length: min(m.size, int64(j)*m.unit) - from})
		i = j
	}
	return all
}

func extents(s *Set) (all []block.Extent) {
	for e, ok := s.Next(0); ok; e, ok = s.Next(e.End()) {
		all = append(all, e)
	}
	return all
}

// extentOn draws an extent that mostly lies on the device and is mostly short.
// Drawn evenly: shrinking towards small numbers would hide what happens where
// extents touch.
func extentOn(random *rand.Rand, size int64) block.Extent {
	off := random.Int64N(size+18_000) - 9000
	if random.IntN(2) == 0 {
		off = off / 4096 * 4096
	}
	length := random.Int64N([]int64{1, 3, 4098, 20_000, 2*size + 1}[random.IntN(5)]+1) - 1
	if random.IntN(4) == 0 {
		length = (1 + random.Int64N(3)) * 4096
	}
	return block.Extent{Offset: off, Length: length}
}

func TestSetAgreesWithOneBoolPerUnit(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 0))
		size := random.Int64N([]int64{1, 2, 4098, 100_000, 900_000}[random.IntN(5)])
		s, m := NewSet(size), newModel(size, 4096)
		for range random.IntN(40) {
			e := extentOn(random, size)
			s.Add(e)
			m.add(e)
		}
		agree(t, seed, s, m)
		for range 20 {
			if e := extentOn(random, size); s.Contains(e) != m.contains(e) {
				t.Fatalf("seed %d: Contains(%v): got %v, want %v", seed, e, s.Contains(e), m.contains(e))
			}
			off := random.Int64N(size+3) - 1
			got, ok := s.Next(off)
			if want, wantOK := nextOf(m.extents(), max(off, 0)); got != want || ok != wantOK {
				t.Fatalf("seed %d: Next(%d): got %v %v, want %v %v", seed, off, got, ok, want, wantOK)
			}
			got, ok = s.NextOut(off)
			if want, wantOK := nextOf(outside(m.extents(), size), max(off, 0)); got != want || ok != wantOK {
				t.Fatalf("seed %d: NextOut(%d): got %v %v, want %v %v", seed, off, got, ok, want, wantOK)
			}
		}
	}
}

func agree(t *testing.T, seed uint64, s *Set, m *model) {
	t.Helper()
	got, want := extents(s), m.extents()
	if !slices.Equal(got, want) {
		t.Fatalf("seed %d, size %d: got %d extents, want %d: %v, want %v", seed, s.Size(), len(got), len(want), few(got), few(want))
	}
	var n int64
	for _, e := range want {
		n += e.Length
	}
	if s.Bytes() != n {
		t.Fatalf("seed %d: got %d bytes, want %d", seed, s.Bytes(), n)
	}
}

func few(all []block.Extent) []block.Extent { return all[:min(len(all), 8)] }

func nextOf(all []block.Extent, off int64) (block.Extent, bool) {
	for _, e := range all {
		if e.End() > off {
			from := max(off, e.Offset)
			return block.Extent{Offset: from, Length: e.End() - from}, true
		}
	}
	return block.Extent{}, false
}

// outside is all that lies between extents.
func outside(all []block.Extent, size int64) (list []block.Extent) {
	end := int64(0)
	for _, e := range append(slices.Clone(all), block.Extent{Offset: size}) {
		if e.Offset > end {
			list = append(list, block.Extent{Offset: end, Length: e.Offset - end})
		}
		end = e.End()
	}
	return list
}

// A chunk with many runs turns into bits; before and after, extents go on
// across the borders of chunks.
func TestSetStaysRightWhenChunksFill(t *testing.T) {
	const unit, size = 4096, (2*chunkUnits+300)*4096 - 1
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		s, m := NewSet(size), newModel(size, unit)
		step := 2 + random.Int64N(70)
		for u := random.Int64N(3); u*unit < size; u += step {
			s.Add(block.Extent{Offset: u * unit, Length: 1})
			m.in[u] = true
		}
		full := s.chunks[0].bits != nil
		if runs := (chunkUnits + step - 1) / step; full != (runs > maxRuns) {
			t.Fatalf("seed %d: about %d runs in a chunk, and bits are %v", seed, runs, full)
		}
		for _, border := range []int64{chunkUnits * unit, 2 * chunkUnits * unit} {
			if e := (block.Extent{Offset: border - random.Int64N(99)*unit, Length: random.Int64N(199) * unit}); random.IntN(3) > 0 {
				s.Add(e)
				m.add(e)
			}
		}
		if random.IntN(4) == 0 {
			e := extentOn(random, size)
			s.Add(e)
			m.add(e)
		}
		agree(t, seed, s, m)
	}
}

func TestSetUnion(t *testing.T) {
	a, b := NewSet(100_000), NewSet(200_000)
	a.Add(block.Extent{Offset: 0, Length: 1})
	b.Add(block.Extent{Offset: 8192, Length: 1})
	b.Add(block.Extent{Offset: 150_000, Length: 1})
	a.Union(b)
	want := []block.Extent{{Offset: 0, Length: 4096}, {Offset: 8192, Length: 4096}}
	if got := extents(a); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func TestSetLeavesOutWhatIsNotOnTheDevice(t *testing.T) {
	for _, e := range []block.Extent{
		{Offset: 4096, Length: 1},
		{Offset: -1, Length: 1},
		{Offset: 0, Length: 0},
		{Offset: 5, Length: -1},
		{Offset: math.MaxInt64, Length: math.MaxInt64},
		{Offset: math.MinInt64, Length: math.MaxInt64},
	} {
		s := NewSet(4096)
		s.Add(e)
		if s.Bytes() != 0 || s.Contains(e) {
			t.Errorf("added %v: got %d bytes, want none", e, s.Bytes())
		}
	}
	s := NewSet(4096)
	s.Add(block.Extent{Offset: 1, Length: math.MaxInt64})
	if got := s.Bytes(); got != 4096 {
		t.Errorf("added an endless extent: got %d bytes, want 4096", got)
	}
}

// The unit grows with the device, so that the worst case does not.
func TestSetOfLargeDevices(t *testing.T) {
	for _, c := range []struct{ size, unit int64 }{
		{1 << 41, 4 << 10}, {1<<41 + 1, 8 << 10}, {32 << 40, 64 << 10}, {64 << 40, 128 << 10}, {1 << 60, 2 << 30},
	} {
		s := NewSet(c.size)
		s.Add(block.Extent{Offset: c.size - 1, Length: 1})
		e, _ := s.Next(0)
		if want := (c.size - 1) / c.unit * c.unit; e.Offset != want || e.End() != c.size {
			t.Errorf("size %d: got %v, want %d to the end", c.size, e, want)
		}
		s.Add(block.Extent{Length: c.size})
		if got := s.Bytes(); got != c.size {
			t.Errorf("size %d: got %d bytes, want all", c.size, got)
		}
	}
}

func TestUnknownIsEverything(t *testing.T) {
	for _, size := range []int64{0, 1, 4095, 4096, 4097, 1 << 46} {
		if got := Unknown(size).Bytes(); got != size {
			t.Errorf("size %d: got %d bytes", size, got)
		}
	}
}

// A million changes scattered over 64 TiB.
func BenchmarkSetScattered(b *testing.B) {
	const size, n = 64 << 40, 1 << 20
	for b.Loop() {
		b.ReportAllocs()
		s := NewSet(size)
		for i := int64(0); i < n; i++ {
			s.Add(block.Extent{Offset: int64(uint64(i)*0x9E3779B97F4A7C15%size) &^ 0xffff, Length: 1 << 16})
		}
		s.Bytes()
	}
}
