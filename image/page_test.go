package image_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"platter/image"
)

// hinted draws a page of which some entries are zero and some have hints, in
// runs and alone.
func hinted(t *rapid.T) *image.Page {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	segments := make([]image.SegmentID, rapid.IntRange(1, image.PageEntries).Draw(t, "segments"))
	for i := range segments {
		copy(segments[i][:], random(rng, 16))
	}
	zeros, unknown, breaks := rng.IntN(5), rng.IntN(5), 1+rng.IntN(40)
	p := new(image.Page)
	at := image.Location{Segment: segments[0]}
	for i := range p.Entries {
		if rng.IntN(breaks) == 0 {
			at = image.Location{Segment: segments[rng.IntN(len(segments))], Record: rng.Uint32()}
		}
		if rng.IntN(5) >= zeros {
			copy(p.Entries[i][:], random(rng, 32))
		}
		if rng.IntN(5) >= unknown {
			p.Hints[i] = at
		}
		at.Record++
	}
	return p
}

func TestPageReadsBackWithItsHints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := hinted(t)
		b := p.Encode([]byte("before"))
		if !bytes.HasPrefix(b, []byte("before")) {
			t.Fatal("what stood in the buffer is gone")
		}
		b = b[len("before"):]
		if len(b) > image.MaxPageEncoded {
			t.Fatalf("%d bytes, at most %d are promised", len(b), image.MaxPageEncoded)
		}
		if !bytes.Equal(b[:image.PageSize], p.Content(nil)) {
			t.Fatal("the content does not come first")
		}
		q, err := image.DecodePage(b)
		if err != nil {
			t.Fatal(err)
		}
		if q.Entries != p.Entries {
			t.Fatal("entries differ")
		}
		for i := range p.Hints {
			want := p.Hints[i]
			if p.Entries[i].IsZero() {
				want = image.Location{}
			}
			if q.Hints[i] != want {
				t.Fatalf("hint %d is %v, want %v", i, q.Hints[i], want)
			}
		}
		if again := q.Encode(nil); !bytes.Equal(again, b) {
			t.Fatal("encoded again, it differs")
		}
	})
}

func TestPageWithMostHintsFits(t *testing.T) {
	p := new(image.Page)
	for i := range p.Entries {
		p.Entries[i][0] = 1
		p.Hints[i] = image.Location{Segment: image.SegmentID{byte(i), 1}, Record: 7}
	}
	if n := len(p.Encode(nil)); n != image.MaxPageEncoded {
		t.Errorf("%d bytes, want %d", n, image.MaxPageEncoded)
	}
	if n := len(new(image.Page).Encode(nil)); n != image.PageSize+4 {
		t.Errorf("a page without hints has %d bytes, want %d", n, image.PageSize+4)
	}
}

// somePage is a page with two runs and a lone hint.
func somePage() *image.Page {
	rng := rand.New(rand.NewPCG(5, 5))
	p := new(image.Page)
	for i := range 100 {
		copy(p.Entries[i][:], random(rng, 32))
		p.Hints[i] = image.Location{Segment: image.SegmentID{byte(i / 60)}, Record: uint32(i)}
	}
	p.Hints[70] = image.Location{Segment: image.SegmentID{9}, Record: 1<<32 - 1}
	return p
}

func TestDecodePageRefusesOtherLengths(t *testing.T) {
	b := somePage().Encode(nil)
	for n := range len(b) + 20 {
		if n == len(b) {
			continue
		}
		cut := append(bytes.Clone(b), make([]byte, 20)...)[:n]
		if p, err := image.DecodePage(cut); !errors.Is(err, image.ErrCorrupt) || p != nil {
			t.Fatalf("%d of %d bytes: got %v, want corrupt", n, len(b), err)
		}
	}
}

func TestDecodePageOfFlippedBytes(t *testing.T) {
	page := somePage()
	b := page.Encode(nil)
	for i := range b {
		for _, flip := range []byte{1, 0x80, 0xff} {
			b[i] ^= flip
			p, err := image.DecodePage(b)
			b[i] ^= flip
			switch {
			case err != nil && (!errors.Is(err, image.ErrCorrupt) || i < image.PageSize):
				t.Fatalf("byte %d ^ %#x: %v", i, flip, err)
			case err == nil && i >= image.PageSize && p.Entries != page.Entries:
				t.Fatalf("byte %d ^ %#x: a hint changed the entries", i, flip)
			case err == nil && i < image.PageSize && p.Hints != page.Hints:
				t.Fatalf("byte %d ^ %#x: an entry changed the hints", i, flip)
			}
		}
	}
}

func TestDecodePageRefusesHostileHints(t *testing.T) {
	content := make([]byte, image.PageSize)
	segment := make([]byte, 16)
	for name, hints := range map[string][]byte{
		"129 segments":        append([]byte{129, 0, 0, 0}, make([]byte, 129*16)...),
		"129 runs":            append([]byte{0, 0, 129, 0}, make([]byte, 129*8)...),
		"65535 of both":       {255, 255, 255, 255},
		"run of no segment":   {0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"run past the end":    append(append([]byte{1, 0, 1, 0}, segment...), 127, 1, 0, 0, 0, 0, 0, 0),
		"run begins past it":  append(append([]byte{1, 0, 1, 0}, segment...), 128, 0, 0, 0, 0, 0, 0, 0),
		"segment not listed":  append(append([]byte{1, 0, 1, 0}, segment...), 0, 0, 1, 0, 0, 0, 0, 0),
		"byte that is zero":   append(append([]byte{1, 0, 1, 0}, segment...), 0, 0, 0, 1, 0, 0, 0, 0),
		"a byte less for one": append(append([]byte{1, 0, 1, 0}, segment...), 0, 0, 0, 0, 0, 0, 0),
	} {
		if _, err := image.DecodePage(append(bytes.Clone(content), hints...)); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: got %v, want corrupt", name, err)
		}
	}
	// The last entry may have a hint, and a run may span them all.
	for _, run := range [][]byte{{127, 0, 0, 0, 255, 255, 255, 255}, {0, 127, 0, 0, 255, 255, 255, 255}} {
		hints := append(append([]byte{1, 0, 1, 0}, segment...), run...)
		if _, err := image.DecodePage(append(bytes.Clone(content), hints...)); err != nil {
			t.Errorf("run %v: %v", run, err)
		}
	}
}

func FuzzPage(f *testing.F) {
	f.Add(somePage().Encode(nil))
	f.Add(new(image.Page).Encode(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := image.DecodePage(b)
		if err != nil {
			if !errors.Is(err, image.ErrCorrupt) || p != nil {
				t.Fatalf("got %v, %v", p, err)
			}
			return
		}
		if !bytes.Equal(p.Content(nil), b[:image.PageSize]) {
			t.Fatal("content differs")
		}
		q, err := image.DecodePage(p.Encode(nil))
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		for i := range p.Hints {
			if !p.Entries[i].IsZero() && q.Hints[i] != p.Hints[i] {
				t.Fatalf("hint %d is %v, was %v", i, q.Hints[i], p.Hints[i])
			}
		}
	})
}
