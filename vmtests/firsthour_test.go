package vmtests

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"platter/vmtests/guest"
)

// The first hour, as its page tells it, from the package to a restored disk, on
// a Debian with systemd. PLATTER_DEB names a package that is built already.
func TestFirstHourInAGuest(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, minutes of a guest: make first-hour")
	}
	s := guest.Open(t)
	deb := os.Getenv("PLATTER_DEB")
	if deb == "" {
		out, err := exec.CommandContext(t.Context(), "../internal/package/build").Output()
		if err != nil {
			t.Fatalf("build the package: %v", err)
		}
		deb = "../" + strings.TrimSpace(string(out))
	}
	s.Test(t, guest.Boot{
		System: true, CPUs: 2, Memory: 1024,
		Files: map[string]string{
			"platter.deb": deb, "first-hour.md": "../docs/first-hour.md",
		},
		Disks: []string{guest.Debian(t), guest.Disk(t, 1<<30), guest.Disk(t, 128<<20), guest.Disk(t, 256<<20)},
	}, guest.Tests{Package: "platter/vmtests/firsthour", Args: "-test.run=FirstHour"})
}
