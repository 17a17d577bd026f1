package volumes

import (
	"errors"
	"os"
	"strings"
	"testing"

	"platter/block"
	"platter/block/command"
	"platter/vmtests/guest"
)

// What the kernel of a real machine says of disks below LVM, md and the device
// mapper: each is refused, as a source and as a target, with who uses it, until
// the advice that comes with it is taken. Runs in a guest with three disks.
func TestStackedDevicesAreRefused(t *testing.T) {
	guest.Only(t)
	run := func(line string) {
		t.Helper()
		words := strings.Fields(line)
		if _, err := command.Run(t.Context(), words[0], words[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name    string
		build   []string
		devices string // that are in use then
		kind    string
		by      string
		release string // the advice
		clear   []string
	}{
		{
			"physical volume",
			[]string{"vgcreate --yes vg /dev/vdb", "lvcreate --yes -Wn -L 16m -n my-lv vg"},
			"/dev/vdb", block.UsedLVM, "vg/my-lv", "lvchange -an vg/my-lv",
			[]string{"vgremove --yes --force vg"},
		},
		{
			"physical volume below a thin pool",
			[]string{"vgcreate --yes vg /dev/vdb", "lvcreate --yes -L 16m -T vg/pool", "lvcreate --yes -V 16m -T vg/pool -n thin"},
			"/dev/vdb", block.UsedLVM, "vg/", "",
			[]string{"vgremove --yes --force vg"},
		},
		{
			"physical volume of a volume with a snapshot",
			[]string{"vgcreate --yes vg /dev/vdb", "lvcreate --yes -Wn -L 16m -n lv vg", "lvcreate --yes -s -L 8m -n snap vg/lv"},
			"/dev/vdb", block.UsedLVM, "vg/", "",
			[]string{"vgremove --yes --force vg"},
		},
		{
			"member of an array",
			[]string{"mdadm --create /dev/md0 --run --assume-clean --level 1 --raid-devices 2 --metadata 1.2 /dev/vdb /dev/vdc"},
			"/dev/vdb /dev/vdc", block.UsedMD, "/dev/md0", "mdadm --stop /dev/md0",
			[]string{"mdadm --zero-superblock /dev/vdb /dev/vdc"},
		},
		{
			"below the device mapper",
			[]string{"dmsetup create plain --table 0,2048,linear,/dev/vdb,0"},
			"/dev/vdb", block.UsedDM, "plain", "dmsetup remove plain", nil,
		},
		{
			"a mapping below another",
			[]string{"dmsetup create plain --table 0,2048,linear,/dev/vdb,0", "dmsetup create upper --table 0,1024,linear,/dev/mapper/plain,0"},
			"/dev/vdb /dev/mapper/plain", block.UsedDM, "", "",
			[]string{"dmsetup remove upper", "dmsetup remove plain"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, line := range c.build {
				words := strings.Fields(line)
				if words[0] == "dmsetup" {
					words[len(words)-1] = strings.ReplaceAll(words[len(words)-1], ",", " ")
				}
				if _, err := command.Run(t.Context(), words[0], words[1:]...); err != nil {
					t.Fatal(err)
				}
			}
			for path := range strings.FieldsSeq(c.devices) {
				refusedInUse(t, path, c.kind, c.by, c.release)
			}
			if c.release != "" {
				run(c.release)
				for path := range strings.FieldsSeq(c.devices) {
					if used, err := block.InUse(path); err != nil || len(used) > 0 {
						t.Errorf("%s after %s: in use as %v, %v", path, c.release, used, err)
					}
				}
			}
			for _, line := range c.clear {
				run(line)
			}
		})
	}
}

func refusedInUse(t *testing.T, path, kind, by, release string) {
	t.Helper()
	used, err := block.InUse(path)
	if err != nil || len(used) == 0 || used[0].Kind != kind || !strings.Contains(used[0].By, by) || !used[0].Writes {
		t.Errorf("%s: in use as %+v, %v, want %s by %s", path, used, err, kind, by)
	}
	src, err := block.Open(path, block.OpenOptions{})
	if err == nil {
		src.Close()
	}
	if !errors.Is(err, block.ErrInUse) || !strings.Contains(err.Error(), release) {
		t.Errorf("open %s: got %v, want it refused with %q", path, err, release)
	}
	before := head(t, path)
	target, err := block.OpenTarget(path, block.TargetOptions{Size: 1 << 20})
	if err == nil {
		target.Close()
	}
	if !errors.Is(err, block.ErrRefused) {
		t.Errorf("restore to %s: got %v, want %v", path, err, block.ErrRefused)
	}
	if head(t, path) != before {
		t.Errorf("%s was written to", path)
	}
}

// head returns the first MiB of a device.
func head(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return string(b)
}
