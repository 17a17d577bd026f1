package segment

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"platter/image"
	"platter/image/keys"
)

// Header, 4096 bytes, little-endian:
//
//	  0:8    magic
//	  8:10   kind: 1 data, 2 pages
//	 10:12   flags: 1 sealed
//	 12:16   header length H, 4096
//	 16:32   repository ID
//	 32:48   segment ID
//	 48:64   run that wrote it
//	 64:72   when, nanoseconds since 1970 by the writer's clock
//	 72:76   number of entries in the key table: none, or 1 to 41 when sealed
//	 76:80   zero
//	 80:     key table, then zeros
//	H-8:H    xxhash64 of 0:H-8
//
// Key table entry, 96 bytes:
//
//	 0:16  origin: the first name of a segment whose payloads the key seals
//	16:96  the key, wrapped for the data key pair; zeros in a page segment
const (
	headerMagic  = "PLTRSEG\x01"
	headerSize   = 4096
	tableOffset  = 80
	keyEntrySize = 16 + keys.WrappedSize
	maxOrigins   = (headerSize - 8 - tableOffset) / keyEntrySize
	flagSealed   = 1
)

// Record header, 16 bytes, before each payload, little-endian:
//
//	 0:1   kind: 1 block, 2 page
//	 1:2   flags: 1 LZ4
//	 2:4   origin: place in the key table
//	 4:8   plain length
//	 8:12  stored length
//	12:16  record number in its origin
const recordHeaderSize = 16

// Footer: one entry of 56 bytes for each record, in order, little-endian:
//
//	 0:32  ID
//	32:40  xxhash64 of the stored payload
//	40:44  plain length
//	44:48  stored length
//	48:49  kind
//	49:50  flags
//	50:52  origin
//	52:56  record number in its origin
const footerEntrySize = 56

// Trailer, the last 512 bytes, little-endian:
//
//	  0:8    magic
//	  8:10   kind
//	 10:12   flags: 1 sealed, 2 moved
//	 12:16   number of records
//	 16:24   footer offset
//	 24:28   footer length
//	 28:32   header length
//	 32:40   segment length, a multiple of 4096
//	 40:56   segment ID
//	 56:72   run
//	 72:80   when
//	 80:112  keyed BLAKE3-256 of the header
//	112:144  keyed BLAKE3-256 of the footer and of 0:112
//	144:248  the writer's certificate; zero when not sealed
//	248:312  its signature of 112:248
//	312:504  zero
//	504:512  xxhash64 of 0:504
const (
	trailerMagic = "PLTREND\x01"
	trailerSize  = 512
	trailerSum   = trailerSize - 8

	signatureContext = "platter 2026 segment signature"

	// flagMoved: records came from other segments as they were, and whoever
	// wrote this one vouches for none of them.
	flagMoved = 2
)

const (
	// Align is what the length of every segment is a multiple of, in bytes.
	Align = 4096
	// MaxSize bounds the length of a segment in bytes, on reading.
	MaxSize = 1 << 30
	// MaxRecords bounds the number of records of a segment, on reading.
	MaxRecords = 1 << 20
	// maxBuilt bounds it on writing: footers are kept in memory, by those who
	// write and those who read, and blocks may compress to almost nothing.
	maxBuilt = 1 << 16
)

// A Builder fills a buffer with one segment.
type Builder struct {
	id      image.SegmentID
	kind    Kind
	run     [16]byte
	created time.Time
	domain  *keys.Domain
	aead    cipher.AEAD // of the payloads; nil when they are not sealed
	origins []origin
	buf     []byte
	used    int
	records []Record
	moved   bool // some of the records are another segment's
}

// An origin is an entry of the key table.
type origin struct {
	id      image.SegmentID
	wrapped [keys.WrappedSize]byte
}

// NewBuilder begins a segment in buf, which bounds the segment's length and is
// the Builder's until the bytes from Seal are no longer needed. buf holds at
// least MinBuffer(largest payload) bytes; aligned to 4096, it can be written
// past the page cache.
func NewBuilder(buf []byte, kind Kind, repository, run [16]byte, d *keys.Domain, now time.Time) *Builder {
	b := &Builder{kind: kind, run: run, created: now, domain: d, buf: buf, used: headerSize}
	rand.Read(b.id[:])
	h := buf[:headerSize]
	clear(h)
	copy(h, headerMagic)
	binary.LittleEndian.PutUint16(h[8:], uint16(kind))
	binary.LittleEndian.PutUint16(h[10:], b.flags())
	binary.LittleEndian.PutUint32(h[12:], headerSize)
	copy(h[16:], repository[:])
	copy(h[48:], run[:])
	binary.LittleEndian.PutUint64(h[64:], uint64(now.UnixNano()))
	if !d.Encrypted() {
		return b
	}
	o := origin{id: b.id}
	key := d.PageKey(b.id)
	if kind == Data {
		key, o.wrapped = d.WrapKey(b.id)
	}
	b.aead, b.origins = keys.AEAD(key), []origin{o}
	return b
}

func (b *Builder) flags() uint16 {
	if b.domain.Encrypted() {
		return flagSealed
	}
	return 0
}

// Rename gives the segment a new random ID: a name that may have been used
// without success is not used again. What its payloads are bound to stays.
func (b *Builder) Rename() { rand.Read(b.id[:]) }

// MaxMoved is how many origins of other segments a sealed one has room for.
const MaxMoved = maxOrigins - 1

// MinBuffer returns the length of the smallest buffer in which a payload of
// the given length fits; sealed, it counts as 2×16 bytes longer.
func MinBuffer(payload int) int {
	return align(headerSize + recordHeaderSize + payload + footerEntrySize + trailerSize)
}

func align(n int) int { return (n + Align - 1) &^ (Align - 1) }

// ID returns the segment's name.
func (b *Builder) ID() image.SegmentID { return b.id }

// Len returns the number of records added.
func (b *Builder) Len() int { return len(b.records) }

// Size returns the length the segment would have if it were sealed now.
func (b *Builder) Size() int { return b.size(0, 0) }

func (b *Builder) size(records, payload int) int {
	overhead := 0
	if b.aead != nil {
		overhead = keys.Overhead
	}
	return align(b.used + records*(recordHeaderSize+overhead) + payload + (len(b.records)+records)*footerEntrySize + overhead + trailerSize)
}

// Fits reports whether a payload of the given length can still be added.
func (b *Builder) Fits(payload int) bool {
	return len(b.records) < maxBuilt && b.size(1, payload) <= len(b.buf)
}

// Add copies or seals a payload in, which must fit, and returns its record
// number. The caller has set ID, Plain and Flags of r.
func (b *Builder) Add(r Record, payload []byte) uint32 {
	n := uint32(len(b.records))
	r.Kind, r.Origin, r.OriginRecord = b.kind, 0, n
	r.Stored = uint32(len(payload))
	place := b.buf[b.used+recordHeaderSize:]
	if b.aead == nil {
		copy(place, payload)
	} else {
		r.Stored += keys.Overhead
		b.aead.Seal(place[:0], nonce(n), payload, boundTo(&r, b.origins[0].id))
	}
	return b.append(r)
}

// Moved is a record as another segment holds it, sealed or not.
type Moved struct {
	Record
	Payload []byte // as stored
	from    origin
}

// FitsMoved reports whether a record of another segment can still be added.
func (b *Builder) FitsMoved(m *Moved) bool {
	return b.Fits(len(m.Payload)) && (b.aead == nil || b.place(m.from.id) >= 0 || len(b.origins) < maxOrigins)
}

// AddMoved copies a record of another segment of the repository as it is
// stored: without the data key, and without its bytes being sealed again.
func (b *Builder) AddMoved(m *Moved) uint32 {
	r := m.Record
	switch {
	case b.aead == nil:
		r.Origin, r.OriginRecord = 0, uint32(len(b.records))
	default:
		if b.place(m.from.id) < 0 {
			b.origins = append(b.origins, m.from)
		}
		r.Origin = uint16(b.place(m.from.id))
	}
	b.moved = true
	copy(b.buf[b.used+recordHeaderSize:], m.Payload)
	return b.append(r)
}

// place returns the place of an origin in the key table, or -1.
func (b *Builder) place(id image.SegmentID) int {
	return slices.IndexFunc(b.origins, func(o origin) bool { return o.id == id })
}

// append lists a record whose stored bytes are in their place.
func (b *Builder) append(r Record) uint32 {
	putRecordHeader(b.buf[b.used:], &r)
	r.Offset = int64(b.used + recordHeaderSize)
	r.Digest = xxhash.Sum64(b.buf[r.Offset:][:r.Stored])
	b.used += recordHeaderSize + int(r.Stored)
	b.records = append(b.records, r)
	return uint32(len(b.records) - 1)
}

// nonce is the record's number in the segment it was sealed for, whose key
// seals nothing else.
func nonce(originRecord uint32) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, originRecord), 0)
}

// boundTo is what a payload is sealed together with, 30 bytes: its header
// without the place in a key table, and the origin itself.
func boundTo(r *Record, origin image.SegmentID) []byte {
	b := []byte{byte(r.Kind), r.Flags}
	b = binary.LittleEndian.AppendUint32(b, r.Plain)
	b = binary.LittleEndian.AppendUint32(b, r.Stored)
	b = append(b, origin[:]...)
	return binary.LittleEndian.AppendUint32(b, r.OriginRecord)
}

func putRecordHeader(h []byte, r *Record) {
	h[0], h[1] = byte(r.Kind), r.Flags
	binary.LittleEndian.PutUint16(h[2:], r.Origin)
	binary.LittleEndian.PutUint32(h[4:], r.Plain)
	binary.LittleEndian.PutUint32(h[8:], r.Stored)
	binary.LittleEndian.PutUint32(h[12:], r.OriginRecord)
}

// Seal ends the segment and returns its bytes, in the Builder's buffer, and
// its footer. After Rename it can be called again.
func (b *Builder) Seal() ([]byte, *Footer) {
	h := b.buf[:headerSize]
	copy(h[32:], b.id[:])
	binary.LittleEndian.PutUint32(h[72:], uint32(len(b.origins)))
	for i, o := range b.origins {
		copy(h[tableOffset+i*keyEntrySize:], o.id[:])
		copy(h[tableOffset+i*keyEntrySize+16:], o.wrapped[:])
	}
	binary.LittleEndian.PutUint64(h[headerSize-8:], xxhash.Sum64(h[:headerSize-8]))
	total := b.Size()
	footer := b.buf[b.used:b.used]
	for i := range b.records {
		footer = appendEntry(footer, &b.records[i])
	}
	if b.aead != nil {
		footer = b.domain.SealFooter(b.id, footer)
	}
	clear(b.buf[b.used+len(footer) : total])
	t := b.buf[total-trailerSize : total]
	copy(t, trailerMagic)
	binary.LittleEndian.PutUint16(t[8:], uint16(b.kind))
	flags := b.flags()
	if b.moved {
		flags |= flagMoved
	}
	binary.LittleEndian.PutUint16(t[10:], flags)
	binary.LittleEndian.PutUint32(t[12:], uint32(len(b.records)))
	binary.LittleEndian.PutUint64(t[16:], uint64(b.used))
	binary.LittleEndian.PutUint32(t[24:], uint32(len(footer)))
	binary.LittleEndian.PutUint32(t[28:], headerSize)
	binary.LittleEndian.PutUint64(t[32:], uint64(total))
	copy(t[40:], b.id[:])
	copy(t[56:], b.run[:])
	binary.LittleEndian.PutUint64(t[72:], uint64(b.created.UnixNano()))
	b.domain.SumFooter((*[32]byte)(t[80:]), h)
	b.domain.SumFooter((*[32]byte)(t[112:]), footer, t[:112])
	certificate := b.domain.Certificate()
	copy(t[144:], certificate[:])
	signature := b.domain.Sign(signatureContext, t[112:248])
	copy(t[248:], signature[:])
	binary.LittleEndian.PutUint64(t[trailerSum:], xxhash.Sum64(t[:trailerSum]))
	return b.buf[:total], &Footer{
		ID: b.id, Kind: b.kind, Run: b.run, Created: b.created, Size: int64(total), Records: b.records,
		Digest: image.Digest(t[112:144]), Writer: b.domain.Writer(), Moved: b.moved,
		header: [32]byte(t[80:112]), sealed: b.aead != nil,
	}
}

func appendEntry(dst []byte, r *Record) []byte {
	dst = append(dst, r.ID[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, r.Digest)
	dst = binary.LittleEndian.AppendUint32(dst, r.Plain)
	dst = binary.LittleEndian.AppendUint32(dst, r.Stored)
	dst = append(dst, byte(r.Kind), r.Flags)
	dst = binary.LittleEndian.AppendUint16(dst, r.Origin)
	return binary.LittleEndian.AppendUint32(dst, r.OriginRecord)
}
