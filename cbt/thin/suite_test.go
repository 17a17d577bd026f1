package thin_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"platter/block"
	"platter/block/snapshot"
	"platter/block/snapshot/lvm"
	"platter/cbt"
	"platter/cbt/thin"
	"platter/vmtests/volumes"
)

// create makes thin volumes of one pool.
func create(g *volumes.Group) func(name string, size int64) string {
	g.Pool("pool", 128<<20)
	return func(name string, size int64) string { return g.Thin("pool", name, size) }
}

// D12, D13, D14: on thin volumes of a pool.
func TestThinPassesTheSuite(t *testing.T) {
	g := volumes.NewGroup(t, "suite", "/dev/vda")
	volumes.Suite(t, g, lvm.Thin{}, thin.Opener{}, create(g))
}

// D12: a tracker of them that is wrong anywhere does not pass.
func TestFlawsAreCaught(t *testing.T) {
	g := volumes.NewGroup(t, "flaws", "/dev/vda")
	volumes.CatchFlaws(t, g, lvm.Thin{}, thin.Opener{}, create(g))
}

// What the pool has no blocks for is not read, and reads as zeros.
func TestHolesOfAVolume(t *testing.T) {
	const size, piece = 64 << 20, 64 << 10
	g := volumes.NewGroup(t, "holes", "/dev/vda")
	g.Pool("pool", 128<<20)
	path := g.Thin("pool", "lv", size)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := bytes.Repeat([]byte{7}, piece)
	written := cbt.NewSet(size)
	for _, off := range []int64{0, 3 * piece, 4 * piece, 20<<20 + 4096, size - piece} {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		written.Add(block.Extent{Offset: off / piece * piece, Length: piece})
		written.Add(block.Extent{Offset: (off + piece - 1) / piece * piece, Length: piece})
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	d, err := block.Look(path)
	if err != nil {
		t.Fatal(err)
	}
	view, err := lvm.Thin{}.Take(t.Context(), d, snapshot.Options{Run: "holes"})
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	tracker, err := thin.Opener{}.Open(t.Context(), view, snapshot.Consumer{})
	if err != nil {
		t.Fatal(err)
	}
	defer tracker.Close()
	if err := tracker.(cbt.Sparse).Holes(t.Context()); err != nil {
		t.Fatal(err)
	}
	data := cbt.NewSet(size)
	for off := int64(0); ; {
		e, err := view.Data(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data.Add(e)
		off = e.End()
	}
	// LVM wipes the first 4 KiB of a new volume, which is written already.
	for off := int64(0); off < size; off += 4096 {
		e := block.Extent{Offset: off, Length: 4096}
		if data.Contains(e) != written.Contains(e) {
			t.Fatalf("at %d: data %v, written %v", off, data.Contains(e), written.Contains(e))
		}
	}
	// In doubt it is read, and is zeros.
	view.(snapshot.Told).Doubt(block.Extent{Offset: 8 << 20, Length: piece})
	if e, err := view.Data(8 << 20); err != nil || e.Offset != 8<<20 || e.Length != piece {
		t.Errorf("in doubt: got %v, %v", e, err)
	}
	buf := make([]byte, piece)
	if _, err := view.ReadAt(t.Context(), buf, 8<<20); err != nil || !bytes.Equal(buf, make([]byte, piece)) {
		t.Errorf("what the pool has no block for is not zeros, %v", err)
	}
}
