package block

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestNamesComeFromWhatStays(t *testing.T) {
	f := newFake(t)
	for _, c := range []struct {
		node           node
		kind, name, id string
	}{
		{f.add("vda", "serial", "my disk 1"), KindDisk, "my_disk_1", "serial:my disk 1"},
		{f.add("sda", "device/model", "Samsung SSD 870 ", "device/vpd_pg80", "\x00\x80\x00\x06S5Y1NX", "device/wwid", "naa.5002538f"), KindDisk, "Samsung_SSD_870_S5Y1NX", "wwn:naa.5002538f"},
		{f.add("sdb", "device/wwid", "t10.ATA QEMU/HARDDISK"), KindDisk, "t10.ATA_QEMU_HARDDISK", "wwn:t10.ATA QEMU/HARDDISK"},
		{f.add("nvme0n1", "device/serial", "XYZ", "device/model", "Fast", "wwid", "eui.1"), KindDisk, "Fast_XYZ", "wwn:eui.1"},
		{f.add("sdc"), KindDisk, "", ""},
		{f.add("dm-0", "dm/name", "my--vg-root", "dm/uuid", "LVM-abc"), KindLVM, "my-vg/root", "LVM-abc"},
		{f.add("dm-1", "dm/name", "luks-x", "dm/uuid", "CRYPT-x"), KindOther, "dm/luks-x", "CRYPT-x"},
		{f.add("md127", "md/level", "raid1", "md/uuid", "aa-bb"), KindOther, "md-aa-bb", "md:aa-bb"},
		{f.add("loop1", "loop/backing_file", "/srv/vm images/a+b.img", "loop/offset", "0"), KindLoop, "srv/vm+20images/a+2bb.img", ""},
		{f.add("loop2", "loop/backing_file", "/a", "loop/offset", "1048576"), KindLoop, "a/at1048576", ""},
	} {
		info := Info{Kind: KindOther}
		f.identify(c.node, &info)
		if info.Kind != c.kind || info.Name != c.name || info.Identity != c.id {
			t.Errorf("%s: got %q %q %q, want %q %q %q", c.node.name, info.Kind, info.Name, info.Identity, c.kind, c.name, c.id)
		}
	}
	f.add("sdd", "serial", "S1")
	part := f.add("sdd/sdd2", "uevent", "MAJOR=8\nPARTUUID=0f-0e\nDISKSEQ=3")
	f.add("sde")
	nameless := f.add("sde/sde1", "uevent", "PARTUUID=aa-01")
	for n, want := range map[node][2]string{part: {"S1/p2", "partuuid:0f-0e"}, nameless: {"partition-aa-01", "partuuid:aa-01"}} {
		var info Info
		f.identify(n, &info)
		if info.Kind != KindPartition || info.Name != want[0] || info.Identity != want[1] {
			t.Errorf("%s: got %+v, want %q", n.name, info, want)
		}
	}
}

func TestPlaceOnTheBusIsTheLastResort(t *testing.T) {
	for dir, want := range map[string]string{
		"/sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda": "bus-pci0000_00-0000_00_02.0-virtio1",
		"/sys/devices/virtual/block/nbd0":                        "nbd0",
		"/sys/devices/platform/x/block/mmcblk0/mmcblk0p1":        "bus-platform-x",
		"/somewhere/else": "else",
		"/sys/devices/pci0000:00/ata1/host0/target0:0:0/block/sda":    "bus-pci0000_00-ata1-host0-target0_0_0",
		"/tmp/sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda":  "bus-pci0000_00-0000_00_02.0-virtio1",
		"/tmp/sys/devices/pci0000:00/0000:00:02.0/virtio1/nvme/ng0n1": "ng0n1",
	} {
		if got := busName(node{name: filepath.Base(dir), dir: dir}); got != want {
			t.Errorf("%s: got %q, want %q", dir, got, want)
		}
	}
}

func TestNamesHaveOnlyPlainCharacters(t *testing.T) {
	plain := regexp.MustCompile(`^[A-Za-z0-9._/+-]*$`)
	for _, s := range []string{"", "a b", "ü\x00\n", "..//", "%41", "a+b", strings.Repeat("\xff", 300)} {
		if got := escape(s); !plain.MatchString(got) {
			t.Errorf("escape(%q) = %q", s, got)
		}
		if got := blankless(s); !plain.MatchString(got) || strings.Contains(got, "/") {
			t.Errorf("blankless(%q) = %q", s, got)
		}
	}
	if escape("a b") == escape("a+20b") {
		t.Error("two paths have one name")
	}
}

func TestDiskWithoutSerialIsNamedByItsTable(t *testing.T) {
	t.Parallel()
	_, file := gptFile(t, 8<<20)
	table := open(t, file).Info().Table
	src := &source{info: Info{Kind: KindDisk, Size: 8 << 20, LogicalSector: 512}}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	src.buffered = &handle{f, rc}
	if err := src.examine(); err != nil {
		t.Fatal(err)
	}
	if src.info.Name != "disk-"+table.ID || src.info.Identity != "gpt:"+table.ID {
		t.Errorf("got %+v", src.info)
	}
}

func TestVanishedDeviceIsNoticed(t *testing.T) {
	dev, _ := loopDisk(t, 1<<20, 512)
	src := open(t, dev)
	f := newFake(t)
	src.system = f.system
	if err := src.Check(); err == nil || !strings.Contains(err.Error(), dev) {
		t.Errorf("gone from sysfs: Check() = %v", err)
	}
	src.system = host()
	src.node.seq = "an earlier one"
	if err := src.Check(); err == nil {
		t.Error("another disk took its place unnoticed")
	}
}
