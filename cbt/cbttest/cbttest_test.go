package cbttest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"platter/block"
)

func TestRecorderPassesOnFile(t *testing.T) {
	Run(t, func(t testing.TB, size int64) Fixture {
		return newRecorder(File(t, size), none).fixture()
	})
}

func TestRecorderPassesOnLoopDevice(t *testing.T) {
	Run(t, func(t testing.TB, size int64) Fixture {
		return newRecorder(Loop(t, size), none).fixture()
	})
}

// Each flaw has the story that is there to find it.
func TestSuiteCatchesFlawedTrackers(t *testing.T) {
	for _, c := range []struct {
		flaw  flaw
		story string
	}{
		{trustsNothing, "first run"},
		{trustsForeign, "foreign generation"},
		{trustsStale, "stale generation"},
		{saysNotWhy, "stale generation"},
		{losesABit, "edges of extents"},
		{shortAtTheEnd, "edges of extents"},
		{lateAtTheStart, "edges of extents"},
		{ignoresZero, "zeroes and discards"},
		{ignoresDiscard, "zeroes and discards"},
		{commitsTheNow, "writes during a run"},
		{marksLate, "writes during a run"},
		{clearsWhenAsked, "run abandoned"},
		{clearsWhenMarked, "run abandoned"},
		{losesInCrash, "crash before commit"},
		{refusesInCrash, "crash before commit"},
		{commitsForAll, "cost"},
		{ignoresResize, "resize"},
		{comparesSizes, "resize"},
		{keepsOldSize, "resize"},
		{hidesGap, "unwatched"},
		{givesAll, "cost"},
		{givesNothing, "cost"},
		{givesTooMuch, "cost"},
		{takesFromOthers, "two consumers"},
		{losesInCrash, "commit lost"},
	} {
		t.Run(string(c.flaw), func(t *testing.T) {
			open := func(t testing.TB, size int64) Fixture { return newRecorder(File(t, size), c.flaw).fixture() }
			for _, sc := range scenarios() {
				if sc.name != c.story {
					continue
				}
				err := sc.try(t, open)
				if err == nil {
					t.Fatalf("%s: passes", c.story)
				}
				t.Logf("%s: %v", c.story, err)
			}
		})
	}
}

// What no story was made for, the random ones find.
func TestRandomRoundsCatchFlawedTrackers(t *testing.T) {
	for _, f := range []flaw{
		losesABit, shortAtTheEnd, trustsStale, clearsWhenAsked, commitsTheNow, marksLate,
		ignoresResize, ignoresZero, ignoresDiscard, losesInCrash, hidesGap,
	} {
		open := func(t testing.TB, size int64) Fixture { return newRecorder(File(t, size), f).fixture() }
		if !slices.ContainsFunc(scenarios(), func(sc scenario) bool {
			return strings.HasPrefix(sc.name, "seed ") && sc.try(t, open) != nil
		}) {
			t.Errorf("%s: passes", f)
		}
	}
}

func TestDevicesEraseAndResize(t *testing.T) {
	for name, open := range map[string]func(testing.TB, int64) Device{"file": File, "loop device": Loop} {
		t.Run(name, func(t *testing.T) {
			d := open(t, 1<<20)
			for verb, erase := range map[string]func(block.Extent) error{"zero": d.Zero, "discard": d.Discard} {
				if _, err := d.WriteAt([]byte{1, 2, 3}, 4096+511); err != nil {
					t.Fatal(err)
				}
				err := erase(block.Extent{Offset: 4096, Length: 512})
				if errors.Is(err, errors.ErrUnsupported) {
					continue // by the file system that the test runs on
				}
				var got [3]byte
				if _, rerr := d.ReadAt(got[:], 4096+511); err != nil || rerr != nil || got != [3]byte{0, 2, 3} {
					t.Errorf("%s: got %v, %v, %v, want [0 2 3]", verb, got, err, rerr)
				}
			}
			if err := d.Resize(1<<20 + 512); err != nil || d.Size() != 1<<20+512 {
				t.Errorf("resize: got %d bytes, %v, want %d", d.Size(), err, 1<<20+512)
			}
		})
	}
}
