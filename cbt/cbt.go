// Package cbt tells what changed on a device since its last image.
//
// A tracker is a hint that must prove itself: it names the generation it
// counts from and answers only if it can vouch for every write since. If
// anything does not join up exactly, it says so, and the caller compares every
// block instead.
package cbt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"platter/block"
)

// ErrHistoryLost means that a tracker cannot vouch for all the time since a
// generation; the text that wraps it says why.
var ErrHistoryLost = errors.New("history lost")

// A Generation marks a moment in a tracker's history. It is opaque to all but
// the tracker, and is kept in the manifest. It names the history it belongs
// to, so that a tracker knows a foreign one.
type Generation []byte

// Decode takes apart a generation that is JSON, into what point points to. Where
// there is none, or it is none of the tracker's, which sound says of point, the
// error wraps ErrHistoryLost.
func (g Generation) Decode(tracker string, point any, sound func() bool) error {
	if len(g) == 0 {
		return fmt.Errorf("there is no generation: %w", ErrHistoryLost)
	}
	if err := json.Unmarshal(g, point); err != nil || !sound() {
		return fmt.Errorf("the generation is none of tracker %s: %w", tracker, ErrHistoryLost)
	}
	return nil
}

// A Sparse tracker knows, without any history, of what parts its device has nothing
// for but zeros.
type Sparse interface {
	Tracker
	// Holes tells the still view of them, so that it is not read there. It is
	// called before a view is read of which all counts as changed.
	Holes(ctx context.Context) error
}

// A Tracker knows which parts of one device were written. It is opened for one
// run of one consumer (a volume in a repository) with the still view that the
// run images, and belongs to one goroutine. The run calls Mark, then Changed
// with the parent's generation, then reads, writes the manifest, and calls
// Commit with what Mark returned.
//
// Every tracker passes the suite in cbt/cbttest.
type Tracker interface {
	// Name is the word for the tracker in manifests, reports and --tracker.
	Name() string
	// Changed returns what may have been written, zeroed or discarded between
	// generation since and the still view that is being imaged. The set is of
	// the size that the still view has, and is the caller's. If the tracker
	// cannot vouch for all of that time it returns an error wrapping
	// ErrHistoryLost: callers use Since, which then answers Unknown.
	Changed(ctx context.Context, since Generation) (*Set, error)
	// Mark returns the generation of the still view being imaged. The caller
	// puts it into the manifest.
	Mark(ctx context.Context) (Generation, error)
	// Commit says that the manifest holding g is durable: this consumer no
	// longer needs the history before g. Until then a crash must leave it in
	// place, and what was written after g stays whatever happens. Another
	// consumer's history is not touched.
	Commit(ctx context.Context, g Generation) error
	Close() error
}

// Unknown is the set of a device of which nothing is known: every byte may
// have changed, and the caller compares every block.
func Unknown(size int64) *Set {
	s := NewSet(size)
	s.Add(block.Extent{Length: size})
	return s
}

// Since returns what may have changed on a device of size bytes since a
// generation. Where the tracker cannot tell, for whatever reason, that is
// Unknown, and why says the reason in words for the manifest and the report:
// a hint that fails costs a full compare, never a backup. The only error is
// that of ctx.
func Since(ctx context.Context, t Tracker, since Generation, size int64) (set *Set, why string, err error) {
	set, err = t.Changed(ctx, since)
	if ctx.Err() != nil {
		return nil, "", ctx.Err()
	}
	if err != nil {
		return Unknown(size), err.Error(), nil
	}
	if set.Size() != size {
		why := fmt.Sprintf("tracker %s speaks of a device of %d bytes, this one has %d", t.Name(), set.Size(), size)
		return Unknown(size), why, nil
	}
	return set, "", nil
}
