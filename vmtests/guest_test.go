package vmtests

import (
	"testing"

	"platter/vmtests/guest"
)

// A few stories of each tracker that needs a guest, in one boot.
func TestTrackersInAGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a machine")
	}
	s := guest.Open(t)
	const few = "-test.run='Suite/(first|writes_during)'"
	s.Test(t, guest.Boot{Disks: []string{guest.Disk(t, 512<<20)}},
		guest.Tests{Package: "platter/cbt/thin", Args: few},
		guest.Tests{Package: "platter/cbt/thick", Args: few},
	)
}
