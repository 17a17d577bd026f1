package cbttest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"platter/block"
	"platter/cbt"
)

// flaw is what a recorder does wrong.
type flaw string

const (
	none             flaw = "none"
	losesABit        flaw = "loses a bit"
	shortAtTheEnd    flaw = "off by one at the end of an extent"
	lateAtTheStart   flaw = "off by one at the start of an extent"
	trustsNothing    flaw = "takes no generation for the present"
	trustsStale      flaw = "accepts a stale generation"
	trustsForeign    flaw = "accepts a foreign generation"
	clearsWhenAsked  flaw = "clears the history when asked"
	clearsWhenMarked flaw = "clears the history when marked"
	commitsTheNow    flaw = "commits what was written during the run"
	commitsForAll    flaw = "commits for the other consumers"
	takesFromOthers  flaw = "commits what other consumers still need"
	marksLate        flaw = "marks later than the still view"
	ignoresResize    flaw = "ignores a resize"
	comparesSizes    flaw = "compares sizes only"
	keepsOldSize     flaw = "gives a set of the size at open of the history"
	ignoresZero      flaw = "ignores zeroes"
	ignoresDiscard   flaw = "ignores discards"
	losesInCrash     flaw = "loses what was not committed in a crash"
	refusesInCrash   flaw = "has lost the history after each crash"
	hidesGap         flaw = "goes on after a gap"
	givesAll         flaw = "gives everything"
	givesNothing     flaw = "has always lost the history"
	givesTooMuch     flaw = "rounds to twice its grain"
	saysNotWhy       flaw = "does not say why the history is lost"
)

// grain is what recorders round to.
const grain = 8192

// A recorder is a device that writes down every change of another, in order.
// A generation is its identity, a place in that log and the size there.
type recorder struct {
	Device
	flaw     flaw
	id       uint64
	openSize int64
	log      []block.Extent // without the first base ones
	base     int
	done     map[string]int // place in the log that each consumer committed
	recorded int
	watching bool
}

func newRecorder(d Device, f flaw) *recorder {
	return &recorder{Device: d, flaw: f, id: rand.Uint64(), openSize: d.Size(), done: make(map[string]int), watching: true}
}

func (r *recorder) fixture() Fixture {
	return Fixture{
		Device: r,
		Open: func(_ context.Context, consumer string) (cbt.Tracker, error) {
			return &recording{recorder: r, consumer: consumer, at: r.place(), size: r.Size()}, nil
		},
		Crash:     r.crash,
		Unwatched: r.unwatched,
		Grain:     grain,
	}
}

func (r *recorder) place() int { return r.base + len(r.log) }

func (r *recorder) record(e block.Extent) {
	r.recorded++
	switch {
	case !r.watching, r.flaw == losesABit && r.recorded%11 == 0:
		return
	case r.flaw == shortAtTheEnd:
		e.Length--
	case r.flaw == lateAtTheStart:
		e.Offset, e.Length = e.Offset+1, e.Length-1
	}
	r.log = append(r.log, e)
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.record(block.Extent{Offset: off, Length: int64(len(p))})
	return r.Device.WriteAt(p, off)
}

func (r *recorder) Zero(e block.Extent) error {
	if r.flaw != ignoresZero {
		r.record(e)
	}
	return r.Device.Zero(e)
}

func (r *recorder) Discard(e block.Extent) error {
	if r.flaw != ignoresDiscard {
		r.record(e)
	}
	return r.Device.Discard(e)
}

func (r *recorder) Resize(size int64) error {
	from := r.Size()
	if err := r.Device.Resize(size); err != nil {
		return err
	}
	from, to := min(from, r.Size()), max(from, r.Size())
	if r.flaw != ignoresResize && r.flaw != comparesSizes {
		r.record(block.Extent{Offset: from, Length: to - from})
	}
	return nil
}

func (r *recorder) crash() error {
	switch r.flaw {
	case losesInCrash:
		clear(r.log)
	case refusesInCrash:
		r.forget(r.place())
	}
	return nil
}

func (r *recorder) unwatched(write func() error) error {
	r.watching = false
	defer func() { r.watching = true }()
	if r.flaw != hidesGap {
		r.id++ // a new history
	}
	return write()
}

// forget drops the log before a place, and what is asked of that time is lost.
func (r *recorder) forget(before int) {
	if before > r.base {
		r.log = r.log[before-r.base:]
		r.base = before
	}
}

// A recording is a run of one consumer.
type recording struct {
	*recorder
	consumer string
	at       int // place in the log of the still view
	size     int64
}

func (r *recording) Name() string { return "recorder" }

func (r *recording) Mark(context.Context) (cbt.Generation, error) {
	switch r.flaw {
	case marksLate:
		r.at = r.place()
	case clearsWhenMarked:
		r.done[r.consumer] = r.at
		defer r.forget(r.at)
	}
	g := binary.BigEndian.AppendUint64(nil, r.id)
	g = binary.BigEndian.AppendUint64(g, uint64(r.at))
	return binary.BigEndian.AppendUint64(g, uint64(r.size)), nil
}

func (r *recording) Changed(_ context.Context, since cbt.Generation) (*cbt.Set, error) {
	from, err := r.from(since)
	if err != nil {
		return nil, err
	}
	size, unit := r.size, int64(grain)
	switch r.flaw {
	case keepsOldSize:
		size = r.openSize
	case givesAll:
		return cbt.Unknown(size), nil
	case givesTooMuch:
		unit *= 2
	}
	set := cbt.NewSet(size)
	for _, e := range r.log[from-r.base : r.at-r.base] {
		if e.Length == 0 {
			continue
		}
		first := e.Offset / unit * unit
		set.Add(block.Extent{Offset: first, Length: (e.End()+unit-1)/unit*unit - first})
	}
	switch r.flaw {
	case clearsWhenAsked:
		clear(r.log[:r.at-r.base])
	case comparesSizes:
		was := int64(binary.BigEndian.Uint64(since[16:]))
		set.Add(block.Extent{Offset: min(was, size), Length: max(was, size) - min(was, size)})
	}
	return set, nil
}

// from returns the place in the log that a generation names.
func (r *recording) from(since cbt.Generation) (int, error) {
	if len(since) == 0 && r.flaw == trustsNothing {
		return r.at, nil
	}
	if r.flaw == givesNothing {
		return 0, fmt.Errorf("it is gone: %w", cbt.ErrHistoryLost)
	}
	if len(since) != 24 {
		return 0, fmt.Errorf("generation of %d bytes, want 24: %w", len(since), cbt.ErrHistoryLost)
	}
	id, place := binary.BigEndian.Uint64(since), binary.BigEndian.Uint64(since[8:])
	if id != r.id && r.flaw != trustsForeign {
		return 0, fmt.Errorf("generation of history %x, this is %x: %w", id, r.id, cbt.ErrHistoryLost)
	}
	if place > uint64(r.at) {
		return 0, fmt.Errorf("generation %d is after the still view, at %d: %w", place, r.at, cbt.ErrHistoryLost)
	}
	if place < uint64(r.base) {
		switch r.flaw {
		case trustsStale:
			return r.base, nil
		case saysNotWhy:
			return 0, cbt.ErrHistoryLost
		}
		return 0, fmt.Errorf("generation %d, the history begins at %d: %w", place, r.base, cbt.ErrHistoryLost)
	}
	return int(place), nil
}

func (r *recording) Commit(context.Context, cbt.Generation) error {
	at := r.at
	if r.flaw == commitsTheNow {
		clear(r.log[at-r.base:])
	}
	r.done[r.consumer] = at
	switch r.flaw {
	case takesFromOthers:
		clear(r.log[:at-r.base])
		return nil
	case commitsForAll:
		r.forget(at)
		return nil
	}
	for _, place := range r.done {
		at = min(at, place)
	}
	r.forget(at)
	return nil
}

func (r *recording) Close() error { return nil }
