package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"platter/block"
)

const from, to = 0x1122334455667788, 0x99aabbccddeeff00

// A sender makes streams.
type sender struct {
	order binary.ByteOrder
	sum   fletcher
	out   []byte
}

// field is a number at its place in a record.
type field struct {
	at   int
	wide int // bytes
	v    uint64
}

func u64(at int, v uint64) field { return field{at, 8, v} }
func u32(at int, v uint64) field { return field{at, 4, v} }

// put adds a record and its payload.
func (s *sender) put(kind uint64, payload []byte, fields ...field) {
	r := make([]byte, recordSize)
	for _, f := range append(fields, u32(0, kind)) {
		switch f.wide {
		case 1:
			r[f.at] = byte(f.v)
		case 4:
			s.order.PutUint32(r[f.at:], uint32(f.v))
		default:
			s.order.PutUint64(r[f.at:], f.v)
		}
	}
	swap := s.order == binary.BigEndian
	if kind == drrEnd {
		s.checksum(r[8:])
	}
	s.sum.add(r[:checksumAt], swap)
	if kind != drrBegin || len(s.out) > 0 {
		s.checksum(r[checksumAt:])
	}
	s.sum.add(r[checksumAt:], swap)
	s.sum.add(payload, swap)
	s.out = append(append(s.out, r...), payload...)
}

func (s *sender) checksum(b []byte) {
	for i, n := range s.sum {
		s.order.PutUint64(b[8*i:], n)
	}
}

func (s *sender) begin(fields ...field) {
	s.put(drrBegin, nil, append([]field{
		u64(8, streamMagic), u64(16, substream|1<<(2+22)), u32(32, datasetVolume), u32(36, 1<<2), u64(40, to), u64(48, from),
	}, fields...)...)
}

func (s *sender) end() { s.put(drrEnd, nil, u64(40, to)) }

// whole is a stream with every kind of record.
func whole(order binary.ByteOrder) []byte {
	s := &sender{order: order}
	s.begin()
	s.put(drrObject, make([]byte, 8), u64(8, volumeObject), u32(16, typeVolume), u32(24, 8192), u32(28, 5), u64(40, to))
	s.put(drrFree, nil, u64(8, volumeObject), u64(16, 1<<24), u64(24, untilEnd), u64(32, to))
	s.put(drrFreeObjects, nil, u64(8, 3), u64(16, 29), u64(24, to))
	s.put(drrWrite, make([]byte, 1024), u64(8, volumeObject), u32(16, typeVolume), u64(24, 8192), u64(32, 1024), u64(40, to))
	s.put(drrWrite, bytes.Repeat([]byte{7}, 512), u64(8, volumeObject), u32(16, typeVolume), u64(24, 32768), u64(32, 8192), u64(40, to), field{50, 1, 15}, u64(96, 512))
	s.put(drrWriteEmbedded, make([]byte, 24), u64(8, volumeObject), u64(16, 65536), u64(24, 8192), u64(32, to), u32(48, 8192), u32(52, 17))
	s.put(drrWriteByRef, nil, u64(8, volumeObject), u64(16, 81920), u64(24, 8192), u64(32, to))
	s.put(drrFree, nil, u64(8, volumeObject), u64(16, 1<<20), u64(24, 16384), u64(32, to))
	s.put(drrFree, nil, u64(8, volumeObject), u64(16, 1<<23), u64(24, math.MaxUint64-1<<23), u64(32, to))
	s.put(drrObjectRange, nil, u64(8, 0), u64(16, 32), u64(24, to))
	s.put(drrObject, nil, u64(8, propertiesObject), u32(16, 24), u32(24, 512), u64(40, to))
	s.put(drrWrite, make([]byte, 512), u64(8, propertiesObject), u32(16, 24), u64(24, 0), u64(32, 512), u64(40, to))
	s.put(drrSpill, make([]byte, 1024), u64(8, propertiesObject), u64(16, 1024), u64(24, to))
	s.end()
	return s.out
}

func extents(t testing.TB, stream []byte) (h head, written, freed []block.Extent) {
	t.Helper()
	h, err := readStream(bytes.NewReader(stream), func(e block.Extent, free bool) {
		if free {
			freed = append(freed, e)
		} else {
			written = append(written, e)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, written, freed
}

// D14: what is written in any way, and what is freed, has changed; of the volume,
// not of its properties.
func TestStreamsSayWhatChanged(t *testing.T) {
	wantWritten := []block.Extent{
		{Offset: 8192, Length: 1024},
		{Offset: 32768, Length: 8192},
		{Offset: 65536, Length: 8192},
		{Offset: 81920, Length: 8192},
	}
	wantFreed := []block.Extent{
		{Offset: 1 << 24, Length: math.MaxInt64 - 1<<24},
		{Offset: 1 << 20, Length: 16384},
		{Offset: 1 << 23, Length: math.MaxInt64 - 1<<23},
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		h, written, freed := extents(t, whole(order))
		if !slices.Equal(written, wantWritten) || !slices.Equal(freed, wantFreed) || h != (head{from, to, 8192}) {
			t.Errorf("%v: got %v, written %v, freed %v, want %v and %v", order, h, written, freed, wantWritten, wantFreed)
		}
	}
	s := &sender{order: binary.LittleEndian}
	s.begin()
	s.put(drrFreeObjects, nil, u64(8, 1), u64(16, math.MaxUint64), u64(24, to))
	s.end()
	if _, got, freed := extents(t, s.out); !slices.Equal(got, []block.Extent{{Length: math.MaxInt64}}) || freed != nil {
		t.Errorf("the volume's object is gone: got %v and %v, want all", got, freed)
	}
}

// D12: a stream that is cut short, or has a bit that is not as it was sent, is no
// proof.
func TestDamagedStreamsAreNotBelieved(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		good := whole(order)
		believes := func(stream []byte) bool {
			_, err := readStream(bytes.NewReader(stream), func(block.Extent, bool) {})
			if err != nil && !errors.Is(err, errStream) {
				t.Fatalf("got %v, want %v", err, errStream)
			}
			return err == nil
		}
		for cut := 0; cut < len(good); cut += 1 + cut%7 {
			if believes(good[:cut]) {
				t.Fatalf("%v: believes the first %d bytes of %d", order, cut, len(good))
			}
		}
		for i := 0; i < len(good); i += 1 + i%3 {
			bad := slices.Clone(good)
			bad[i] ^= 1 << (i % 8)
			if believes(bad) {
				t.Fatalf("%v: believes a stream with bit %d of byte %d turned", order, i%8, i)
			}
		}
		if believes(append(slices.Clone(good), 0)) || believes(append(slices.Clone(good), good...)) {
			t.Errorf("%v: believes what goes on after its end", order)
		}
	}
}

// D12: nor is one whose checksums are right and that says what is not understood.
func TestStrangeStreamsAreNotBelieved(t *testing.T) {
	object := []field{u64(8, volumeObject), u32(16, typeVolume), u32(24, 8192), u64(40, to)}
	write := []field{u64(8, volumeObject), u32(16, typeVolume), u64(24, 0), u64(32, 8192), u64(40, to)}
	free := []field{u64(8, volumeObject), u64(16, 0), u64(24, 8192), u64(32, to)}
	for _, c := range []struct {
		want    string
		begin   []field
		kind    uint64
		payload int
		record  []field
	}{
		{want: "version", begin: []field{u64(16, 2)}},
		{want: "version", begin: []field{u64(16, substream|1<<40)}},
		{want: "features", begin: []field{u64(16, substream|1<<(2+20))}},
		{want: "features", begin: []field{u64(16, substream|1<<(2+21))}},
		{want: "type 2", begin: []field{u32(32, 2)}},
		{want: "flags", begin: []field{u32(36, 1)}},
		{want: "payload", begin: []field{u32(4, maxPayload+4)}},
		{want: "not known", kind: drrRedact, record: free},
		{want: "not known", kind: 11, record: free},
		{want: "not known", kind: drrBegin, record: free},
		{want: "guid 1,", kind: drrObject, record: append(object, u64(40, 1))},
		{want: "guid 1,", kind: drrFreeObjects, record: []field{u64(8, 3), u64(16, 1), u64(24, 1)}},
		{want: "guid 1,", kind: drrWrite, payload: 8192, record: append(write, u64(40, 1))},
		{want: "guid 1,", kind: drrFree, record: append(free, u64(32, 1))},
		{want: "guid 1,", kind: drrWriteByRef, record: append(free, u64(32, 1))},
		{want: "guid 1,", kind: drrWriteEmbedded, record: append(free, u64(32, 1))},
		{want: "guid 1,", kind: drrSpill, record: []field{u64(16, 512), u64(24, 1)}},
		{want: "guid 1,", kind: drrObjectRange, record: []field{u64(24, 1)}},
		{want: "guid 1,", kind: drrEnd, record: []field{u64(40, 1)}},
		{want: "object 3", kind: drrObject, record: append(object, u64(8, 3))},
		{want: "object 0", kind: drrWrite, payload: 8192, record: append(write, u64(8, 0))},
		{want: "object 7", kind: drrFree, record: append(free, u64(8, 7))},
		{want: "type 19", kind: drrObject, record: append(object, u32(16, 19))},
		{want: "type 19", kind: drrWrite, payload: 8192, record: append(write, u32(16, 19))},
		{want: "bonus", kind: drrObject, record: append(object, u32(28, maxBonus+8))},
		{want: "bonus", kind: drrObject, record: append(object, u32(28, math.MaxUint32))},
		{want: "bonus", kind: drrObject, record: append(object, u32(36, math.MaxUint32))},
		{want: "0 bytes", kind: drrWrite, record: append(write, u64(32, 0))},
		{want: "bytes written", kind: drrWrite, record: append(write, u64(32, maxPayload+512))},
		{want: "bytes written", kind: drrWrite, record: append(write, u64(24, math.MaxInt64))},
		{want: "bytes written", kind: drrWrite, record: append(write, u64(24, math.MaxUint64))},
		{want: "no bytes", kind: drrWrite, record: append(write, field{50, 1, 15})},
		{want: "stored as", kind: drrWrite, record: append(write, field{50, 1, 15}, u64(96, math.MaxUint64))},
		{want: "payload", kind: drrWrite, payload: 510, record: append(write, field{50, 1, 15}, u64(96, 510))},
		{want: "embedded", kind: drrWriteEmbedded, payload: 120, record: append(free, u32(52, 113))},
		{want: "embedded", kind: drrWriteEmbedded, record: append(free, u32(52, math.MaxUint32))},
		{want: "bytes, stored", kind: drrSpill, record: []field{u64(16, 0), u64(24, to)}},
	} {
		s := &sender{order: binary.LittleEndian}
		s.begin(c.begin...)
		if c.record != nil {
			s.put(c.kind, make([]byte, c.payload), c.record...)
		}
		s.end()
		_, err := readStream(bytes.NewReader(s.out), func(e block.Extent, _ bool) {
			if e.Offset < 0 || e.Length < 0 || e.End() < 0 {
				t.Errorf("record of type %d: gives %v", c.kind, e)
			}
		})
		if !errors.Is(err, errStream) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("begin %v, record of type %d %v: got %v, want it refused because of %q", c.begin, c.kind, c.record, err, c.want)
		}
	}
}

// D12: nor is one that says two things of one place: a hole that is none would not
// be read.
func TestStreamsSayOneThingOfEachPlace(t *testing.T) {
	write := func(s *sender, off uint64) {
		s.put(drrWrite, make([]byte, 512), u64(8, volumeObject), u32(16, typeVolume), u64(24, off), u64(32, 512), u64(40, to))
	}
	free := func(s *sender, off, length uint64) {
		s.put(drrFree, nil, u64(8, volumeObject), u64(16, off), u64(24, length), u64(32, to))
	}
	for _, tell := range []func(s *sender){
		func(s *sender) { write(s, 512); write(s, 512) },
		func(s *sender) { write(s, 512); write(s, 0) },
		func(s *sender) { write(s, 512); free(s, 0, 1024) },
		func(s *sender) { free(s, 0, 1024); write(s, 512) },
		func(s *sender) { free(s, 1024, untilEnd); write(s, 1024) },
		func(s *sender) { free(s, 1024, untilEnd); free(s, 512, untilEnd); write(s, 512) },
		func(s *sender) { write(s, 1024); free(s, 1024, untilEnd) },
	} {
		s := &sender{order: binary.LittleEndian}
		s.begin()
		tell(s)
		s.end()
		if _, err := readStream(bytes.NewReader(s.out), func(block.Extent, bool) {}); !errors.Is(err, errStream) || !strings.Contains(err.Error(), "said before") {
			t.Errorf("got %v, want it refused", err)
		}
	}
}

// The checksum of the words 1, 2, 3 by hand: of both orders.
func TestFletcher(t *testing.T) {
	want := fletcher{6, 1 + 3 + 6, 1 + 4 + 10, 1 + 5 + 15}
	var little, big fletcher
	little.add([]byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0}, false)
	big.add([]byte{0, 0, 0, 1, 0, 0, 0, 2}, true)
	big.add([]byte{0, 0, 0, 3}, true)
	if little != want || big != want {
		t.Errorf("got %v and %v, want %v", little, big, want)
	}
}

func FuzzStream(f *testing.F) {
	f.Add(whole(binary.LittleEndian))
	f.Add(whole(binary.BigEndian))
	f.Fuzz(func(t *testing.T, b []byte) {
		readStream(bytes.NewReader(b), func(e block.Extent, _ bool) {
			if e.Offset < 0 || e.Length < 0 || e.End() < 0 {
				t.Errorf("gives %v", e)
			}
		})
	})
}
