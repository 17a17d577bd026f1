package block

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func sgdisk(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// idsDisk is a file as a disk whose table is rewritten.
type idsDisk struct {
	*os.File
	size int64
}

func (d idsDisk) Size() int64     { return d.size }
func (d idsDisk) SectorSize() int { return 512 }

func openIDs(t *testing.T, setup ...string) idsDisk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(16 << 20); err != nil {
		t.Fatal(err)
	}
	sgdisk(t, append(setup, path)...)
	return idsDisk{f, 16 << 20}
}

func TestNewIDsOfAGPT(t *testing.T) {
	d := openIDs(t, "sgdisk", "-n", "1:2048:+1M", "-n", "5:0:+2M", "-c", "5:data")
	before, _ := Probe(d, d.size, 512)
	list, err := NewIDs(d)
	if err != nil || len(list) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	if out := sgdisk(t, "sgdisk", "-v", d.Name()); !strings.Contains(out, "No problems found") {
		t.Error(out)
	}
	after, _ := Probe(d, d.size, 512)
	want := []IDChange{{0, strings.ToLower(before.ID), strings.ToLower(after.ID)}}
	for i, p := range after.Partitions {
		old := before.Partitions[i]
		want = append(want, IDChange{p.Number, strings.ToLower(old.ID), strings.ToLower(p.ID)})
		if p.Extent != old.Extent || p.Type != old.Type || p.Name != old.Name || p.ID == old.ID {
			t.Errorf("%+v was %+v", p, old)
		}
	}
	if !slices.Equal(list, want) {
		t.Errorf("%v, want %v", list, want)
	}
	// One copy that cannot be believed: nothing is written.
	if _, err := d.WriteAt([]byte("x"), d.size-512+100); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("x"), d.size-512+20); err != nil {
		t.Fatal(err)
	}
	was, _ := os.ReadFile(d.Name())
	if _, err := NewIDs(d); err == nil {
		t.Error("no error for a damaged backup")
	}
	if now, _ := os.ReadFile(d.Name()); !bytes.Equal(was, now) {
		t.Error("a disk with a damaged table was written to")
	}
}

func TestNewIDsOfAnMBR(t *testing.T) {
	d := openIDs(t, "sh", "-c", `printf 'label: dos\nlabel-id: 0xdeadbeef\nstart=2048,size=2048\n' | sfdisk -q "$0"`)
	list, err := NewIDs(d)
	if err != nil || len(list) != 1 || list[0].Old != "deadbeef" {
		t.Fatalf("%v, %v", list, err)
	}
	if out := sgdisk(t, "sfdisk", "-d", d.Name()); !strings.Contains(out, "label-id: 0x"+list[0].New) || !strings.Contains(out, "start=        2048, size=        2048") {
		t.Error(out)
	}
}

func TestFilesystemIDsAreThoseOfBlkid(t *testing.T) {
	for content, mkfs := range map[string]string{
		"ext4": "mkfs.ext4 -q", "xfs": "mkfs.xfs -q", "btrfs": "mkfs.btrfs -q", "swap": "mkswap", "vfat": "mkfs.vfat -F 32",
	} {
		path := filepath.Join(t.TempDir(), "fs")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		size := int64(320 << 20)
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		sgdisk(t, append(strings.Fields(mkfs), path)...)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		want := strings.TrimSpace(sgdisk(t, "blkid", "-p", "-o", "value", "-s", "UUID", path))
		if got := FilesystemID(f, Extent{Length: size}, content); got != want || want == "" {
			t.Errorf("%s: %q, want %q", content, got, want)
		}
	}
}
