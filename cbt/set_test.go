package cbt

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

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

func drawExtent(t *rapid.T, size int64) block.Extent {
	off := rapid.Int64Range(-9000, size+9000).Draw(t, "offset")
	longest := rapid.SampledFrom([]int64{1, 4096, 20000, 2 * size}).Draw(t, "longest")
	return block.Extent{Offset: off, Length: rapid.Int64Range(-1, longest).Draw(t, "length")}
}

func TestSetAgreesWithOneBoolPerUnit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 200*4096).Draw(t, "size")
		s, m := NewSet(size), newModel(size, 4096)
		for range rapid.IntRange(0, 40).Draw(t, "adds") {
			e := drawExtent(t, size)
			s.Add(e)
			m.add(e)
		}
		if got, want := extents(s), m.extents(); !slices.Equal(got, want) {
			t.Fatalf("extents: got %v, want %v", got, want)
		}
		if e := drawExtent(t, size); s.Contains(e) != m.contains(e) {
			t.Fatalf("Contains(%v): got %v, want %v", e, s.Contains(e), m.contains(e))
		}
		off := rapid.Int64Range(-1, size+1).Draw(t, "next")
		got, ok := s.Next(off)
		if want, wantOK := nextOf(m.extents(), max(off, 0)); got != want || ok != wantOK {
			t.Fatalf("Next(%d): got %v %v, want %v %v", off, got, ok, want, wantOK)
		}
	})
}

func nextOf(all []block.Extent, off int64) (block.Extent, bool) {
	for _, e := range all {
		if e.End() > off {
			from := max(off, e.Offset)
			return block.Extent{Offset: from, Length: e.End() - from}, true
		}
	}
	return block.Extent{}, false
}

// A chunk with many runs turns into bits; both must say the same.
func TestSetStaysRightWhenChunksFill(t *testing.T) {
	const unit, size = 4096, (2*chunkUnits+300)*4096 - 1
	rapid.Check(t, func(t *rapid.T) {
		s, m := NewSet(size), newModel(size, unit)
		step := rapid.Int64Range(2, 70).Draw(t, "step")
		for u := rapid.Int64Range(0, 3).Draw(t, "first"); u*unit < size; u += step {
			e := block.Extent{Offset: u*unit + 1, Length: 1}
			s.Add(e)
			m.in[u] = true
		}
		for range rapid.IntRange(0, 4).Draw(t, "adds") {
			e := drawExtent(t, size)
			s.Add(e)
			m.add(e)
		}
		if got, want := extents(s), m.extents(); !slices.Equal(got, want) {
			t.Fatalf("%d extents, want %d, or others", len(got), len(want))
		}
		var n int64
		for _, e := range m.extents() {
			n += e.Length
		}
		if got := s.Bytes(); got != n {
			t.Fatalf("Bytes: got %d, want %d", got, n)
		}
	})
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
		{Offset: 4096, Length: 1}, {Offset: -1, Length: 1}, {Offset: 0, Length: 0}, {Offset: 5, Length: -1},
		{Offset: math.MaxInt64, Length: math.MaxInt64}, {Offset: math.MinInt64, Length: math.MaxInt64},
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
