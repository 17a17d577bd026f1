// Package protocol has the numbers of the NBD protocol that both ends need to
// know, as the document of the protocol, doc/proto.md of the NBD project, has
// them.
package protocol

// Numbers, by what they begin with: magic numbers, flags of the handshake,
// options, replies to options and what they inform of, flags of an export,
// commands and their flags, chunks of a reply, errors.
const (
	MagicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	MagicOption     = 0x49484156454f5054 // "IHAVEOPT"
	MagicReply      = 0x0003e889045565a9
	MagicRequest    = 0x25609513
	MagicSimple     = 0x67446698
	MagicStructured = 0x668e33ef

	HandshakeFixed    = 1 // flags of both sides
	HandshakeNoZeroes = 2

	OptExportName  = 1
	OptAbort       = 2
	OptList        = 3
	OptStartTLS    = 5
	OptInfo        = 6
	OptGo          = 7
	OptStructured  = 8
	OptListContext = 9
	OptSetContext  = 10

	RepAck        = 1
	RepServer     = 2
	RepInfo       = 3
	RepContext    = 4
	RepError      = 1 << 31
	RepUnsup      = RepError + 1
	RepPolicy     = RepError + 2
	RepInvalid    = RepError + 3
	RepTLSNeeded  = RepError + 5
	RepUnknown    = RepError + 6
	RepTooBig     = RepError + 9
	InfoExport    = 0
	InfoBlockSize = 3

	FlagHas         = 1 << 0
	FlagReadOnly    = 1 << 1
	FlagFlush       = 1 << 2
	FlagFUA         = 1 << 3
	FlagTrim        = 1 << 5
	FlagWriteZeroes = 1 << 6
	FlagDF          = 1 << 7
	FlagMultiConn   = 1 << 8
	FlagCache       = 1 << 10

	CmdRead        = 0
	CmdWrite       = 1
	CmdDisconnect  = 2
	CmdFlush       = 3
	CmdTrim        = 4
	CmdCache       = 5
	CmdWriteZeroes = 6
	CmdStatus      = 7

	CmdFlagFUA    = 1 << 0
	CmdFlagNoHole = 1 << 1
	CmdFlagDF     = 1 << 2
	CmdFlagOne    = 1 << 3

	ChunkNone        = 0
	ChunkData        = 1
	ChunkHole        = 2
	ChunkStatus      = 5
	ChunkError       = 1<<15 + 1
	ChunkErrorOffset = 1<<15 + 2
	ChunkDone        = 1 // flag

	ErrPerm     = 1
	ErrIO       = 5
	ErrInval    = 22
	ErrNoSpace  = 28
	ErrOverflow = 75
	ErrNotSup   = 95
	ErrShutdown = 108
)
