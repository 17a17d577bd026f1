package cbttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"platter/block"
	"platter/cbt"
)

const sector = 512

// A session is a fixture in use. Its methods panic with a failure when the
// tracker or the device does wrong; try turns that into an error.
type session struct {
	Fixture
	ctx     context.Context
	random  *rand.Rand
	another func() Fixture
	touched []block.Extent // everything written to the device, in order
}

type failure struct{ err error }

func fail(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

func check(err error, format string, args ...any) {
	if err != nil {
		fail("%s: %w", fmt.Sprintf(format, args...), err)
	}
}

// A moment is what an image keeps: a generation and the content of the device.
type moment struct {
	generation cbt.Generation
	view       []byte
	touched    int // how much of session.touched was before it
}

// A run is a run of one consumer that has a still view.
type run struct {
	*session
	tracker cbt.Tracker
	now     moment
}

// begin opens a tracker with a still view of the device as it is.
func (s *session) begin(consumer string) *run {
	tracker, err := s.Open(s.ctx, consumer)
	check(err, "open the tracker for consumer %s", consumer)
	return &run{s, tracker, moment{view: s.read(), touched: len(s.touched)}}
}

func (s *session) read() []byte {
	view := make([]byte, s.Device.Size())
	n, err := s.Device.ReadAt(view, 0)
	if err == io.EOF && n == len(view) {
		err = nil
	}
	check(err, "read the device")
	return view
}

func (r *run) mark() {
	g, err := r.tracker.Mark(r.ctx)
	check(err, "mark")
	r.now.generation = bytes.Clone(g)
}

// ask returns the set that the tracker gives since a moment, nil if it has
// lost the history. A set must hold all that differs between that moment and
// the still view.
func (r *run) ask(since *moment) *cbt.Set {
	set := r.changed(since.generation)
	if set == nil {
		return nil
	}
	for off := int64(0); off < int64(len(r.now.view)); off += sector {
		e := block.Extent{Offset: off, Length: min(sector, int64(len(r.now.view))-off)}
		if !bytes.Equal(part(since.view, e), part(r.now.view, e)) && !set.Contains(e) {
			fail("the sector at %d differs between the images, of %d and %d bytes, but is not in the set", off, len(since.view), len(r.now.view))
		}
	}
	return set
}

// part returns the bytes of view that lie in e, fewer at the end of the view.
func part(view []byte, e block.Extent) []byte {
	size := int64(len(view))
	return view[min(e.Offset, size):min(e.End(), size)]
}

// changed returns the tracker's answer, nil if it has lost the history.
func (r *run) changed(since cbt.Generation) *cbt.Set {
	set, err := r.tracker.Changed(r.ctx, bytes.Clone(since))
	switch {
	case errors.Is(err, cbt.ErrHistoryLost):
		if err.Error() == cbt.ErrHistoryLost.Error() {
			fail("the history is lost, and the error does not say why")
		}
		return nil
	case err != nil:
		fail("ask what changed: %w", err)
	case set.Size() != int64(len(r.now.view)):
		fail("the set is of a device of %d bytes, the still view has %d", set.Size(), len(r.now.view))
	}
	return set
}

// distrusts fails unless the tracker has lost the history since g, or gives
// the whole device.
func (r *run) distrusts(g cbt.Generation, what string) {
	if set := r.changed(g); set != nil && set.Bytes() != set.Size() {
		fail("the tracker took %s for one of its own: its set has %d of %d bytes", what, set.Bytes(), set.Size())
	}
}

func (r *run) commit() *moment {
	check(r.tracker.Commit(r.ctx, r.now.generation), "commit")
	r.close()
	return &r.now
}

// close ends the run; without commit before, it has made no image.
func (r *run) close() { check(r.tracker.Close(), "close the tracker") }

// image makes an image. With a parent, the tracker is asked what changed.
func (s *session) image(consumer string, parent *moment) *moment {
	r := s.begin(consumer)
	r.mark()
	if parent != nil {
		r.ask(parent)
	}
	return r.commit()
}

// crash ends the tracker's process, if it has one, and otherwise the run.
func (r *run) crash() {
	if r.Crash == nil {
		r.close()
		return
	}
	check(r.Crash(), "crash")
}
