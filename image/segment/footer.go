package segment

import (
	"context"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"sync"
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
	Digest  image.Digest // of header, footer and the trailer's fields
	Writer  keys.Writer  // who signed it
	// Moved: records of other segments are among these, and the writer vouches
	// for none of them.
	Moved bool

	header   [32]byte // its digest
	sealed   bool     // its payloads are
	unlock   sync.Mutex
	unlocked []payloadKey // by place in the key table
}

// A payloadKey opens the payloads of one origin.
type payloadKey struct {
	origin origin
	aead   cipher.AEAD // nil for want of the data key
}

// Name returns the object name of a segment.
func Name(id image.SegmentID) string {
	s := id.String()
	return "segments/" + s[:2] + "/" + s
}

// tailGuess is read in one go from the end of a segment: the footer of 64 MiB
// of 64 KiB blocks fits.
const tailGuess = 256 << 10

// An Object names a segment and tells its length in bytes, as a listing does.
type Object struct {
	ID   image.SegmentID
	Size int64
}

// A Tail is the end of a segment as it is stored: all that a Footer is made
// from, and what proves it.
type Tail struct {
	Footer  []byte // sealed or not
	Trailer []byte // TrailerSize bytes
}

// TrailerSize is the length of a segment's trailer in bytes.
const TrailerSize = trailerSize

// ReadFooter reads and checks the footer of a segment whose length is size.
func ReadFooter(ctx context.Context, st store.Store, d *keys.Domain, id image.SegmentID, size int64) (*Footer, error) {
	tail, err := ReadTail(ctx, st, Object{id, size})
	if err != nil {
		return nil, err
	}
	return tail.Open(d, Object{id, size})
}

// ReadTail reads the end of a segment, of which it checks no more than it needs
// to find it.
func ReadTail(ctx context.Context, st store.Store, o Object) (Tail, error) {
	name := Name(o.ID)
	if err := checkSize(name, o.Size); err != nil {
		return Tail{}, err
	}
	end := make([]byte, min(o.Size, tailGuess))
	if err := st.ReadAt(ctx, name, end, o.Size-int64(len(end))); err != nil {
		return Tail{}, err
	}
	tail := Tail{Trailer: end[len(end)-trailerSize:]}
	t, err := decodeTrailer(tail.Trailer, o.ID, o.Size)
	if err != nil {
		return Tail{}, fmt.Errorf("%s: trailer: %w", name, err)
	}
	if skip := int64(len(end)) - (o.Size - t.footerOffset); skip >= 0 {
		tail.Footer = end[skip : skip+t.footerLength]
		return tail, nil
	}
	tail.Footer = make([]byte, t.footerLength)
	return tail, st.ReadAt(ctx, name, tail.Footer, t.footerOffset)
}

func checkSize(name string, size int64) error {
	if size < headerSize+trailerSize || size > MaxSize || size%Align != 0 {
		return fmt.Errorf("%s: length %d is none of a segment: %w", name, size, image.ErrCorrupt)
	}
	return nil
}

// Open checks the end of a segment, wherever it was read from, and returns the
// segment's footer.
func (tail Tail) Open(d *keys.Domain, o Object) (*Footer, error) {
	name := Name(o.ID)
	if err := checkSize(name, o.Size); err != nil {
		return nil, err
	}
	if len(tail.Trailer) != trailerSize {
		return nil, fmt.Errorf("%s: trailer of %d bytes: %w", name, len(tail.Trailer), image.ErrCorrupt)
	}
	t, err := decodeTrailer(tail.Trailer, o.ID, o.Size)
	if err != nil {
		return nil, fmt.Errorf("%s: trailer: %w", name, err)
	}
	footer := tail.Footer
	var sum [32]byte
	d.SumFooter(&sum, footer, t.raw[:112])
	if int64(len(footer)) != t.footerLength || sum != [32]byte(t.raw[112:144]) {
		return nil, fmt.Errorf("%s: footer at %d: digest differs: %w", name, t.footerOffset, image.ErrCorrupt)
	}
	if t.sealed != d.Encrypted() {
		return nil, fmt.Errorf("%s: trailer: sealed %v in a repository that is encrypted %v: %w", name, t.sealed, d.Encrypted(), image.ErrCorrupt)
	}
	w, err := d.Signer(signatureContext, t.raw[144:248], t.raw[248:312], t.raw[112:248])
	if err != nil {
		return nil, fmt.Errorf("%s: trailer: %w", name, err)
	}
	if t.sealed {
		if footer, err = d.OpenFooter(o.ID, footer); err != nil {
			return nil, fmt.Errorf("%s: footer at %d: %w: %w", name, t.footerOffset, err, image.ErrCorrupt)
		}
	}
	f := &Footer{
		ID: o.ID, Kind: t.kind, Run: t.run, Created: t.created, Size: o.Size,
		Digest: image.Digest(t.raw[112:144]), Writer: w, Moved: t.moved,
		header: [32]byte(t.raw[80:112]), sealed: t.sealed,
	}
	if f.Records, err = decodeEntries(footer, t); err != nil {
		return nil, fmt.Errorf("%s: footer: %w", name, err)
	}
	return f, nil
}

type trailer struct {
	raw          []byte
	sealed       bool
	moved        bool
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
	if sum := xxhash.Sum64(b[:trailerSum]); sum != binary.LittleEndian.Uint64(b[trailerSum:]) {
		return t, fmt.Errorf("checksum differs: %w", image.ErrCorrupt)
	}
	if got := image.SegmentID(b[40:56]); got != id {
		return t, fmt.Errorf("is of segment %s: %w", got, image.ErrCorrupt)
	}
	flags := binary.LittleEndian.Uint16(b[10:])
	if flags&^(flagSealed|flagMoved) != 0 {
		return t, fmt.Errorf("flags %#x: %w", flags, keys.ErrNewer)
	}
	t = trailer{
		raw:          b,
		sealed:       flags&flagSealed != 0,
		moved:        flags&flagMoved != 0,
		kind:         Kind(binary.LittleEndian.Uint16(b[8:])),
		run:          [16]byte(b[56:72]),
		created:      time.Unix(0, int64(binary.LittleEndian.Uint64(b[72:]))),
		footerOffset: int64(binary.LittleEndian.Uint64(b[16:])),
		footerLength: int64(binary.LittleEndian.Uint32(b[24:])),
		headerLength: int64(binary.LittleEndian.Uint32(b[28:])),
	}
	records := int64(binary.LittleEndian.Uint32(b[12:]))
	want := records * footerEntrySize
	if t.sealed {
		want += keys.Overhead
	}
	switch {
	case t.kind != Data && t.kind != Pages:
		err = fmt.Errorf("kind %d", t.kind)
	case int64(binary.LittleEndian.Uint64(b[32:])) != size:
		err = fmt.Errorf("says %d bytes, there are %d", binary.LittleEndian.Uint64(b[32:]), size)
	case records > MaxRecords || t.footerLength != want:
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
	longest, origins := uint32(0), 1
	if t.sealed {
		longest, origins = keys.Overhead, maxOrigins
	}
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
		if r.Kind != t.kind || r.ID.IsZero() || r.Plain == 0 || r.Plain > MaxPlain || r.Stored < longest || r.Stored-longest > r.Plain || int(r.Origin) >= origins || r.Flags&^FlagLZ4 != 0 {
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
	if err := f.Expand(c, dst, stored, n); err != nil {
		return fmt.Errorf("%s at %d: record %d: %w", Name(f.ID), r.Offset, n, err)
	}
	return nil
}

// Expand opens and decodes as Decode does, without the checksum, for callers
// to whom the content's ID says all.
func (f *Footer) Expand(c *Codec, dst, stored []byte, n int) error {
	r := &f.Records[n]
	if f.sealed {
		if int(r.Origin) >= len(f.unlocked) {
			return fmt.Errorf("origin %d of %d: %w", r.Origin, len(f.unlocked), image.ErrCorrupt)
		}
		k := &f.unlocked[r.Origin]
		if k.aead == nil {
			return keys.ErrNoDataKey
		}
		var err error
		c.open, err = k.aead.Open(c.open[:0], nonce(r.OriginRecord), stored, boundTo(r, k.origin.id))
		if err != nil {
			return fmt.Errorf("open: %w: %w", err, image.ErrCorrupt)
		}
		stored = c.open
	}
	return c.Decode(dst, stored, r.Flags)
}

// Unlock makes the payloads of a sealed segment readable, as far as the keys
// go; that of others does nothing. Payloads are decoded after it only.
func (f *Footer) Unlock(ctx context.Context, st store.Store, d *keys.Domain, repository [16]byte) error {
	if !f.sealed {
		return nil
	}
	f.unlock.Lock()
	defer f.unlock.Unlock()
	if f.unlocked != nil {
		return nil
	}
	header := make([]byte, headerSize)
	if err := st.ReadAt(ctx, Name(f.ID), header, 0); err != nil {
		return err
	}
	if err := CheckHeader(header, d, repository, f); err != nil {
		return err
	}
	table, err := f.keyTable(header, d)
	f.unlocked = table
	return err
}

func (f *Footer) keyTable(header []byte, d *keys.Domain) ([]payloadKey, error) {
	n := int(binary.LittleEndian.Uint32(header[72:]))
	if n < 1 || n > maxOrigins {
		return nil, fmt.Errorf("%s: key table of %d entries: %w", Name(f.ID), n, image.ErrCorrupt)
	}
	table := make([]payloadKey, n)
	for i := range table {
		e := header[tableOffset+i*keyEntrySize:][:keyEntrySize]
		k := &table[i]
		k.origin = origin{image.SegmentID(e[:16]), [keys.WrappedSize]byte(e[16:])}
		if f.Kind == Pages {
			k.aead = keys.AEAD(d.PageKey(k.origin.id))
			continue
		}
		if !d.CanRead() {
			continue
		}
		key, err := d.UnwrapKey(k.origin.id, k.origin.wrapped[:])
		if err != nil {
			return nil, fmt.Errorf("%s: key table entry %d: %w", Name(f.ID), i, err)
		}
		k.aead = keys.AEAD(key)
	}
	return table, nil
}

// Move returns record n with its stored payload, for another segment. The
// payload is checked by its checksum. Unlock comes first.
func (f *Footer) Move(n int, stored []byte) (*Moved, error) {
	r := &f.Records[n]
	if len(stored) != int(r.Stored) || xxhash.Sum64(stored) != r.Digest {
		return nil, fmt.Errorf("%s at %d: record %d: checksum differs: %w", Name(f.ID), r.Offset, n, image.ErrCorrupt)
	}
	m := &Moved{Record: *r, Payload: stored}
	if f.sealed {
		if int(r.Origin) >= len(f.unlocked) {
			return nil, fmt.Errorf("%s: record %d: origin %d of %d: %w", Name(f.ID), n, r.Origin, len(f.unlocked), image.ErrCorrupt)
		}
		m.from = f.unlocked[r.Origin].origin
	}
	return m, nil
}

// CheckHeader checks the first bytes of a segment, at least 4096, against its
// footer.
func CheckHeader(b []byte, d *keys.Domain, repository [16]byte, f *Footer) error {
	bad := func(what string) error {
		return fmt.Errorf("%s: header: %s: %w", Name(f.ID), what, image.ErrCorrupt)
	}
	b = b[:headerSize]
	var sum [32]byte
	d.SumFooter(&sum, b)
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
	case binary.LittleEndian.Uint16(b[10:])&flagSealed != 0 != f.sealed:
		return bad("sealed or not, unlike the trailer")
	case sum != f.header:
		return bad("digest differs")
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
