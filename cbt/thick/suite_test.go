package thick_test

import (
	"testing"

	"platter/block/snapshot/lvm"
	"platter/cbt/thick"
	"platter/vmtests/volumes"
)

// D12, D13: on volumes with classic snapshots.
func TestThickPassesTheSuite(t *testing.T) {
	g := volumes.NewGroup(t, "suite", "/dev/vda")
	volumes.Suite(t, g, lvm.Thick{}, thick.Opener{}, g.Thick)
}

// D12: a tracker of them that is wrong anywhere does not pass.
func TestFlawsAreCaught(t *testing.T) {
	g := volumes.NewGroup(t, "flaws", "/dev/vda")
	volumes.CatchFlaws(t, g, lvm.Thick{}, thick.Opener{}, g.Thick)
}
