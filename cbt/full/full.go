// Package full is the tracker that tracks nothing: any block may have changed,
// so every block is read and compared. It is always there and always right.
package full

import (
	"context"

	"platter/cbt"
)

// Name is the tracker's name in manifests, reports and --tracker.
const Name = "full"

type tracker struct{ size int64 }

// New returns the tracker of a device of size bytes.
func New(size int64) cbt.Tracker { return tracker{size} }

func (tracker) Name() string { return Name }

// Changed returns the whole device, since whenever.
func (t tracker) Changed(context.Context, cbt.Generation) (*cbt.Set, error) {
	return cbt.Unknown(t.size), nil
}

// Mark returns the empty generation: there is no history to name.
func (tracker) Mark(context.Context) (cbt.Generation, error) { return nil, nil }

func (tracker) Commit(context.Context, cbt.Generation) error { return nil }

func (tracker) Close() error { return nil }
