package segment

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cespare/xxhash/v2"

	"platter/image"
)

// forge makes the checks of a trailer agree with whatever it says: what a
// writer with the key, or one who went mad, can do.
func forge(data []byte) {
	t := data[len(data)-trailerSize:]
	offset, length := binary.LittleEndian.Uint64(t[16:]), uint64(binary.LittleEndian.Uint32(t[24:]))
	var footer []byte
	if n := uint64(len(data)); offset <= n && length <= n-offset {
		footer = data[offset:][:length]
	}
	testKeys.SumFooter((*[32]byte)(t[112:]), footer, t[:112])
	binary.LittleEndian.PutUint64(t[trailerSum:], xxhash.Sum64(t[:trailerSum]))
}

// TestHostileTrailersAndFooters has every field hold what no writer puts
// there, under checksums and digests that are right.
func TestHostileTrailersAndFooters(t *testing.T) {
	s := small(t, Data)
	size := len(s.data)
	trailer := func(off int) func([]byte) []byte {
		return func(b []byte) []byte { return b[size-trailerSize+off:] }
	}
	start := int(s.footer.Records[2].Offset) + int(s.footer.Records[2].Stored)
	entry := func(n, off int) func([]byte) []byte {
		return func(b []byte) []byte { return b[start+n*footerEntrySize+off:] }
	}
	u16 := func(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
	u32 := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	stored := s.footer.Records[0].Stored
	for name, tt := range map[string]struct {
		at    func([]byte) []byte
		value []byte
	}{
		"trailer magic":             {trailer(0), []byte("X")},
		"kind 0":                    {trailer(8), u16(0)},
		"kind 2 of data":            {trailer(8), u16(2)},
		"kind 3":                    {trailer(8), u16(3)},
		"flags":                     {trailer(10), u16(1)},
		"one record less":           {trailer(12), u32(2)},
		"one record more":           {trailer(12), u32(4)},
		"records beyond all bounds": {trailer(12), u32(1<<32 - 1)},
		"no records":                {trailer(12), u32(0)},
		"footer one byte later":     {trailer(16), u64(uint64(start) + 1)},
		"footer one byte sooner":    {trailer(16), u64(uint64(start) - 1)},
		"footer in the header":      {trailer(16), u64(headerSize - 1)},
		"footer at 0":               {trailer(16), u64(0)},
		"footer in the trailer":     {trailer(16), u64(uint64(size - trailerSize - 3*footerEntrySize + 1))},
		"footer past the end":       {trailer(16), u64(uint64(size) + 1)},
		"footer at the end of time": {trailer(16), u64(1<<64 - 1)},
		"footer at minus 4096":      {trailer(16), u64(1<<63 + 4096)},
		"footer of 0 bytes":         {trailer(24), u32(0)},
		"footer of 4 GiB":           {trailer(24), u32(1<<32 - 1)},
		"header of 0 bytes":         {trailer(28), u32(0)},
		"header of 8192 bytes":      {trailer(28), u32(8192)},
		"header of 4 GiB":           {trailer(28), u32(1<<32 - 1)},
		"segment a page longer":     {trailer(32), u64(uint64(size + Align))},
		"segment of all bytes":      {trailer(32), u64(1<<64 - 1)},
		"another segment":           {trailer(40), []byte{1, 2, 3}},
		"zero ID":                   {entry(1, 0), make([]byte, 32)},
		"plain length 0":            {entry(1, 40), u32(0)},
		"plain length too large":    {entry(1, 40), u32(MaxPlain + 1)},
		"plain length of 4 GiB":     {entry(1, 40), u32(1<<32 - 1)},
		"stored more than plain":    {entry(1, 40), u32(s.footer.Records[1].Stored - 1)},
		"stored a byte less":        {entry(0, 44), u32(stored - 1)},
		"stored a byte more":        {entry(0, 44), u32(stored + 1)},
		"stored in the footer":      {entry(2, 44), u32(s.footer.Records[2].Plain)},
		"record of another kind":    {entry(1, 48), []byte{byte(Pages)}},
		"unknown flag":              {entry(1, 49), []byte{2}},
	} {
		b := bytes.Clone(s.data)
		copy(tt.at(b), tt.value)
		forge(b)
		if f, err := open(b, s.footer.ID); !isRefusal(err) || f != nil {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}

func TestLengthsThatNoSegmentHas(t *testing.T) {
	for _, size := range []int64{-1, 0, 1, headerSize, headerSize + trailerSize - 1, headerSize + trailerSize, 2*Align - 1, 2*Align + 1, MaxSize + Align, 1 << 62} {
		if _, err := ReadFooter(t.Context(), nil, testKeys, image.SegmentID{1}, size); !isRefusal(err) {
			t.Errorf("length %d: got %v, want corrupt", size, err)
		}
	}
}

// FuzzFooter gives made-up bytes to a footer and trailer, of which magic,
// name, length, checksum and digest are made right.
func FuzzFooter(f *testing.F) {
	s := small(f, Data)
	last := s.footer.Records[2]
	start := int(last.Offset) + int(last.Stored)
	f.Add(s.data[start:start+3*footerEntrySize], s.data[len(s.data)-trailerSize:], uint8(len(s.data)/Align))
	empty := build(f, Pages, nil)
	f.Add([]byte{}, empty.data[len(empty.data)-trailerSize:], uint8(2))
	f.Fuzz(func(t *testing.T, footer, end []byte, pages uint8) {
		data := make([]byte, (2+int(pages)%8)*Align)
		tail := data[len(data)-trailerSize:]
		copy(tail, end)
		copy(tail, trailerMagic)
		id := image.SegmentID{7}
		copy(tail[40:], id[:])
		binary.LittleEndian.PutUint64(tail[32:], uint64(len(data)))
		if at := binary.LittleEndian.Uint64(tail[16:]); at < uint64(len(data)-trailerSize) {
			copy(data[at:len(data)-trailerSize], footer)
		}
		forge(data)
		got, err := open(data, id)
		if err != nil {
			if !isRefusal(err) || got != nil {
				t.Fatalf("got %v, want a refusal", err)
			}
			return
		}
		at := int64(headerSize)
		for n, r := range got.Records {
			if r.Offset != at+recordHeaderSize || r.Plain == 0 || r.Plain > MaxPlain || r.Stored > r.Plain || r.ID.IsZero() || r.Kind != got.Kind {
				t.Fatalf("record %d: %+v", n, r)
			}
			at = r.Offset + int64(r.Stored)
			dst := make([]byte, r.Plain)
			if err := got.Decode(new(Codec), dst, data[r.Offset:at], n); err != nil && !isRefusal(err) {
				t.Fatalf("record %d: %v", n, err)
			}
		}
		if at > int64(len(data)-trailerSize) {
			t.Fatalf("records end at %d of %d", at, len(data))
		}
	})
}

// FuzzPayload decodes made-up payloads into buffers of made-up length.
func FuzzPayload(f *testing.F) {
	f.Add(bomb(4096), uint16(4096), uint8(FlagLZ4))
	f.Add([]byte("raw"), uint16(3), uint8(0))
	f.Fuzz(func(t *testing.T, stored []byte, plain uint16, flags uint8) {
		dst := bytes.Repeat([]byte{0xee}, int(plain)+32)
		if err := new(Codec).Decode(dst[:plain], stored, flags); err != nil && !isRefusal(err) {
			t.Fatalf("got %v, want corrupt", err)
		}
		if !bytes.Equal(dst[plain:], bytes.Repeat([]byte{0xee}, 32)) {
			t.Fatal("written past the end")
		}
	})
}
