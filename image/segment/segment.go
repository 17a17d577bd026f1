// Package segment reads and writes segments: immutable objects of about
// 64 MiB that hold many encoded blocks, or map pages, and end in a footer that
// lists them.
//
// A Builder and a Codec belong to one goroutine each; a Footer never changes
// and may be shared. The bytes are described in image/FORMAT.md.
package segment

import (
	"platter/image"
)

// Kind says what a segment's records are.
type Kind uint8

// Data and map pages live in segments of their own.
const (
	Data  Kind = 1
	Pages Kind = 2
)

// Flags of a record.
const (
	FlagLZ4 = 1 << 0 // the payload is an LZ4 block; else raw
)

// A Record describes one stored block or page. Its number in the segment is
// its place in the footer.
type Record struct {
	ID     image.ID
	Digest uint64 // xxhash64 of the stored payload
	Plain  uint32 // bytes decoded
	Stored uint32 // bytes in the segment
	Kind   Kind
	Flags  uint8
	// Origin and OriginRecord are what the payload was sealed as: they stay
	// when a record moves to another segment. Both zero when it never moved.
	Origin       uint16
	OriginRecord uint32
	Offset       int64 // of the payload in the segment; derived, not stored
}
