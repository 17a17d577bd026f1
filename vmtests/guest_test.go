package vmtests

import (
	"os"
	"path"
	"testing"

	"platter/vmtests/guest"
)

// A few stories of each tracker that needs a guest, in one boot.
func TestTrackersInAGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a machine")
	}
	guest.Open(t).Test(t, guest.Boot{Disks: []string{guest.Disk(t, 512<<20), guest.Disk(t, 64<<20), guest.Disk(t, 64<<20)}},
		guest.Tests{Package: "platter/cbt/thin", Args: "-test.run='Suite/first|Holes'"},
		guest.Tests{Package: "platter/cbt/thick", Args: "-test.run='Suite/first'"},
		guest.Tests{Package: "platter/cbt/era", Args: "-test.run='Suite/first|ADiscard'"},
		guest.Tests{Package: "platter/vmtests/volumes", Args: "-test.run=Stacked"},
	)
}

// Every story of the suite, for each tracker in a guest of its own. Half an hour
// each: make vm.
func TestSuitesInGuests(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, an hour of guests: make vm")
	}
	for _, pkg := range []string{"platter/cbt/thin", "platter/cbt/thick", "platter/cbt/era"} {
		t.Run(path.Base(pkg), func(t *testing.T) {
			guest.Open(t).Test(t, guest.Boot{Disks: []string{guest.Disk(t, 512<<20)}},
				guest.Tests{Package: pkg, Args: "-test.timeout 4h"})
		})
	}
}

// Disks in use, of kinds that need a guest.
func TestDisksInUseInAGuest(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, minutes of a guest: make vm")
	}
	guest.Open(t).Test(t, guest.Boot{Disks: []string{guest.Disk(t, 512<<20)}},
		guest.Tests{Package: "platter/block/freeze", Args: "-test.run=Drain"},
		guest.Tests{Package: "platter/cbt/live", Args: "-test.run=Delayed"},
	)
}

// The disk that a machine runs from, to a repository of the same machine.
func TestRunningDiskInAGuest(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, minutes of a guest: make vm")
	}
	guest.Open(t).Test(t, guest.Boot{
		System: true, CPUs: 2, Memory: 1024, Files: map[string]string{"platter": binary},
		Disks: []string{guest.Debian(t), guest.Disk(t, 4<<30)},
	}, guest.Tests{Package: "platter/vmtests/running"})
}

// vm reports whether all rounds in guests are wanted.
func vm() bool { return os.Getenv("PLATTER_TEST_VM") != "" }
