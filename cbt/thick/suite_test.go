package thick_test

import (
	"testing"

	"platter/block/snapshot/lvm"
	"platter/cbt/thick"
	"platter/vmtests/volumes"
)

func TestThickPassesTheSuite(t *testing.T) {
	g := volumes.NewGroup(t, "suite", "/dev/vda")
	volumes.Suite(t, g, lvm.Thick{}, thick.Opener{}, g.Thick)
}
