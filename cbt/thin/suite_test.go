package thin_test

import (
	"testing"

	"platter/block/snapshot/lvm"
	"platter/cbt/thin"
	"platter/vmtests/volumes"
)

// D12, D13, D14: on thin volumes of a pool.
func TestThinPassesTheSuite(t *testing.T) {
	g := volumes.NewGroup(t, "suite", "/dev/vda")
	g.Pool("pool", 128<<20)
	volumes.Suite(t, g, lvm.Thin{}, thin.Opener{}, func(name string, size int64) string { return g.Thin("pool", name, size) })
}
