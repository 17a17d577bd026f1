package thick

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"platter/block"
)

const unit = 4096 // bytes of a chunk, of which an area holds 256 records

// build lays out a table of n records as the kernel does.
func build(n int) (device []byte, want map[int64]bool) {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	per := unit / recordSize
	areas := n/per + 1
	device = make([]byte, unit*(1+areas*(per+1)))
	for i := range device { // what a disk held before
		device[i] = byte(random.Uint32())
	}
	clear(device[:unit])
	le := binary.LittleEndian
	le.PutUint32(device, magic)
	le.PutUint32(device[4:], 1)
	le.PutUint32(device[8:], 1)
	le.PutUint32(device[12:], unit/sectorSize)
	want = map[int64]bool{}
	for a := range areas {
		clear(device[unit*(1+a*(per+1)):][:unit])
	}
	for i := range n {
		at := unit*(1+i/per*(per+1)) + i%per*recordSize
		old := random.Int64N(1 << 30)
		le.PutUint64(device[at:], uint64(old))
		le.PutUint64(device[at+8:], uint64(2+i/per*(per+1)+i%per))
		want[old*unit] = true
	}
	return device, want
}

func TestTableIsReadToItsEnd(t *testing.T) {
	for _, n := range []int{0, 1, 255, 256, 257, 512, 1000} {
		device, want := build(n)
		got := map[int64]bool{}
		err := read(bytes.NewReader(device), int64(len(device)), unit, make([]byte, unit), func(e block.Extent) {
			got[e.Offset] = true
			if e.Length != unit || !want[e.Offset] {
				t.Errorf("%d records: gives %v, which nobody wrote", n, e)
			}
		})
		if err != nil || len(got) != len(want) {
			t.Errorf("%d records: got %d chunks, %v, want %d", n, len(got), err, len(want))
		}
	}
}

func TestTableOfNoValidSnapshotIsRefused(t *testing.T) {
	for name, damage := range map[string]func(d []byte) []byte{
		"no magic":      func(d []byte) []byte { d[0]++; return d },
		"out of room":   func(d []byte) []byte { d[4] = 0; return d },
		"other version": func(d []byte) []byte { d[8] = 2; return d },
		"other chunks":  func(d []byte) []byte { d[12]++; return d },
		"kept outside":  func(d []byte) []byte { d[unit+12] = 1; return d },
		"far away":      func(d []byte) []byte { d[unit+7] = 0xff; return d },
	} {
		device, _ := build(300)
		device = damage(device)
		err := read(bytes.NewReader(device), int64(len(device)), unit, make([]byte, unit), func(block.Extent) {})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want %v", name, err, ErrInvalid)
		}
	}
	device, _ := build(300)
	if err := read(bytes.NewReader(device[:unit+100]), int64(len(device)), unit, make([]byte, unit), func(block.Extent) {}); err == nil {
		t.Error("a table that cannot be read passes")
	}
}

func FuzzTable(f *testing.F) {
	for _, n := range []int{0, 1, 257} {
		device, _ := build(n)
		f.Add(device[:min(len(device), 3*unit)])
	}
	f.Fuzz(func(t *testing.T, device []byte) {
		read(bytes.NewReader(device), int64(len(device)), unit, make([]byte, unit), func(e block.Extent) {
			if e.Offset < 0 || e.Length != unit {
				t.Errorf("gives %v", e)
			}
		})
	})
}
