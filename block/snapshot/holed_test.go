package snapshot

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"platter/block"
)

// D61, D52: holes are left out, but where they are in doubt.
func TestHolesAreNoData(t *testing.T) {
	const k, size = 1 << 10, 1 << 20
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := block.Open(path, block.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	extents := func(pairs ...int64) (list []block.Extent) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, block.Extent{Offset: pairs[i], Length: pairs[i+1] - pairs[i]})
		}
		return list
	}
	for _, c := range []struct{ holes, doubts, want []block.Extent }{
		{nil, nil, extents(0, size)},
		{extents(0, size), nil, nil},
		{extents(0, 64*k, 128*k, 256*k), nil, extents(64*k, 128*k, 256*k, size)},
		{extents(512*k, size), nil, extents(0, 512*k)},
		{extents(0, size), extents(0, 64*k, size-64*k, size), extents(0, 64*k, size-64*k, size)},
		{extents(0, size), extents(0, size), extents(0, size)},
		{extents(64*k, 512*k), extents(100*k, 200*k, 150*k, 300*k), extents(0, 64*k, 100*k, 300*k, 512*k, size)},
		{extents(64*k, 128*k), extents(0, 10*k, 600*k, 700*k), extents(0, 64*k, 128*k, size)},
	} {
		w := &Holed{Source: src}
		w.Holes(func(off int64) (block.Extent, bool) {
			for _, h := range c.holes {
				if h.End() > off {
					from := max(off, h.Offset)
					return block.Extent{Offset: from, Length: h.End() - from}, true
				}
			}
			return block.Extent{}, false
		})
		for _, d := range c.doubts {
			w.Doubt(d)
		}
		var got []block.Extent
		for off := int64(0); ; {
			e, err := w.Data(off)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || e.Length <= 0 || e.Offset < off {
				t.Fatalf("data at %d: got %v, %v", off, e, err)
			}
			if n := len(got); n > 0 && got[n-1].End() == e.Offset {
				got[n-1].Length += e.Length
			} else {
				got = append(got, e)
			}
			off = e.End()
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("holes %v, in doubt %v: got data %v, want %v", c.holes, c.doubts, got, c.want)
		}
	}
}
