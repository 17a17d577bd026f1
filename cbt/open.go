package cbt

import (
	"context"

	"platter/block"
	"platter/block/snapshot"
)

// An Opener opens one kind of tracker for a run. It is safe for concurrent
// use.
type Opener interface {
	// Name is the word for the tracker, as its trackers' Name.
	Name() string
	// Method is the method of the still views that it works with.
	Method() string
	// Open opens the tracker with a view of that method, which the caller
	// closes after the tracker. A tracker whose history is the snapshots
	// themselves has its Commit call the view's Keep.
	Open(ctx context.Context, v snapshot.View, c snapshot.Consumer) (Tracker, error)
	// Base returns the ID of the snapshot that a generation needs to be there,
	// "" if none. It is how a run knows which of a consumer's snapshots are
	// left over. What is no generation of this tracker needs none.
	Base(g Generation) string
}

// A Converging view is of a device that nothing can hold still while all of it
// is read. A run reads what changed since the parent, as of any view, and then
// calls Pass until it has the last one, and reads again what each gives. What
// was read last counts: only with the last pass is the view of one moment,
// and Taken is that moment.
type Converging interface {
	snapshot.View
	// Pass returns what may have been written after the pass before began to
	// be read, and where to read it from, valid until the next call. With the
	// last pass that is the memory of this process: the device goes on being
	// written to. A pass that follows the last one begins a new round, and
	// ends with a last one of its own.
	//
	// Where the device cannot be brought to a moment, Pass gives a last pass,
	// and then Still says why, and the image is fuzzy.
	Pass(ctx context.Context) (src block.Source, again *Set, last bool, err error)
	// Still returns nil if the last pass was of one moment, otherwise why not.
	Still() error
	// Written returns what was written, or may have been, since the moment of
	// the view, or before there is one, since it was opened. It takes nothing
	// away from what later passes and generations are given.
	Written(ctx context.Context) (*Set, error)
}
