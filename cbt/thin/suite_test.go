package thin_test

import (
	"testing"

	"platter/block/snapshot/lvm"
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
