package image

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCorrupt is wrapped by every error that means stored bytes are not what
// was written: a check failed, or a field holds what no writer puts there.
var ErrCorrupt = errors.New("corrupt")

const (
	// PageEntries is the number of IDs in a map page, at every level.
	PageEntries = 128
	// PageSize is the length of a page's hashed content in bytes.
	PageSize = PageEntries * IDSize
	// MaxLevels bounds the height of a map: 128^7 blocks of 4 KiB are more
	// than MaxSize.
	MaxLevels = 7
	// MaxSize is the largest device that has an image, in bytes.
	MaxSize = 1 << 60
)

// A Page is one node of a block map. At level 0 its entries are block IDs, at
// level n pages of level n-1. Entries past the end of the device are zero.
type Page struct {
	Entries [PageEntries]ID
	// Hints says where each entry was stored when the page was written. They
	// are no part of the page's ID: a wrong hint costs a lookup, no more.
	Hints [PageEntries]Location
}

// Levels returns the height of the map of so many blocks: 0 for none, 1 for up
// to 128, and so on.
func Levels(blocks int64) int {
	n := 0
	for blocks > 0 && (n == 0 || blocks > 1) {
		blocks = (blocks + PageEntries - 1) / PageEntries
		n++
	}
	return n
}

// PageBlocks returns how many blocks a page of the given level spans.
func PageBlocks(level int) int64 {
	n := int64(PageEntries)
	for ; level > 0; level-- {
		n *= PageEntries
	}
	return n
}

// Content appends the page's hashed content, PageSize bytes, to dst.
func (p *Page) Content(dst []byte) []byte {
	for i := range p.Entries {
		dst = append(dst, p.Entries[i][:]...)
	}
	return dst
}

// Hints, after the page's content, little-endian:
//
//	0:2  number of segments S (0..128)
//	2:4  number of runs R (0..128)
//	then S segment IDs of 16 bytes
//	then R runs of 8 bytes:
//	     0:1 first entry, 1:2 entries minus 1, 2:3 segment's place above,
//	     3:4 zero, 4:8 record of the first entry; later ones follow it
const (
	hintsHeader = 4
	hintRunSize = 8
)

// Encode appends the page's content and hints to dst. What it appends is the
// plain payload of a page record.
func (p *Page) Encode(dst []byte) []byte {
	dst = p.Content(dst)
	var segments []SegmentID
	var runs [][hintRunSize]byte
	for i := 0; i < PageEntries; {
		at := p.Hints[i]
		if p.Entries[i].IsZero() || at.IsZero() {
			i++
			continue
		}
		n := 1
		for i+n < PageEntries && !p.Entries[i+n].IsZero() &&
			p.Hints[i+n] == (Location{at.Segment, at.Record + uint32(n)}) {
			n++
		}
		s := 0
		for s < len(segments) && segments[s] != at.Segment {
			s++
		}
		if s == len(segments) {
			segments = append(segments, at.Segment)
		}
		run := [hintRunSize]byte{byte(i), byte(n - 1), byte(s)}
		binary.LittleEndian.PutUint32(run[4:], at.Record)
		runs = append(runs, run)
		i += n
	}
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(segments)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(runs)))
	for _, s := range segments {
		dst = append(dst, s[:]...)
	}
	for _, r := range runs {
		dst = append(dst, r[:]...)
	}
	return dst
}

// MaxPageEncoded is the largest length that Encode appends.
const MaxPageEncoded = PageSize + hintsHeader + PageEntries*(16+hintRunSize)

// DecodePage reads what Encode wrote. The caller checks the page's ID.
func DecodePage(b []byte) (*Page, error) {
	if len(b) < PageSize+hintsHeader {
		return nil, fmt.Errorf("map page of %d bytes, want at least %d: %w", len(b), PageSize+hintsHeader, ErrCorrupt)
	}
	p := new(Page)
	for i := range p.Entries {
		copy(p.Entries[i][:], b[i*IDSize:])
	}
	b = b[PageSize:]
	segments, runs := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
	if segments > PageEntries || runs > PageEntries || len(b) != hintsHeader+segments*16+runs*hintRunSize {
		return nil, fmt.Errorf("map page with %d segments and %d runs in %d bytes of hints: %w", segments, runs, len(b), ErrCorrupt)
	}
	table, list := b[hintsHeader:hintsHeader+segments*16], b[hintsHeader+segments*16:]
	for ; len(list) > 0; list = list[hintRunSize:] {
		first, n, s := int(list[0]), int(list[1])+1, int(list[2])
		if first+n > PageEntries || s >= segments || list[3] != 0 {
			return nil, fmt.Errorf("map page hint for entries %d+%d in segment %d of %d: %w", first, n, s, segments, ErrCorrupt)
		}
		at := Location{Segment: SegmentID(table[s*16 : s*16+16]), Record: binary.LittleEndian.Uint32(list[4:])}
		for i := range n {
			p.Hints[first+i] = at
			at.Record++
		}
	}
	return p, nil
}
