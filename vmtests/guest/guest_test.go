package guest

import (
	"slices"
	"strings"
	"testing"
)

// A disk outlives the guest, however that ends.
func TestGuestsShareADisk(t *testing.T) {
	s := Open(t)
	d := Disk(t, 64<<20)
	var said []string
	say := func(line string) bool { said = append(said, line); return line == "now" }
	status, err := s.Start(t.Context(), Boot{
		Run:   "echo hello | dd of=/dev/vda conv=fsync 2>/dev/null; uname -r; lvs --version >/dev/null && dmsetup targets | sort; echo now; exec sleep 100",
		Disks: []string{d}, Line: say,
	})
	if err != nil || status != -1 {
		t.Fatalf("got status %d, %v, want -1 after a power cut: %q", status, err, said)
	}
	for _, want := range []string{s.Release, "now"} {
		if !slices.Contains(said, want) {
			t.Errorf("the guest did not say %q: %q", want, said)
		}
	}
	for _, target := range []string{"era", "snapshot-origin", "thin-pool", "delay"} {
		if !strings.Contains(strings.Join(said, "\n"), target) {
			t.Errorf("the guest's kernel has no dm target %s: %q", target, said)
		}
	}
	said = nil
	status, err = s.Start(t.Context(), Boot{Run: "head -n 1 /dev/vda; exit 7", Disks: []string{d}, Line: say})
	if err != nil || status != 7 || !slices.Equal(said, []string{"hello"}) {
		t.Errorf("got status %d, %v, %q, want 7 and hello", status, err, said)
	}
}
