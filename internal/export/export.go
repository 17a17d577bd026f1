// Package export holds what an image is when it is offered as a disk: a Device
// that its sub-packages serve, by the network or by a file system, and a
// Writer where an overlay takes what is written.
package export

import (
	"context"

	"platter/image/reader"
)

// A Device is a disk that can be read. Its methods are called from many
// goroutines at once, never with a range outside the disk. A reader.Disk is
// one.
type Device interface {
	Size() int64 // bytes, fixed
	// ReadAt fills p from byte off.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Stretches describes length bytes from off on, or as many of them as most
	// stretches tell of. Neighbours differ.
	Stretches(ctx context.Context, off, length int64, most int) ([]reader.Stretch, error)
}

// A Writer is a Device that can be written to.
type Writer interface {
	Device
	// WriteAt writes p at byte off. It is durable after Flush.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Zero makes a range read as zeros.
	Zero(ctx context.Context, off, length int64) error
	Flush(ctx context.Context) error
}
