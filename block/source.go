package block

import (
	"context"
	"errors"
)

// A Source is a device being read. It is opened read-only and is safe for
// concurrent use.
type Source interface {
	// Info describes the device. Its Size is fixed for the life of the Source.
	Info() Info
	// ReadAt fills p from off. p comes from a Pool (so that O_DIRECT can be
	// used), off is a multiple of 4096, and off+len(p) ends at a multiple of
	// 4096 or at the end of the device. It returns n < len(p) only with an
	// error. A range that the device reports as unreadable gives a *ReadError.
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)
	// Data returns the first range at or after off that may hold anything but
	// zeros: holes of files lie outside it. It returns io.EOF when there is
	// none. Devices that have no holes return all that is left.
	Data(off int64) (Extent, error)
	// Check returns an error when the device is no longer what was opened:
	// another size (ErrResized), or gone. Called before an image is committed.
	Check() error
	Close() error
}

// Errors of this package that callers decide on.
var (
	ErrResized = errors.New("the device changed its size while it was read")
	// ErrInUse means a device is mounted, or part of something that is in use.
	ErrInUse = errors.New("in use")
	// ErrRefused means that a restore target must not be written to.
	ErrRefused = errors.New("target refused")
)

// A ReadError names the range that could not be read.
type ReadError struct {
	Path string
	Extent
	Err error
}
