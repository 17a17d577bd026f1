package lvm2

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"platter/block"
)

const mib = 1 << 20

// physicalVolume is the first MiB of what LVM 2.03.16 made of a device of 96 MiB,
// with extents of 1 MiB: vgcreate data-vg, lvcreate other of 20 MiB, root of 24,
// swap_1 of 8, and lvextend of root by 20.
func physicalVolume(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open("testdata/physical-volume.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPiecesOfAPhysicalVolume(t *testing.T) {
	got, err := Pieces(bytes.NewReader(physicalVolume(t)), 96*mib)
	want := []Piece{
		{"data-vg/other", block.Extent{Offset: 1 * mib, Length: 20 * mib}},
		{"data-vg/root", block.Extent{Offset: 21 * mib, Length: 24 * mib}},
		{"data-vg/swap_1", block.Extent{Offset: 45 * mib, Length: 8 * mib}},
		{"data-vg/root", block.Extent{Offset: 53 * mib, Length: 20 * mib}},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// What a thin pool, a mirror or a striped volume is made of counts for it; what
// makes no sense for nothing.
func TestPiecesOfOtherKinds(t *testing.T) {
	const size = 64 * mib
	for text, want := range map[string][]Piece{
		`pool_tdata { segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "striped" stripes = ["pv0", 2] } }
		 pool { segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "thin-pool" data = "pool_tdata" } }`: {{"vg/pool", block.Extent{Offset: 3 * mib, Length: 4 * mib}}},
		`m_rimage_1 { segment_count = 1 segment1 { extent_count = 1 type = "striped" stripes = ["pv0", 0] } }`:  {{"vg/m", block.Extent{Offset: 1 * mib, Length: mib}}},
		`s { segment_count = 1 segment1 { extent_count = 4 type = "striped" stripes = ["pv1", 9, "pv0", 5] } }`: {{"vg/s", block.Extent{Offset: 6 * mib, Length: 2 * mib}}},
		`a { segment_count = 1 segment1 { extent_count = 2 type = "striped" stripes = ["pv0", 0] } }
		 b { segment_count = 1 segment1 { extent_count = 2 type = "striped" stripes = ["pv0", 1] } }`: {{"vg/a", block.Extent{Offset: 1 * mib, Length: 2 * mib}}},
		`a { segment_count = 1 segment1 { extent_count = 64 type = "striped" stripes = ["pv0", 0] } }`:                  nil,
		`a { segment_count = 1 segment1 { extent_count = 9223372036854775807 type = "striped" stripes = ["pv0", 0] } }`: nil,
		`a { segment_count = 1 segment1 { extent_count = 1 type = "striped" stripes = ["pv0", -1] } }`:                  nil,
		`a { segment_count = 9223372036854775807 }`:                                                                     nil,
		`a { segment_count = 1 segment1 { extent_count = 1 type = "striped" stripes = ["pv0", "pv0"] } }`:               {{"vg/a", block.Extent{Offset: 1 * mib, Length: mib}}},
	} {
		g, err := Parse([]byte("extent_size = 2048 physical_volumes { pv0 { id = \"a-b\" pe_start = 2048 } pv1 { id = \"c\" pe_start = 2048 } } logical_volumes { " + text + " }"))
		if err != nil {
			t.Fatal(err)
		}
		got := g.pieces("vg", "ab", size)
		if got := apart(got); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}

// What is no physical volume, or one that somebody has changed, is an error and
// nothing worse; no volume reaches out of it.
func TestHostileLVM(t *testing.T) {
	good := physicalVolume(t)
	text := bytes.Index(good, []byte("data-vg {"))
	if text < 0 {
		t.Fatal("no text")
	}
	look := func(b []byte) {
		_, text, err := Physical(bytes.NewReader(b), int64(len(b)))
		if err == nil && text != nil {
			_, _ = Parse(text)
		}
		list, _ := Pieces(bytes.NewReader(b), 96*mib)
		for _, p := range list {
			if p.Offset < 0 || p.Length <= 0 || p.End() > 96*mib {
				t.Fatalf("gives %v", p)
			}
		}
	}
	for at := range 1024 { // the label
		bad := bytes.Clone(good[:64<<10])
		bad[at] ^= 0xff
		look(bad)
	}
	for at := 4096; at < 4096+512; at++ { // the area's header
		bad := bytes.Clone(good)
		bad[at] ^= 0xff
		look(bad)
	}
	whole := string(good[text : text+1500])
	for n := range whole {
		_, _ = Parse([]byte(whole[:n]))
		_, _ = Parse([]byte(whole[:n] + "{" + whole[n:]))
	}
	if _, err := Parse([]byte(strings.Repeat("a {", 1000))); err == nil {
		t.Error("sections without end are no error")
	}
}

func FuzzPieces(f *testing.F) {
	f.Add([]byte("LABELONE"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _ := Pieces(bytes.NewReader(b), 1<<30)
		end := int64(0)
		for _, p := range list {
			if p.Offset < end || p.Length <= 0 || p.End() > 1<<30 {
				t.Fatalf("gives %v", list)
			}
			end = p.End()
		}
	})
}
