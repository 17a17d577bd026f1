// Package cbttest is the suite that every tracker must pass. It writes to a
// device, makes images of it the way a run does, and compares: whatever
// differs between two images must be in the set that the tracker gives for the
// time between them, or the tracker must say that it has lost the history.
package cbttest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"platter/block"
	"platter/cbt"
)

// A Device is a live device that a tracker watches. Extents of Zero and
// Discard are whole sectors of 512 bytes. Any of Zero, Discard and Resize may
// return an error wrapping errors.ErrUnsupported, and is then left out.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Size() int64                  // bytes
	Zero(e block.Extent) error    // make zero without writing data
	Discard(e block.Extent) error // give back; the content may be anything after
	// Resize makes the device about size bytes long, a multiple of 512. The
	// device may round it.
	Resize(size int64) error
}

// A Fixture is a device with a history that a tracker keeps of it. Nobody but
// the suite writes to the device.
type Fixture struct {
	Device Device
	// Open begins a run of a consumer, such as "a": it takes the still view of
	// the device as it is now. What is written later is no part of the view.
	Open func(ctx context.Context, consumer string) (cbt.Tracker, error)
	// Crash ends the process that keeps the history, open runs included,
	// without a warning, and starts it again. Nil if there is none.
	Crash func() error
	// Unwatched calls write while the tracker does not watch the device: the
	// machine is off and the disk in another one, say. Nil if that cannot be.
	Unwatched func(write func() error) error
	// Grain is what one written byte may put into the set at most, in bytes: a
	// power of two. Zero if the tracker may give everything, always. A tracker
	// with a grain has to give sets as long as it is watching, through runs
	// that fail and crashes too.
	Grain int64
}

// deviceSize is small, so that images are kept in memory and compared whole.
const deviceSize = 1 << 20

// A scenario is one story of a device and its images.
type scenario struct {
	name string
	tell func(*session)
}

func scenarios() []scenario {
	all := []scenario{
		{"first run", firstRun},
		{"foreign generation", foreignGeneration},
		{"stale generation", staleGeneration},
		{"edges of extents", edgesOfExtents},
		{"zeroes and discards", zeroesAndDiscards},
		{"writes during a run", writesDuringRun},
		{"run abandoned", runAbandoned},
		{"crash before commit", crashBeforeCommit},
		{"commit lost", commitLost},
		{"two consumers", twoConsumers},
		{"resize", resized},
		{"unwatched", unwatched},
		{"cost", cost},
	}
	for seed := range 12 {
		all = append(all, scenario{fmt.Sprintf("seed %d", seed), rounds})
	}
	return all
}

// Run tells every story of the suite to trackers that open makes. Each call of
// open gives a device of about size bytes with a history of its own, which
// ends with the test.
func Run(t *testing.T, open func(t testing.TB, size int64) Fixture) {
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			if err := sc.try(t, open); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Try tells one story by its name, and returns what the tracker did wrong. It
// is for those who show that a flaw is found.
func Try(t testing.TB, story string, open func(t testing.TB, size int64) Fixture) error {
	for _, sc := range scenarios() {
		if sc.name == story {
			return sc.try(t, open)
		}
	}
	return fmt.Errorf("there is no story %q", story)
}

// try returns what the tracker did wrong in the scenario.
func (sc scenario) try(t testing.TB, open func(t testing.TB, size int64) Fixture) (err error) {
	// The name is the seed, so that a story is the same in every run.
	seed := rand.NewPCG(0, 0)
	for _, c := range sc.name {
		seed.Seed(seed.Uint64(), uint64(c))
	}
	s := &session{
		ctx:     t.Context(),
		Fixture: open(t, deviceSize),
		random:  rand.New(seed),
		another: func() Fixture { return open(t, deviceSize) },
	}
	defer func() {
		switch f := recover().(type) {
		case nil:
		case failure:
			err = f.err
		default:
			panic(f)
		}
	}()
	sc.tell(s)
	return nil
}
