package catalog

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"platter/image"
	"platter/image/keys"
	"platter/image/segment"
)

// Keys begin with a byte that says what they are. Numbers are big-endian, so
// that keys sort by them. A segment number is the catalog's own short name for
// a segment; it is never used twice.
//
//	b  hash(8) number(4) record(4)  → nothing: a block or page, by its ID's hash
//	d  segment(16) record(4)        → ID: a damaged record
//	k  length(1) space key          → whatever the caller put there
//	m  name                         → manifest as JSON
//	p  number(4) record(4)          → page as image.Page encodes it
//	r  number(4) chunk(4)           → segment(16), then IDs(32 each) of its records
//	s  segment(16)                  → number, kind, size, records, plain, stored,
//	                                  writer, rights, moved, digest
//	t                               → totals
//	u  number(4)                    → segment(16): being added when a crash came
const (
	tagBlock    = 'b'
	tagDamage   = 'd'
	tagSpace    = 'k'
	tagManifest = 'm'
	tagPage     = 'p'
	tagRecords  = 'r'
	tagSegment  = 's'
	tagTotals   = 't'
	tagUnsure   = 'u'
)

const (
	blockKeySize  = 1 + 8 + 4 + 4
	blockPrefix   = 1 + 8
	numberKeySize = 1 + 4 + 4
	damageKeySize = 1 + 16 + 4
	// chunkRecords is how many records of a segment share an entry: that many
	// IDs are read on a hit, and kept together in memory.
	chunkRecords = 512
)

// hashID is what blocks are found by. It covers all of the ID: the first 8
// bytes alone are no more than hostile disk content makes them.
func hashID(id *image.ID) uint64 { return xxhash.Sum64(id[:]) }

func appendBlockKey(dst []byte, hash uint64, number, record uint32) []byte {
	dst = appendBlockPrefix(dst, hash)
	dst = binary.BigEndian.AppendUint32(dst, number)
	return binary.BigEndian.AppendUint32(dst, record)
}

func appendBlockPrefix(dst []byte, hash uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, tagBlock), hash)
}

func parseBlockKey(key []byte) (hash uint64, number, record uint32, err error) {
	if len(key) != blockKeySize {
		return 0, 0, 0, corrupt("block key of %d bytes", len(key))
	}
	return binary.BigEndian.Uint64(key[1:]), binary.BigEndian.Uint32(key[9:]), binary.BigEndian.Uint32(key[13:]), nil
}

// numberKey is the key of a segment's page or chunk n.
func numberKey(tag byte, number, n uint32) []byte {
	key := binary.BigEndian.AppendUint32(append(make([]byte, 0, numberKeySize), tag), number)
	return binary.BigEndian.AppendUint32(key, n)
}

func unsureKey(number uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{tagUnsure}, number)
}

func segmentKey(id image.SegmentID) []byte { return append([]byte{tagSegment}, id[:]...) }

func manifestKey(name string) []byte { return append([]byte{tagManifest}, name...) }

func damageKey(at image.Location) []byte {
	return binary.BigEndian.AppendUint32(append([]byte{tagDamage}, at.Segment[:]...), at.Record)
}

func parseDamage(key, value []byte) (at image.Location, id image.ID, err error) {
	if len(key) != damageKeySize || len(value) != image.IDSize {
		return at, id, corrupt("damage entry of %d and %d bytes", len(key), len(value))
	}
	copy(at.Segment[:], key[1:])
	at.Record = binary.BigEndian.Uint32(key[1+16:])
	copy(id[:], value)
	return at, id, nil
}

// bounds of all keys with this tag.
func bounds(tag byte) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: []byte{tag}, UpperBound: []byte{tag + 1}}
}

// A SegmentInfo describes a segment that the catalog knows.
type SegmentInfo struct {
	ID      image.SegmentID `json:"segment"`
	Kind    segment.Kind    `json:"kind"`
	Size    int64           `json:"size"`    // bytes of the object
	Records int             `json:"records"` // blocks or pages
	Plain   int64           `json:"plain"`   // bytes decoded, of all records
	Stored  int64           `json:"stored"`  // bytes encoded, of all records
	Writer  keys.Writer     `json:"-"`       // who signed it
	Moved   bool            `json:"-"`       // as in segment.Footer
	Digest  image.Digest    `json:"-"`       // as in segment.Footer
	number  uint32
}

const (
	plainInfoSize = 4 + 1 + 8 + 4 + 8 + 8
	infoSize      = plainInfoSize + 32 + 1 + 1 + 32
)

func (s *SegmentInfo) encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, infoSize), s.number)
	b = append(b, byte(s.Kind))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Size))
	b = binary.BigEndian.AppendUint32(b, uint32(s.Records))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Plain))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Stored))
	b = append(b, s.Writer.Key[:]...)
	b = append(b, byte(s.Writer.Rights), 0)
	if s.Moved {
		b[len(b)-1] = 1
	}
	return append(b, s.Digest[:]...)
}

func parseInfo(key, b []byte) (s SegmentInfo, err error) {
	if len(key) != 1+16 || len(b) != infoSize {
		return s, corrupt("segment entry of %d and %d bytes", len(key), len(b))
	}
	s = SegmentInfo{
		ID:      image.SegmentID(key[1:]),
		number:  binary.BigEndian.Uint32(b),
		Kind:    segment.Kind(b[4]),
		Size:    int64(binary.BigEndian.Uint64(b[5:])),
		Records: int(binary.BigEndian.Uint32(b[13:])),
		Plain:   int64(binary.BigEndian.Uint64(b[17:])),
		Stored:  int64(binary.BigEndian.Uint64(b[25:])),
	}
	b = b[plainInfoSize:]
	s.Writer = keys.Writer{Key: [32]byte(b), Rights: keys.Rights(b[32])}
	s.Moved, s.Digest = b[33] != 0, image.Digest(b[34:])
	return s, nil
}

// chunks returns how many entries hold the IDs of so many records.
func chunks(records int) uint32 {
	return uint32((records + chunkRecords - 1) / chunkRecords)
}

// totals are kept so that opening needs no scan.
type totals struct {
	next     uint32 // number of the next segment
	segments int64
	records  int64 // of data segments
	pages    int64 // records of page segments
}

const totalsSize = 4 + 3*8

func (t totals) encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, totalsSize), t.next)
	b = binary.BigEndian.AppendUint64(b, uint64(t.segments))
	b = binary.BigEndian.AppendUint64(b, uint64(t.records))
	return binary.BigEndian.AppendUint64(b, uint64(t.pages))
}

func parseTotals(b []byte) (t totals, err error) {
	if len(b) != totalsSize {
		return t, corrupt("totals of %d bytes", len(b))
	}
	t.next = binary.BigEndian.Uint32(b)
	t.segments = int64(binary.BigEndian.Uint64(b[4:]))
	t.records = int64(binary.BigEndian.Uint64(b[12:]))
	t.pages = int64(binary.BigEndian.Uint64(b[20:]))
	return t, nil
}

// add counts a segment in (sign 1) or out (sign -1).
func (t *totals) add(s *SegmentInfo, sign int64) {
	t.segments += sign
	if s.Kind == segment.Pages {
		t.pages += sign * int64(s.Records)
	} else {
		t.records += sign * int64(s.Records)
	}
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrDamaged)
}
