package workload

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
)

func TestContentsBelongToTheirNames(t *testing.T) {
	content := map[string]func(path, name string) error{
		"noise": func(path, name string) error { return noise(path, name, 100_000) },
		"table": func(path, name string) error { return table(path, name, 12, 8*kib) },
		"log": func(path, name string) error {
			return write(path, func(w *bufio.Writer) error { return logLines(w, name, 100_000) })
		},
	}
	for kind, make := range content {
		sum := func(name string) [32]byte {
			path := filepath.Join(t.TempDir(), "dir", "file")
			if err := make(path, name); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return sha256.Sum256(b)
		}
		a, again, b := sum("a"), sum("a"), sum("b")
		if a != again {
			t.Errorf("%s: the same name gave two contents", kind)
		}
		if a == b {
			t.Errorf("%s: two names gave the same content", kind)
		}
	}
}

func TestPageHasAGapOfZerosAndTwoFullEnds(t *testing.T) {
	r := dice("pages")
	for n := range uint64(200) {
		b := make([]byte, 8*kib)
		page(b, n, r)
		if b[len(b)-1] == 0 || b[24] == 0 && b[25] == 0 {
			t.Errorf("page %d: an end of it is empty", n)
		}
		if gap := bytes.Count(b, []byte{0}); gap < len(b)/40 || gap > len(b)*2/3 {
			t.Errorf("page %d: %d zeros of %d bytes, want 3 to 66 %%", n, gap, len(b))
		}
	}
}

func TestHugeExtentsStayApartAndInside(t *testing.T) {
	end := int64(0)
	for i := range hugeExtents {
		at := hugeOffset(i)
		if at < end || at%(4*kib) != 0 || at+hugeExtent > HugeSize {
			t.Fatalf("extent %d at %d: the one before ends at %d, the disk at %d", i, at, end, int64(HugeSize))
		}
		end = at + hugeExtent
	}
	if n := HugeBlocks(4 * kib); n != HugeData {
		t.Errorf("blocks of 4 KiB hold %d bytes of data, want %d", n, int64(HugeData))
	}
	if n := HugeBlocks(64 * kib); n <= HugeData || n > HugeData+hugeExtents*64*kib {
		t.Errorf("blocks of 64 KiB: %d bytes, want up to one block more an extent than %d", n, int64(HugeData))
	}
}

func TestManyBlocksAreAllDifferent(t *testing.T) {
	seen := map[[32]byte]bool{}
	for part := range uint64(3) {
		path := filepath.Join(t.TempDir(), "part")
		if err := writeBlocks(path, part*100, 100); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for ; len(b) > 0; b = b[ManyBlockSize:] {
			seen[sha256.Sum256(b[:ManyBlockSize])] = true
		}
	}
	if len(seen) != 300 {
		t.Errorf("300 blocks, %d of them different", len(seen))
	}
}

func TestUpgradeReplacesFilesByOtherOnes(t *testing.T) {
	root := t.TempDir()
	library := filepath.Join(root, "usr/lib/a.so")
	before := make([]byte, 100_000)
	if err := write(library, func(w *bufio.Writer) error { _, err := w.Write(before); return err }); err != nil {
		t.Fatal(err)
	}
	if err := upgradePackages(root); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(library)
	if err != nil || len(after) != len(before) || bytes.Equal(after, before) {
		t.Errorf("upgraded file: %d bytes, %v, want %d that differ from before", len(after), err, len(before))
	}
}

func TestUpdateTableKeepsItsSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table")
	if err := table(path, "before", 64, 8*kib); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := updateTable(path, "day", 8*kib, 2, 4, 3); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil || len(after) != len(before) {
		t.Fatalf("table of %d bytes, %v, want %d", len(after), err, len(before))
	}
	changed := 0
	for i := 0; i < len(after); i += 8 * kib {
		if !bytes.Equal(before[i:i+8*kib], after[i:i+8*kib]) {
			changed++
		}
	}
	if changed < 4 || changed > 11 {
		t.Errorf("%d pages changed, want 4 to 11", changed)
	}
}
