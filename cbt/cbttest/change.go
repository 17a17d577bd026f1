package cbttest

import (
	"encoding/binary"
	"errors"

	"platter/block"
)

// write puts new bytes at e.
func (s *session) write(e block.Extent) {
	p := make([]byte, e.Length+8)
	for i := int64(0); i < e.Length; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], s.random.Uint64())
	}
	s.put(e, p[:e.Length])
}

func (s *session) put(e block.Extent, p []byte) {
	_, err := s.Device.WriteAt(p, e.Offset)
	check(err, "write %v", e)
	s.touched = append(s.touched, e)
}

// zero and discard report whether the device can do that.

func (s *session) zero(e block.Extent) bool {
	return s.optional(s.Device.Zero(e), "zero", e)
}

func (s *session) discard(e block.Extent) bool {
	return s.optional(s.Device.Discard(e), "discard", e)
}

func (s *session) resize(size int64) bool {
	from := s.Device.Size()
	if err := s.Device.Resize(size); err != nil {
		return s.optional(err, "resize", block.Extent{Length: size})
	}
	s.touched = append(s.touched, block.Extent{Offset: min(from, size), Length: max(from, size)})
	return true
}

func (s *session) optional(err error, verb string, e block.Extent) bool {
	if errors.Is(err, errors.ErrUnsupported) {
		return false
	}
	check(err, "%s %v", verb, e)
	s.touched = append(s.touched, e)
	return true
}

// change does a few things at random, nothing at times.
func (s *session) change() {
	for range s.random.IntN(5) {
		e := s.extent()
		switch s.random.IntN(8) {
		case 0:
			s.put(e, make([]byte, e.Length))
		case 1:
			s.zero(sectors(e))
		case 2:
			s.discard(sectors(e))
		default:
			s.write(e)
		}
	}
}

// extent draws an extent: mostly short, often at the edge of something.
func (s *session) extent() block.Extent {
	size := s.Device.Size()
	length := 1 + s.random.Int64N([]int64{1, sector, 4096, 9000, 70000, size}[s.random.IntN(6)])
	edge := []int64{1, sector, 4096, 65536, size}[s.random.IntN(5)]
	off := s.random.Int64N(size) / edge * edge
	switch s.random.IntN(4) {
	case 0:
		off -= length // ends at the edge
	case 1:
		off += 1 - length // ends one byte behind it
	}
	off = max(0, min(off, size-1))
	return block.Extent{Offset: off, Length: min(length, size-off)}
}

// sectors returns the whole sectors of which e touches a byte. Devices are as
// long as whole sectors are.
func sectors(e block.Extent) block.Extent {
	from := e.Offset / sector * sector
	return block.Extent{Offset: from, Length: (e.End()+sector-1)/sector*sector - from}
}
