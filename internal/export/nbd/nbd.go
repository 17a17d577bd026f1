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

// Numbers of the protocol.
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	handshakeFixed    = 1 // flags of both sides
	handshakeNoZeroes = 2

	optExportName  = 1
	optAbort       = 2
	optList        = 3
	optStartTLS    = 5
	optInfo        = 6
	optGo          = 7
	optStructured  = 8
	optListContext = 9
	optSetContext  = 10

	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repContext    = 4
	repError      = 1 << 31
	repUnsup      = repError + 1
	repPolicy     = repError + 2
	repInvalid    = repError + 3
	repTLSNeeded  = repError + 5
	repUnknown    = repError + 6
	repTooBig     = repError + 9
	infoExport    = 0
	infoBlockSize = 3

	flagHas         = 1 << 0
	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagFUA         = 1 << 3
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6
	flagDF          = 1 << 7
	flagMultiConn   = 1 << 8
	flagCache       = 1 << 10

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdStatus      = 7

	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagOne    = 1 << 3

	chunkNone   = 0
	chunkData   = 1
	chunkHole   = 2
	chunkStatus = 5
	chunkError  = 1<<15 + 1
	chunkDone   = 1 // flag

	errPerm     = 1
	errIO       = 5
	errInval    = 22
	errNoSpace  = 28
	errOverflow = 75
	errNotSup   = 95
	errShutdown = 108
)

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
