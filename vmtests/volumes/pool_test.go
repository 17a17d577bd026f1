package volumes

import (
	"os"
	"strings"
	"testing"

	"platter/block"
	"platter/vmtests/guest"
)

// A disk of an imported pool of ZFS is refused, as a source and as a target, whole
// or by its partition, and not a byte is written to it. Once the pool is exported
// it is a disk like others. Runs in a guest with two disks.
func TestDisksOfPoolsAreRefused(t *testing.T) {
	guest.Only(t)
	p := NewPool(t, "member", "/dev/vdb")
	p.Full("v", 8<<20)
	p.Run("zpool", "sync", p.Name)
	written := func() string {
		b, err := os.ReadFile("/sys/block/vdb/stat")
		if err != nil {
			t.Fatal(err)
		}
		const sectorsWritten = 6
		return strings.Fields(string(b))[sectorsWritten]
	}
	before := written()
	for _, path := range []string{"/dev/vdb", "/dev/vdb1"} {
		refusedInUse(t, path, block.UsedOther, "the kernel", "zpool export")
	}
	if now := written(); now != before {
		t.Errorf("%s sectors had been written to the disk, now it is %s", before, now)
	}
	d, err := block.Look("/dev/vdb1")
	if err != nil || d.Content != "zfs_member" {
		t.Errorf("got content %q, %v, want zfs_member", d.Content, err)
	}
	p.Run("zpool", "export", p.Name)
	for _, path := range []string{"/dev/vdb", "/dev/vdb1"} {
		if used, err := block.InUse(path); err != nil || len(used) > 0 {
			t.Errorf("%s of an exported pool: in use as %v, %v", path, used, err)
		}
	}
	p.Run("zpool", "import", "-d", "/dev/vdb1", p.Name)
}
