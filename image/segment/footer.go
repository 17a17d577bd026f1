package segment

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

// A Footer lists the records of a segment. It never changes.
type Footer struct {
	ID      image.SegmentID
	Kind    Kind
	Run     [16]byte // that wrote the segment
	Created time.Time
	Size    int64 // of the segment in bytes
	Records []Record
}

// Name returns the object name of a segment.
func Name(id image.SegmentID) string {
	s := id.String()
	return "segments/" + s[:2] + "/" + s
}

// tailGuess is read in one go from the end of a segment: the footer of 64 MiB
// of 64 KiB blocks fits.
const tailGuess = 256 << 10

// ReadFooter reads and checks the footer of a segment whose length is size.
func ReadFooter(ctx context.Context, st store.Store, d *keys.Domain, id image.SegmentID, size int64) (*Footer, error) {
	name := Name(id)
	if size < headerSize+trailerSize || size > MaxSize || size%Align != 0 {
		return nil, fmt.Errorf("%s: length %d is none of a segment: %w", name, size, image.ErrCorrupt)
	}
	tail := make([]byte, min(size, tailGuess))
	if err := st.ReadAt(ctx, name, tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	t, err := decodeTrailer(tail[len(tail)-trailerSize:], id, size)
	if err != nil {
		return nil, fmt.Errorf("%s: trailer: %w", name, err)
	}
	var footer []byte
	if skip := int64(len(tail)) - (size - t.footerOffset); skip >= 0 {
		footer = tail[skip : skip+t.footerLength]
	} else {
		footer = make([]byte, t.footerLength)
		if err := st.ReadAt(ctx, name, footer, t.footerOffset); err != nil {
			return nil, err
		}
	}
	var sum [32]byte
	keys.Sum(&sum, d.FooterKey(), footer, t.raw[:112])
	if sum != [32]byte(t.raw[112:144]) {
		return nil, fmt.Errorf("%s: footer at %d: digest differs: %w", name, t.footerOffset, image.ErrCorrupt)
	}
	f := &Footer{ID: id, Kind: t.kind, Run: t.run, Created: t.created, Size: size}
	if f.Records, err = decodeEntries(footer, t); err != nil {
		return nil, fmt.Errorf("%s: footer: %w", name, err)
	}
	return f, nil
}

type trailer struct {
	raw          []byte
	kind         Kind
	run          [16]byte
	created      time.Time
	footerOffset int64
	footerLength int64
	headerLength int64
}

func decodeTrailer(b []byte, id image.SegmentID, size int64) (t trailer, err error) {
	if string(b[:8]) != trailerMagic {
		return t, fmt.Errorf("begins %q, want %q: %w", b[:8], trailerMagic, image.ErrCorrupt)
	}
	if sum := xxhash.Sum64(b[:248]); sum != binary.LittleEndian.Uint64(b[248:]) {
		return t, fmt.Errorf("checksum differs: %w", image.ErrCorrupt)
	}
	if got := image.SegmentID(b[40:56]); got != id {
		return t, fmt.Errorf("is of segment %s: %w", got, image.ErrCorrupt)
	}
	if flags := binary.LittleEndian.Uint16(b[10:]); flags != 0 {
		return t, fmt.Errorf("flags %#x: %w", flags, keys.ErrNewer)
	}
	t = trailer{
		raw:          b,
		kind:         Kind(binary.LittleEndian.Uint16(b[8:])),
		run:          [16]byte(b[56:72]),
		created:      time.Unix(0, int64(binary.LittleEndian.Uint64(b[72:]))),
		footerOffset: int64(binary.LittleEndian.Uint64(b[16:])),
		footerLength: int64(binary.LittleEndian.Uint32(b[24:])),
		headerLength: int64(binary.LittleEndian.Uint32(b[28:])),
	}
	records := int64(binary.LittleEndian.Uint32(b[12:]))
	switch {
	case t.kind != Data && t.kind != Pages:
		err = fmt.Errorf("kind %d", t.kind)
	case int64(binary.LittleEndian.Uint64(b[32:])) != size:
		err = fmt.Errorf("says %d bytes, there are %d", binary.LittleEndian.Uint64(b[32:]), size)
	case records > MaxRecords || t.footerLength != records*footerEntrySize:
		err = fmt.Errorf("footer of %d bytes for %d records", t.footerLength, records)
	case t.headerLength != headerSize:
		err = fmt.Errorf("header of %d bytes", t.headerLength)
	case t.footerOffset < t.headerLength || t.footerOffset > size || t.footerLength > size-trailerSize-t.footerOffset:
		err = fmt.Errorf("footer at %d+%d of %d bytes", t.footerOffset, t.footerLength, size)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", err, image.ErrCorrupt)
	}
	return t, err
}

// decodeEntries reads the footer's entries and places the records one behind
// the other, from the header to the footer exactly.
func decodeEntries(b []byte, t trailer) ([]Record, error) {
	records := make([]Record, len(b)/footerEntrySize)
	at := t.headerLength
	for i := range records {
		e := b[i*footerEntrySize:][:footerEntrySize]
		r := &records[i]
		*r = Record{
			ID:           image.ID(e[:32]),
			Digest:       binary.LittleEndian.Uint64(e[32:]),
			Plain:        binary.LittleEndian.Uint32(e[40:]),
			Stored:       binary.LittleEndian.Uint32(e[44:]),
			Kind:         Kind(e[48]),
			Flags:        e[49],
			Origin:       binary.LittleEndian.Uint16(e[50:]),
			OriginRecord: binary.LittleEndian.Uint32(e[52:]),
			Offset:       at + recordHeaderSize,
		}
		if r.Kind != t.kind || r.ID.IsZero() || r.Plain == 0 || r.Plain > MaxPlain || r.Stored > r.Plain || r.Flags&^FlagLZ4 != 0 {
			return nil, fmt.Errorf("record %d: kind %d, flags %#x, %d bytes stored as %d: %w", i, r.Kind, r.Flags, r.Plain, r.Stored, image.ErrCorrupt)
		}
		at = r.Offset + int64(r.Stored)
		if at > t.footerOffset {
			return nil, fmt.Errorf("record %d ends at %d, in the footer at %d: %w", i, at, t.footerOffset, image.ErrCorrupt)
		}
	}
	if at != t.footerOffset {
		return nil, fmt.Errorf("records end at %d, the footer begins at %d: %w", at, t.footerOffset, image.ErrCorrupt)
	}
	return records, nil
}

// MaxPlain bounds the plain length of a record: the largest block, 4 MiB.
const MaxPlain = 4 << 20

// Decode checks the stored payload of record n against the footer and decodes
// it into dst, which has the record's plain length. stored is exactly the
// record's payload. The caller checks the content against its ID.
func (f *Footer) Decode(c *Codec, dst, stored []byte, n int) error {
	r := &f.Records[n]
	if sum := xxhash.Sum64(stored); len(stored) != int(r.Stored) || sum != r.Digest {
		return fmt.Errorf("%s at %d: record %d: checksum %016x, want %016x: %w", Name(f.ID), r.Offset, n, sum, r.Digest, image.ErrCorrupt)
	}
	if err := c.Decode(dst, stored, r.Flags); err != nil {
		return fmt.Errorf("%s at %d: record %d: %w", Name(f.ID), r.Offset, n, err)
	}
	return nil
}

// CheckHeader checks the first bytes of a segment, at least 4096, against its
// footer.
func CheckHeader(b []byte, d *keys.Domain, repository [16]byte, f *Footer) error {
	bad := func(what string) error {
		return fmt.Errorf("%s: header: %s: %w", Name(f.ID), what, image.ErrCorrupt)
	}
	b = b[:headerSize]
	switch {
	case string(b[:8]) != headerMagic:
		return bad("wrong magic")
	case xxhash.Sum64(b[:headerSize-8]) != binary.LittleEndian.Uint64(b[headerSize-8:]):
		return bad("checksum differs")
	case [16]byte(b[16:32]) != repository:
		return bad("of another repository")
	case image.SegmentID(b[32:48]) != f.ID:
		return bad("of another segment")
	case Kind(binary.LittleEndian.Uint16(b[8:])) != f.Kind:
		return bad("of another kind")
	}
	return nil
}

// CheckRecord checks the 16 bytes before a payload against the footer.
func (f *Footer) CheckRecord(header []byte, n int) error {
	var want [recordHeaderSize]byte
	putRecordHeader(want[:], &f.Records[n])
	if [recordHeaderSize]byte(header) != want {
		return fmt.Errorf("%s at %d: record %d: header differs from the footer: %w", Name(f.ID), f.Records[n].Offset-recordHeaderSize, n, image.ErrCorrupt)
	}
	return nil
}

// RecordHeaderSize is the length of what stands before each payload, in bytes.
const RecordHeaderSize = recordHeaderSize
