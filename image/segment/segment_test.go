package segment

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"platter/image"
	"platter/image/keys"
	"platter/image/store/mem"
)

var (
	testKeys       = &keys.Domain{ID: [32]byte{1}, Structure: [32]byte{2}}
	testRepository = [16]byte{3}
	testRun        = [16]byte{4}
	testTime       = time.Unix(1_800_000_000, 7)
	// decoder keeps nothing between two calls; it is shared for its large tables.
	decoder = new(Codec)
)

func random(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// A sample is a segment and what was put into it.
type sample struct {
	data   []byte
	footer *Footer
	plain  [][]byte
}

// build makes a segment of these payloads, in a buffer that they just fit in
// unless it is given.
func build(t testing.TB, kind Kind, buf []byte, plain ...[]byte) sample {
	t.Helper()
	if buf == nil {
		n := 0
		for _, p := range plain {
			n += recordHeaderSize + footerEntrySize + len(p)
		}
		buf = make([]byte, align(headerSize+trailerSize+n))
		for i := range buf {
			buf[i] = 0xee // what a buffer held before must not show
		}
	}
	b := NewBuilder(buf, kind, testRepository, testRun, testKeys, testTime)
	codec := new(Codec)
	for i, p := range plain {
		stored, flags, err := codec.Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		if !b.Fits(len(stored)) {
			t.Fatalf("record %d of %d bytes does not fit", i, len(stored))
		}
		id := image.ID{byte(i), 1}
		if n := b.Add(Record{ID: id, Plain: uint32(len(p)), Flags: flags}, stored); int(n) != i || b.Len() != i+1 {
			t.Fatalf("record %d got number %d, %d in all", i, n, b.Len())
		}
	}
	size := b.Size()
	data, footer := b.Seal()
	if len(data) != size || len(data)%Align != 0 || footer.Size != int64(size) || footer.ID != b.ID() {
		t.Fatalf("%d bytes, footer of %d, want %d", len(data), footer.Size, size)
	}
	return sample{data, footer, plain}
}

// open reads a footer from a store that holds nothing else.
func open(data []byte, id image.SegmentID) (*Footer, error) {
	st := mem.New()
	st.Replace(Name(id), data)
	return ReadFooter(context.Background(), st, testKeys, id, int64(len(data)))
}

// readAll reads a segment as verification does and returns its plain payloads.
func readAll(data []byte, id image.SegmentID) (*Footer, [][]byte, error) {
	f, err := open(data, id)
	if err != nil {
		return nil, nil, err
	}
	if err := CheckHeader(data, testKeys, testRepository, f); err != nil {
		return f, nil, err
	}
	var all [][]byte
	for n := range f.Records {
		r := &f.Records[n]
		if err := f.CheckRecord(data[r.Offset-RecordHeaderSize:r.Offset], n); err != nil {
			return f, nil, err
		}
		plain := make([]byte, r.Plain)
		if err := f.Decode(decoder, plain, data[r.Offset:][:r.Stored], n); err != nil {
			return f, nil, err
		}
		all = append(all, plain)
	}
	return f, all, nil
}

func same(a, b *Footer) bool {
	return a.ID == b.ID && a.Kind == b.Kind && a.Run == b.Run && a.Created.Equal(b.Created) && a.Size == b.Size && slices.Equal(a.Records, b.Records)
}

func compressible(rng *rand.Rand, n int) []byte {
	return bytes.Repeat(random(rng, 16), n/16+1)[:n]
}

func TestSegmentReadsBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, kind := range []Kind{Data, Pages} {
		for _, records := range []int{0, 1, 2, 100, 5000} {
			var plain [][]byte
			for i := range records {
				n := 1 + rng.IntN(3000)
				if i%2 == 0 {
					plain = append(plain, random(rng, n))
				} else {
					plain = append(plain, compressible(rng, n))
				}
			}
			s := build(t, kind, nil, plain...)
			f, got, err := readAll(s.data, s.footer.ID)
			if err != nil {
				t.Fatalf("%d records: %v", records, err)
			}
			if !same(f, s.footer) {
				t.Fatalf("%d records: the footer read differs: %s", records, cmp.Diff(s.footer, f))
			}
			if len(f.Records) != records || f.Kind != kind || f.Run != testRun || !f.Created.Equal(testTime) {
				t.Fatalf("%d records: footer %+v", records, f)
			}
			for i := range plain {
				if !bytes.Equal(got[i], plain[i]) {
					t.Fatalf("record %d of %d differs", i, records)
				}
			}
		}
	}
}

func TestFitsExactly(t *testing.T) {
	const fixed = headerSize + trailerSize + recordHeaderSize + footerEntrySize
	for _, pages := range []int{2, 3, 16} {
		buf := make([]byte, pages*Align)
		exact := len(buf) - fixed
		for payload, want := range map[int]bool{0: true, exact - 1: true, exact: true, exact + 1: false, len(buf): false, 1 << 40: false} {
			if got := NewBuilder(buf, Data, testRepository, testRun, testKeys, testTime).Fits(payload); got != want {
				t.Errorf("%d bytes in a buffer of %d: fits %v, want %v", payload, len(buf), got, want)
			}
		}
		if MinBuffer(exact) != len(buf) || MinBuffer(exact+1) != len(buf)+Align {
			t.Errorf("payloads of %d and one more need buffers of %d and %d, want %d and one page more", exact, MinBuffer(exact), MinBuffer(exact+1), len(buf))
		}
		p := random(rand.New(rand.NewPCG(2, uint64(pages))), exact)
		s := build(t, Data, buf, p)
		if _, got, err := readAll(s.data, s.footer.ID); err != nil || !bytes.Equal(got[0], p) {
			t.Errorf("the largest payload of %d bytes does not read back: %v", exact, err)
		}
	}
	// A second record needs its own header and entry.
	buf := make([]byte, 2*Align)
	exact := len(buf) - fixed - recordHeaderSize - footerEntrySize - 100
	for payload, want := range map[int]bool{exact - 1: true, exact: true, exact + 1: false} {
		b := NewBuilder(buf, Data, testRepository, testRun, testKeys, testTime)
		b.Add(Record{ID: image.ID{1}, Plain: 100}, make([]byte, 100))
		if got := b.Fits(payload); got != want {
			t.Errorf("%d bytes beside 100: fits %v, want %v", payload, got, want)
		}
	}
}

func TestRenamedSegmentHasOneName(t *testing.T) {
	b := NewBuilder(make([]byte, 4*Align), Data, testRepository, testRun, testKeys, testTime)
	old := b.ID()
	b.Add(Record{ID: image.ID{1}, Plain: 3}, []byte("abc"))
	first, _ := b.Seal()
	first = bytes.Clone(first)
	b.Rename()
	if b.ID() == old {
		t.Fatal("the name stays")
	}
	second, f := b.Seal()
	if _, _, err := readAll(second, b.ID()); err != nil || f.ID != b.ID() {
		t.Errorf("under the new name: %v", err)
	}
	if _, _, err := readAll(second, old); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("the new segment under the old name: %v, want corrupt", err)
	}
	if _, got, err := readAll(first, old); err != nil || string(got[0]) != "abc" {
		t.Errorf("the segment sealed before: %q, %v", got, err)
	}
}

// small is a segment of three records, two LZ4'd, and little padding.
func small(t testing.TB, kind Kind) sample {
	rng := rand.New(rand.NewPCG(3, 3))
	return build(t, kind, nil, compressible(rng, 700), random(rng, 500), compressible(rng, 3000))
}

// padding is what lies between footer and trailer: no check covers it.
func (s sample) padding(i int) bool {
	last := s.footer.Records[len(s.footer.Records)-1]
	end := last.Offset + int64(last.Stored) + int64(len(s.footer.Records)*footerEntrySize)
	return int64(i) >= end && i < len(s.data)-trailerSize
}

func isRefusal(err error) bool {
	return errors.Is(err, image.ErrCorrupt) || errors.Is(err, keys.ErrNewer)
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	for _, kind := range []Kind{Data, Pages} {
		s := small(t, kind)
		for i := range s.data {
			for _, flip := range []byte{1, 0x80, 0xff} {
				s.data[i] ^= flip
				f, got, err := readAll(s.data, s.footer.ID)
				s.data[i] ^= flip
				if s.padding(i) {
					if err != nil || len(got) != len(s.plain) {
						t.Fatalf("padding byte %d ^ %#x: %v", i, flip, err)
					}
					continue
				}
				if !isRefusal(err) {
					t.Fatalf("byte %d ^ %#x: got %v, want corrupt", i, flip, err)
				}
				if f != nil && !same(f, s.footer) {
					t.Fatalf("byte %d ^ %#x: another footer: %s", i, flip, cmp.Diff(s.footer, f))
				}
			}
		}
	}
}

func TestEveryTruncationIsFound(t *testing.T) {
	s := small(t, Data)
	for n := range len(s.data) {
		if f, err := open(s.data[:n], s.footer.ID); !errors.Is(err, image.ErrCorrupt) || f != nil {
			t.Fatalf("%d of %d bytes: got %v, want corrupt", n, len(s.data), err)
		}
		// The same length, with zeros in place of the end.
		torn := append(bytes.Clone(s.data[:n]), make([]byte, len(s.data)-n)...)
		if _, _, err := readAll(torn, s.footer.ID); !isRefusal(err) {
			t.Fatalf("%d of %d bytes, then zeros: got %v, want corrupt", n, len(s.data), err)
		}
	}
	for _, more := range []int{1, Align, 8 * Align} {
		if _, err := open(append(bytes.Clone(s.data), make([]byte, more)...), s.footer.ID); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%d bytes more: got %v, want corrupt", more, err)
		}
	}
}

func TestSegmentsOfOthersAreRefused(t *testing.T) {
	s := small(t, Data)
	st := mem.New()
	st.Replace(Name(s.footer.ID), s.data)
	other := &keys.Domain{ID: testKeys.ID, Structure: [32]byte{9}}
	if _, err := ReadFooter(t.Context(), st, other, s.footer.ID, s.footer.Size); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("of another domain: %v, want corrupt", err)
	}
	if _, err := open(s.data, image.SegmentID{1}); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("under another name: %v, want corrupt", err)
	}
	if err := CheckHeader(s.data, testKeys, [16]byte{5}, s.footer); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("header of another repository: %v, want corrupt", err)
	}
	pages := small(t, Pages)
	copy(pages.data[32:48], s.footer.ID[:]) // and an honest checksum is too much to ask
	if err := CheckHeader(pages.data, testKeys, testRepository, s.footer); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("header of another kind: %v, want corrupt", err)
	}
}

func TestCheckRecordTellsRecordsApart(t *testing.T) {
	s := small(t, Data)
	for n := range s.footer.Records {
		for m := range s.footer.Records {
			at := s.footer.Records[m].Offset
			err := s.footer.CheckRecord(s.data[at-RecordHeaderSize:at], n)
			if (err == nil) != (n == m) || err != nil && !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("header of record %d for record %d: %v", m, n, err)
			}
		}
	}
}

func TestDecodeRefusesOtherPayloads(t *testing.T) {
	s := small(t, Data)
	for n, r := range s.footer.Records {
		dst := make([]byte, r.Plain)
		stored := s.data[r.Offset:][:r.Stored]
		for name, p := range map[string][]byte{
			"a byte less": stored[:len(stored)-1], "a byte more": s.data[r.Offset:][:r.Stored+1], "nothing": nil,
		} {
			if err := s.footer.Decode(new(Codec), dst, p, n); !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("record %d, %s: %v, want corrupt", n, name, err)
			}
		}
	}
}
