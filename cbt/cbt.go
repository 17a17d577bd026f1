// Package cbt tells what changed on a device since its last image.
//
// A tracker is a hint that must prove itself: it names the generation it
// counts from and answers only if it can vouch for every write since. If
// anything does not join up exactly, it says so, and the caller compares every
// block instead.
package cbt

import (
	"context"
	"errors"

	"platter/block"
)

// ErrHistoryLost means that a tracker cannot vouch for all the time since a
// generation; the text that wraps it says why.
var ErrHistoryLost = errors.New("history lost")

// A Generation marks a moment in a tracker's history. It is opaque to all but
// the tracker, and is kept in the manifest.
type Generation []byte

// A Tracker knows which parts of one device were written.
type Tracker interface {
	// Name is the word for the tracker in manifests, reports and --tracker.
	Name() string
	// Changed returns what may have been written, zeroed or discarded between
	// generation since and the still view that is being imaged. If the tracker
	// cannot vouch for all of that time it returns an error wrapping
	// ErrHistoryLost, and the caller reads the whole device.
	Changed(ctx context.Context, since Generation) (*Set, error)
	// Mark returns the generation of the still view being imaged. The caller
	// puts it into the manifest.
	Mark(ctx context.Context) (Generation, error)
	// Commit says that the manifest holding g is durable: history before g is
	// no longer needed. Until then a crash must leave it in place.
	Commit(ctx context.Context, g Generation) error
	Close() error
}

// Unknown is what full compare returns: any block may have changed.
func Unknown(size int64) *Set {
	s := NewSet(size)
	s.Add(block.Extent{Length: size})
	return s
}
