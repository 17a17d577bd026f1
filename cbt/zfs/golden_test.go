package zfs

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"platter/block"
)

const zblock = 8 << 10

// goldens calls test with each stream that ZFS 2.1.11 sent, and with what was seen
// of the two snapshots then.
func goldens(t *testing.T, test func(t *testing.T, stream []byte, seen truth)) {
	all, err := filepath.Glob("testdata/*.zsend")
	if err != nil || len(all) < 6 {
		t.Fatalf("%d recorded streams (%v), want 6 or more", len(all), err)
	}
	for _, path := range all {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".zsend"), func(t *testing.T) {
			stream, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(strings.TrimSuffix(path, ".zsend") + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var seen truth
			if err := json.Unmarshal(b, &seen); err != nil {
				t.Fatal(err)
			}
			test(t, stream, seen)
		})
	}
}

// A truth is what TestRecord saw.
type truth struct {
	Size      int64
	From, To  uint64
	Different []int64 // blocks
	Data      []int64 // blocks that are not zeros in the later snapshot
}

// D12, D14: a stream that ZFS sent names every block that differs, nothing that was
// not written, and as freed only what is zeros.
func TestRecordedStreamsSayWhatChanged(t *testing.T) {
	goldens(t, func(t *testing.T, stream []byte, seen truth) {
		h, written, freed := extents(t, stream)
		if h.from != seen.From || h.to != seen.To || h.blockSize != zblock && h.blockSize != 0 {
			t.Errorf("got %+v, want guids %d and %d and blocks of %d bytes", h, seen.From, seen.To, zblock)
		}
		in := func(list []block.Extent, n int64) bool {
			return slices.ContainsFunc(list, func(e block.Extent) bool { return e.Offset < (n+1)*zblock && e.End() > n*zblock })
		}
		for n := range seen.Size / zblock {
			different, data := slices.Contains(seen.Different, n), slices.Contains(seen.Data, n)
			switch {
			case different && !in(written, n) && !in(freed, n):
				t.Errorf("block %d differs, and the stream does not say so", n)
			case !different && in(written, n):
				t.Errorf("block %d does not differ, and was written", n)
			case data && in(freed, n):
				t.Errorf("block %d has data, and is a hole", n)
			}
		}
	})
}

// numbers are the places and widths of the numbers in records, by type.
var numbers = [][]field{
	drrBegin:         {{8, 8, 0}, {16, 8, 0}, {24, 8, 0}, {32, 4, 0}, {36, 4, 0}, {40, 8, 0}, {48, 8, 0}},
	drrObject:        {{8, 8, 0}, {16, 4, 0}, {20, 4, 0}, {24, 4, 0}, {28, 4, 0}, {36, 4, 0}, {40, 8, 0}, {56, 8, 0}},
	drrFreeObjects:   {{8, 8, 0}, {16, 8, 0}, {24, 8, 0}},
	drrWrite:         {{8, 8, 0}, {16, 4, 0}, {24, 8, 0}, {32, 8, 0}, {40, 8, 0}, {56, 8, 0}, {64, 8, 0}, {72, 8, 0}, {80, 8, 0}, {88, 8, 0}, {96, 8, 0}},
	drrFree:          {{8, 8, 0}, {16, 8, 0}, {24, 8, 0}, {32, 8, 0}},
	drrEnd:           {{40, 8, 0}},
	drrWriteByRef:    {{8, 8, 0}, {16, 8, 0}, {24, 8, 0}, {32, 8, 0}},
	drrSpill:         {{8, 8, 0}, {16, 8, 0}, {24, 8, 0}, {40, 8, 0}},
	drrWriteEmbedded: {{8, 8, 0}, {16, 8, 0}, {24, 8, 0}, {32, 8, 0}, {48, 4, 0}, {52, 4, 0}},
	drrObjectRange:   {{8, 8, 0}, {16, 8, 0}, {24, 8, 0}},
}

// swapped is a stream as a big-endian machine would send it.
func swapped(t *testing.T, stream []byte) []byte {
	out, little := &sender{order: binary.BigEndian}, binary.LittleEndian
	for len(stream) > 0 {
		kind, r := little.Uint32(stream), stream[:recordSize]
		fields := []field{}
		for at := range r { // what is of one byte stays as it is
			fields = append(fields, field{at, 1, uint64(r[at])})
		}
		for _, f := range append([]field{{0, 4, 0}, {4, 4, 0}}, numbers[kind]...) {
			f.v = little.Uint64(append(slices.Clone(r[f.at:][:f.wide]), make([]byte, 8)...))
			fields = append(fields, f)
		}
		n := payloadOf(kind, r)
		out.put(uint64(kind), stream[recordSize:][:n], fields...)
		stream = stream[recordSize+n:]
	}
	return out.out
}

// payloadOf is how many bytes follow a record of a little-endian stream.
func payloadOf(kind uint32, r []byte) int {
	le := binary.LittleEndian
	switch kind {
	case drrBegin:
		return int(le.Uint32(r[4:]))
	case drrObject:
		if raw := le.Uint32(r[36:]); raw != 0 {
			return int(raw)
		}
		return int(le.Uint32(r[28:])+7) &^ 7
	case drrWrite:
		if r[50] != 0 {
			return int(le.Uint64(r[96:]))
		}
		return int(le.Uint64(r[32:]))
	case drrWriteEmbedded:
		return int(le.Uint32(r[52:])+7) &^ 7
	}
	return 0
}

// A machine of the other byte order says the same.
func TestRecordedStreamsOfTheOtherByteOrder(t *testing.T) {
	goldens(t, func(t *testing.T, stream []byte, _ truth) {
		h, written, freed := extents(t, stream)
		otherHead, otherWritten, otherFreed := extents(t, swapped(t, stream))
		if h != otherHead || !slices.Equal(written, otherWritten) || !slices.Equal(freed, otherFreed) {
			t.Errorf("got %v, %v, %v, want %v, %v, %v", otherHead, otherWritten, otherFreed, h, written, freed)
		}
	})
}
