package cbt

import (
	"fmt"

	"platter/block"
)

const (
	// unitBits is the finest unit of a Set: 4 KiB, the smallest block.
	unitBits = 12
	// maxUnits keeps a Set of any device below 64 MiB: one bit a unit.
	maxUnits = 1 << 29
)

// A Set is the part of a device that may have changed. It rounds outward to
// units of 4 KiB up to 2 TiB, 64 KiB up to 32 TiB, 128 KiB up to 64 TiB, and so
// on: it may hold more than was added, never less.
//
// Scattered changes cost 4 bytes each, and never more than 64 MiB together. A
// Set may be read by several goroutines while none adds to it.
type Set struct {
	size   int64 // of the device, bytes
	shift  uint  // log2 of the unit in bytes
	chunks []chunk
}

// NewSet returns the empty set of a device of size bytes.
func NewSet(size int64) *Set {
	if size < 0 {
		panic(fmt.Sprintf("cbt: set of a device of %d bytes", size))
	}
	s := &Set{size: size, shift: unitBits}
	for s.units() > maxUnits {
		s.shift++
	}
	s.chunks = make([]chunk, (s.units()+chunkUnits-1)/chunkUnits)
	return s
}

// Size returns the size of the device in bytes.
func (s *Set) Size() int64 { return s.size }

// Unit returns the size in bytes of what the set tells apart: e is added in
// whole units.
func (s *Set) Unit() int64 { return 1 << s.shift }

// Add puts e into the set. What lies outside the device is left out.
func (s *Set) Add(e block.Extent) {
	first, last, ok := s.span(e)
	if !ok {
		return
	}
	for c := first / chunkUnits; c <= last/chunkUnits; c++ {
		from, to := max(first, c*chunkUnits), min(last, c*chunkUnits+chunkUnits-1)
		s.chunks[c].add(uint16(from%chunkUnits), uint16(to%chunkUnits))
	}
}

// Next returns the first changed extent at or after off, without what lies
// before off. It is as long as it can be, and ends no later than the device.
func (s *Set) Next(off int64) (e block.Extent, ok bool) {
	if off = max(off, 0); off >= s.size {
		return block.Extent{}, false
	}
	first, ok := s.first(off>>s.shift, true)
	if !ok {
		return block.Extent{}, false
	}
	end := s.size
	if u, ok := s.first(first, false); ok {
		end = u << s.shift
	}
	from := max(off, first<<s.shift)
	return block.Extent{Offset: from, Length: end - from}, true
}

// NextOut is Next of all that is not in the set.
func (s *Set) NextOut(off int64) (e block.Extent, ok bool) {
	off = max(off, 0)
	in, ok := s.Next(off)
	if ok && in.Offset == off {
		off = in.End()
		in, ok = s.Next(off)
	}
	if off >= s.size {
		return block.Extent{}, false
	}
	end := s.size
	if ok {
		end = in.Offset
	}
	return block.Extent{Offset: off, Length: end - off}, true
}

// Contains reports whether any byte of e is in the set.
func (s *Set) Contains(e block.Extent) bool {
	first, last, ok := s.span(e)
	if !ok {
		return false
	}
	u, ok := s.first(first, true)
	return ok && u <= last
}

// Bytes returns how many bytes of the device are in the set.
func (s *Set) Bytes() int64 {
	var n int64
	for e, ok := s.Next(0); ok; e, ok = s.Next(e.End()) {
		n += e.Length
	}
	return n
}

// Union adds what other holds, as far as it lies on the device of s.
func (s *Set) Union(other *Set) {
	for e, ok := other.Next(0); ok; e, ok = other.Next(e.End()) {
		s.Add(e)
	}
}

// units returns the number of units of the device, the last one perhaps short.
func (s *Set) units() int64 { return (s.size-1)>>s.shift + 1 }

// span returns the units that e touches, if it touches the device.
func (s *Set) span(e block.Extent) (first, last int64, ok bool) {
	if e.Length <= 0 {
		return 0, 0, false
	}
	if e.Offset < 0 {
		e = block.Extent{Length: e.End()}
	}
	if e.Length <= 0 || e.Offset >= s.size {
		return 0, 0, false
	}
	e.Length = min(e.Length, s.size-e.Offset)
	return e.Offset >> s.shift, (e.End() - 1) >> s.shift, true
}

// first returns the first unit at or after u that is in the set, or not in it.
func (s *Set) first(u int64, in bool) (int64, bool) {
	for c := u / chunkUnits; c < int64(len(s.chunks)); c++ {
		at := max(u, c*chunkUnits) % chunkUnits
		if i, ok := s.chunks[c].first(int(at), in); ok {
			u = c*chunkUnits + int64(i)
			return u, u < s.units()
		}
	}
	return 0, false
}
