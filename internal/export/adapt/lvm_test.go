package adapt

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"platter/block"
	"platter/block/command"
	"platter/block/lvm2"
	"platter/internal/export/files"
)

// physicalVolume is the first MiB of what LVM 2.03.16 made of a device of 96 MiB,
// with extents of 1 MiB: vgcreate data-vg, lvcreate other of 20 MiB, root of 24,
// swap_1 of 8, and lvextend of root by 20.
func physicalVolume(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open("../../../block/lvm2/testdata/physical-volume.gz")
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

// A system whose root is a volume in two pieces is adapted as any other.
func TestRootOnALogicalVolume(t *testing.T) {
	system := debian(t, packers()["zstd"])
	system["etc/fstab"] = "/dev/mapper/data--vg-root / ext4 errors=remount-ro 0 1\n/dev/sda1 /boot/efi vfat umask=0077 0 1\n/dev/mapper/data--vg-swap_1 none swap sw 0 0\n"
	system["boot/grub/grub.cfg"] = "linux /vmlinuz root=/dev/mapper/data--vg-root resume=/dev/data-vg/swap_1\n"
	able(t)
	b := &built{T: t, path: sparse(t, 140<<20), kind: "ext4"}
	tool(t, "sgdisk", "-n1:0:+34M", "-t1:ef00", "-n2:0:+96M", "-t2:8e00", b.path)
	tree := t.TempDir()
	writeTree(t, tree, system)
	root, esp := sparse(t, 44<<20), sparse(t, 34<<20)
	tool(t, "mkfs.ext4", "-q", "-d", tree, root)
	tool(t, "mkfs.vfat", "-F", "32", esp)
	head := filepath.Join(t.TempDir(), "head")
	if err := os.WriteFile(head, physicalVolume(t), 0o600); err != nil {
		t.Fatal(err)
	}
	const first = 36 // MiB, of the physical volume
	put := func(from string, skip, count, seek int) {
		tool(t, "dd", "if="+from, "of="+b.path, "bs=1M", fmt.Sprintf("skip=%d", skip), fmt.Sprintf("count=%d", count), fmt.Sprintf("seek=%d", seek), "conv=notrunc", "status=none")
	}
	put(esp, 0, 34, 1)
	put(head, 0, 1, first-1)
	put(root, 0, 24, first+20)
	put(root, 24, 20, first+52)
	f, err := os.Open(b.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b.disk, _ = block.Probe(f, 140<<20, 512)
	opts := b.options()
	opts.Log = func(err error) { t.Error(err) }
	r := b.must(opts)
	want(t, "what was changed", strings.Join(r.Changes, "\n"), "/boot/initrd.img-"+release+" on volume data-vg/root: ", "4 drivers")
	// In the end the two pieces are a sound filesystem.
	out := sparse(t, 0)
	for _, piece := range [][2]int{{first + 20, 24}, {first + 52, 20}} {
		tool(t, "sh", "-c", fmt.Sprintf("dd if=%s bs=1M skip=%d count=%d status=none >>%s", b.path, piece[0], piece[1], out))
	}
	tool(t, "e2fsck", "-fn", out)
	whileMounted(t, out, func(dir string) {
		table, _ := os.ReadFile(dir + "/etc/fstab")
		want(t, "fstab", string(table), "/dev/mapper/data--vg-root / ext4", "/dev/mapper/data--vg-swap_1 none", "\nUUID=", " /boot/efi vfat")
		ram, _ := os.ReadFile(dir + "/boot/initrd.img-" + release)
		if r, err := readRamfs(t.Context(), bytes.NewReader(ram[bytes.LastIndex(ram, []byte("\x1f\x8b\x08")):])); err != nil || len(r.names) < 5 {
			t.Errorf("initramfs: %v", err)
		}
	})
	opts.NewIDs = true
	if _, err := command.Find("lvm"); err != nil {
		if _, err := b.apply(opts); !errors.Is(err, block.ErrRefused) || !strings.Contains(err.Error(), "package lvm2") {
			t.Errorf("new identities without LVM's tools: %v", err)
		}
		t.Skip("NOT TESTED: lvm2 is not installed")
	}
	old := out
	r = b.must(opts)
	all, err := os.ReadFile(b.path)
	if err != nil {
		t.Fatal(err)
	}
	id, text, err := lvm2.Physical(&files.Section{Context: t.Context(), Device: memory(all), Extent: block.Extent{Offset: (first - 1) << 20, Length: 96 << 20}}, 96<<20)
	if err != nil || strings.Contains(string(physicalVolume(t)), id) {
		t.Errorf("the physical volume is %s, %v", id, err)
	}
	top, err := lvm2.Parse(text)
	name := ""
	for n, s := range top {
		if _, ok := s.(lvm2.Section); ok {
			name = n
		}
	}
	if err != nil || !strings.HasPrefix(name, "data-vg-") {
		t.Fatalf("group %q, %v", name, err)
	}
	os.Remove(old)
	for _, piece := range [][2]int{{first + 20, 24}, {first + 52, 20}} {
		tool(t, "sh", "-c", fmt.Sprintf("dd if=%s bs=1M skip=%d count=%d status=none >>%s", b.path, piece[0], piece[1], out))
	}
	tool(t, "e2fsck", "-fn", out)
	whileMounted(t, out, func(dir string) {
		table, _ := os.ReadFile(dir + "/etc/fstab")
		want(t, "fstab", string(table), "/dev/mapper/"+mapperName(name, "root")+" / ext4", "/dev/mapper/"+mapperName(name, "swap_1")+" none")
		config, _ := os.ReadFile(dir + "/boot/grub/grub.cfg")
		want(t, "grub.cfg", string(config), "root=/dev/mapper/"+mapperName(name, "root")+" resume=/dev/"+name+"/swap_1\n")
	})
	want(t, "what was changed", strings.Join(r.Changes, "\n"), "volume group data-vg is "+name)
	for _, l := range r.Left {
		want(t, "left", l, "!which is no more")
	}
}

// No volume reaches out of the physical volume that it is on.
func TestVolumesLieInside(t *testing.T) {
	g := func(format string, args ...any) lvm2.Section {
		s, err := lvm2.Parse(fmt.Appendf(nil, "physical_volumes { pv0 { id = \"a\" pe_start = 2048 } }\nlv { segment_count = 1 segment1 { "+format+" type = \"striped\" } }", args...))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	v := &volume{name: "partition 1", extent: block.Extent{Offset: 1 << 20, Length: 64 << 20}}
	for s, ok := range map[string]bool{
		`start_extent = 0 extent_count = 63 stripes = ["pv0", 0]`:                  true,
		`start_extent = 0 extent_count = 64 stripes = ["pv0", 0]`:                  false,
		`start_extent = 0 extent_count = 1 stripes = ["pv0", 63]`:                  false,
		`start_extent = 0 extent_count = 1 stripes = ["pv0", -1]`:                  false,
		`start_extent = 1 extent_count = 1 stripes = ["pv0", 0]`:                   false,
		`start_extent = 0 extent_count = 9223372036854775807 stripes = ["pv0", 0]`: false,
		`start_extent = 0 extent_count = 1 stripes = ["pv1", 0]`:                   false,
		`start_extent = 0 extent_count = 1 stripes = ["pv0", 0, "pv0", 1]`:         false,
	} {
		s2 := g(s)
		list, err := lay(s2, s2["lv"].(lvm2.Section), 1<<20, map[string]*volume{"a": v})
		if (err == nil) != ok {
			t.Errorf("%s: %v, %v", s, list, err)
		}
	}
}
