package zfs_test

import (
	"os"
	"testing"

	"platter/block/freeze"
	zfsviews "platter/block/snapshot/zfs"
	"platter/cbt/zfs"
	"platter/vmtests/volumes"
)

func TestMain(m *testing.M) {
	if freeze.Watch() {
		return
	}
	os.Exit(m.Run())
}

// D12, D13, D14: on volumes of a pool of ZFS.
func TestZFSPassesTheSuite(t *testing.T) {
	p := volumes.NewPool(t, "suite", "/dev/vda")
	volumes.Suite(t, p, zfsviews.Provider{}, zfs.Opener{}, p.Full)
}
