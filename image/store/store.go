// Package store is where the objects of a repository live: a directory now,
// other places behind the same interface.
//
// Objects are written once, whole, under names that are never reused, and are
// never modified.
package store

import (
	"context"
	"errors"
	"time"
)

// Errors that callers decide on. Others mean that the store failed.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrFull     = errors.New("no space left")
	// ErrNotDurable means that the object was written but may not survive a
	// crash, or may be damaged. The name is used up: write the object again
	// under a new one, never retry.
	ErrNotDurable = errors.New("not durable")
	// ErrTooLarge means that an object is longer than Get was allowed to read.
	ErrTooLarge = errors.New("larger than allowed")
	// ErrUnreachable means that the store did not answer for as long as it is
	// waited for. Whatever is asked next may take as long to fail.
	ErrUnreachable = errors.New("the store cannot be reached")
	// ErrName means that a name or prefix is none that a store takes.
	ErrName = errors.New("not an object name")
)

// Info describes a stored object.
type Info struct {
	Name     string
	Size     int64
	Modified time.Time // by the store's own clock
}

// A Store keeps objects by name. Names are slash-separated parts of
// [a-z0-9-] (CheckName), and no store uses a part of a name as a path before
// checking it. No object's name continues that of another with a slash.
// A Store is safe for concurrent use.
type Store interface {
	// Put writes a new object from the concatenation of parts and returns
	// when it is durable, its name included. It returns ErrExists, and leaves
	// the object as it was, when the name is taken. On any error no object
	// (whole or in part) is left under the name, except that after a crash or
	// ErrNotDurable it may or may not be there. The parts are not kept, and
	// may be used again when Put returns. Parts from AllocAligned may be
	// written past the page cache.
	Put(ctx context.Context, name string, parts ...[]byte) error
	// ReadAt fills p from offset off of the object. A read past its end is an
	// io.ErrUnexpectedEOF.
	ReadAt(ctx context.Context, name string, p []byte, off int64) error
	// Get returns a whole object, refusing one above limit bytes unread.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// Head describes an object.
	Head(ctx context.Context, name string) (Info, error)
	// List calls f for every object whose name begins with prefix (which ends
	// in "/" or is empty), in order of name, until f returns an error. An
	// object put or deleted meanwhile may or may not appear; every other one
	// appears once. Unfinished writes never appear, and what appears is
	// durable, whoever wrote it.
	List(ctx context.Context, prefix string, f func(Info) error) error
	// Delete removes an object durably. One that is not there is ErrNotFound.
	Delete(ctx context.Context, name string) error
	// Now is the time by the store's own clock.
	Now(ctx context.Context) (time.Time, error)
	// Location names the store for people, without secrets.
	Location() string
	Close() error
}

// A Remote store is reached by requests that may have their effect after the
// process that made them has died.
type Remote interface {
	// Flight is for how long at most.
	Flight() time.Duration
}
