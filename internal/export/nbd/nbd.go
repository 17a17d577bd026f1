// Package nbd offers a disk to clients of the network block device protocol:
// QEMU, the kernel's nbd driver, nbdkit, libnbd.
//
// The protocol is the NBD project's doc/proto.md. This server speaks the fixed
// newstyle handshake, GO and INFO, TLS, structured replies and block status;
// one export, whose name is empty, on any number of connections at once. It
// takes nothing that a client says on trust: lengths are checked before memory
// is spent, and a client that breaks the protocol loses its connection.
package nbd

import (
	"context"

	"platter/internal/export"
)

// A Context is a kind of block status that clients may ask for by its name,
// such as base:allocation.
type Context struct {
	Name string
	// Status describes length bytes from off on, or as many of them as most
	// entries tell of.
	Status func(ctx context.Context, off, length int64, most int) ([]Status, error)
}

// A Status is the meaning of Flags for Length bytes.
type Status struct {
	Length int64
	Flags  uint32
}

// Flags of base:allocation.
const (
	StatusHole = 1 << iota // not allocated
	StatusZero             // reads as zeros
)

// allocation is the context that every Device has.
func allocation(d export.Device) Context {
	return Context{"base:allocation", func(ctx context.Context, off, length int64, most int) ([]Status, error) {
		list, err := d.Stretches(ctx, off, length, most)
		var out []Status
		for _, s := range list {
			st := Status{Length: s.Length}
			if s.Zero {
				st.Flags = StatusHole | StatusZero
			}
			out = append(out, st)
		}
		return out, err
	}}
}

// Bounds, in bytes unless said otherwise.
const (
	maxRequest  = 32 << 20 // of data; told to clients
	maxOption   = 64 << 10
	maxOptions  = 256 // in one handshake
	maxStatuses = 4096
	maxContexts = 16
	inFlight    = 16       // requests of one connection worked on at once
	maxBuffers  = 64 << 20 // data of all requests at once
	preferred   = 64 << 10 // block size
)
