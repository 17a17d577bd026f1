package block

import (
	"encoding/binary"
	"fmt"
	"io"
)

// An MBR keeps four entries of 16 bytes at 446 and 55 AA at 510. An entry:
//
//	 0     80 when active, else 00
//	 1:4   first sector as cylinder, head, sector
//	 4     type
//	 5:8   last sector as cylinder, head, sector
//	 8:12  first sector
//	12:16  number of sectors
const (
	mbrEntries   = 446
	mbrEntrySize = 16
	mbrSize      = 512

	typeGPT = 0xee
	typeESP = 0xef
	// maxLogical bounds the chain of logical partitions, which may run in
	// circles. The kernel stops at 100 in all, some tools earlier.
	maxLogical = 128
)

// isMBR reports whether a first sector may be one: it is marked so, and the
// flags of its entries are those of partitions and not code or text.
func isMBR(b []byte) bool {
	if len(b) < mbrSize || b[510] != 0x55 || b[511] != 0xaa {
		return false
	}
	for i := range 4 {
		if flag := b[mbrEntries+i*mbrEntrySize]; flag != 0 && flag != 0x80 {
			return false
		}
	}
	return true
}

// protective returns the number of the entry that keeps tools which do not
// know GPT away, -1 without one.
func protective(b []byte) int {
	for i := range 4 {
		e := b[mbrEntries+i*mbrEntrySize:]
		if e[4] == typeGPT && binary.LittleEndian.Uint32(e[8:]) == 1 {
			return i
		}
	}
	return -1
}

// isExtended reports whether a type holds logical partitions.
func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

// logicals follows the chain of logical partitions in an extended one. Each
// link is a sector like an MBR: its first entry is a partition, counted from
// the link; its second the next link, counted from the extended partition.
func logicals(r io.ReaderAt, extended Extent, sector int64, disk string) []Partition {
	var parts []Partition
	seen := map[int64]bool{}
	link := make([]byte, mbrSize)
	for at := extended.Offset; len(parts) < maxLogical && !seen[at]; {
		seen[at] = true
		if at+mbrSize > extended.End() {
			break
		}
		if _, err := readFull(r, link, at); err != nil || !isMBR(link) {
			break
		}
		var next int64 = -1
		for i := range 2 {
			e := link[mbrEntries+i*mbrEntrySize:][:mbrEntrySize]
			x := mbrExtent(e, sector)
			switch {
			case e[4] == 0 || x.Length == 0:
			case isExtended(e[4]):
				next = extended.Offset + x.Offset
			default:
				x.Offset += at
				if x.End() <= extended.End() {
					parts = append(parts, mbrPartition(5+len(parts), e, x, disk))
				}
			}
		}
		if next < 0 {
			break
		}
		at = next
	}
	return parts
}

func mbrExtent(e []byte, sector int64) Extent {
	return Extent{
		Offset: int64(binary.LittleEndian.Uint32(e[8:])) * sector,
		Length: int64(binary.LittleEndian.Uint32(e[12:])) * sector,
	}
}

func mbrPartition(number int, e []byte, x Extent, disk string) Partition {
	return Partition{
		Number: number, Extent: x, Type: fmt.Sprintf("%02x", e[4]),
		ID: fmt.Sprintf("%s-%02x", disk, number), Active: e[0] == 0x80,
	}
}
