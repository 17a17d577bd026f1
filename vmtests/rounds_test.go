package vmtests

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"platter/vmtests/guest"
)

// rounds are how many a tracker goes through, or PLATTER_TEST_ROUNDS.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("PLATTER_TEST_ROUNDS")); err == nil {
		return n
	}
	return 100
}

// A volume is imaged over three boots, one of which ends by a power cut.
func TestStoriesInGuests(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, ten minutes of guests: make vm")
	}
	program := guest.Build(t, "platter/vmtests/rounds.test")
	for _, way := range []string{"thin", "thick", "era", "zfs"} {
		t.Run(way, func(t *testing.T) {
			s, b := roundsBoot(t, program, way)
			for phase := 1; phase <= 3; phase++ {
				b.Run = fmt.Sprintf("./rounds.test -test.v -test.run TestStory -way %s -phase %d", way, phase)
				cut := false
				b.Line = func(line string) bool {
					t.Log(line)
					cut = line == "rounds: cut"
					return cut
				}
				status, err := s.Start(t.Context(), b)
				if err != nil || status != 0 && !cut {
					t.Fatalf("boot %d: status %d, %v", phase, status, err)
				}
			}
		})
	}
}

// D12, D14: through resizes, reverts, reboots, power cuts and killed runs of two
// repositories, each image of a volume is what a full read gives.
func TestRoundsInGuests(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, hours of guests: make vm")
	}
	program := guest.Build(t, "platter/vmtests/rounds.test")
	for _, way := range []string{"thin", "thick", "era", "zfs"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			s, b := roundsBoot(t, program, way)
			b.Run = fmt.Sprintf("./rounds.test -test.v -test.timeout 0 -test.run TestRounds -way %s -rounds %d", way, rounds())
			done, cut := false, false
			b.Line = func(line string) bool {
				t.Log(line)
				done, cut = done || line == "rounds: done", line == "rounds: cut"
				return cut
			}
			start, boots := time.Now(), 0
			for ; !done; boots++ {
				if status, err := s.Start(t.Context(), b); err != nil || status != 0 && !cut {
					t.Fatalf("boot %d: status %d, %v", boots, status, err)
				}
			}
			t.Logf("%d boots, %.0f minutes", boots, time.Since(start).Minutes())
		})
	}
}

func roundsBoot(t *testing.T, program, way string) (*guest.System, guest.Boot) {
	s := guest.Open(t)
	if way == "zfs" {
		s = guest.OpenZFS(t)
	}
	return s, guest.Boot{
		ZFS:   way == "zfs",
		Files: map[string]string{"platter": binary, "rounds.test": program},
		Disks: []string{guest.Disk(t, 512<<20), guest.Disk(t, 1<<30)},
		// A history of dm-era that has discards is none.
		NoDiscard: way == "era",
	}
}
