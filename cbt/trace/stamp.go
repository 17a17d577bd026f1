package trace

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"platter/cbt"
)

// A stamp is a generation as the manifest keeps it: little-endian, in order.
type stamp struct {
	Version uint8
	Tracer  [16]byte
	Boot    [16]byte
	History uint64
	Nonce   uint64
	Number  uint64
	Disk    uint32
	Seq     uint64
	Offset  int64 // of the device on its disk, bytes
	Length  int64
}

var stampBytes = binary.Size(stamp{})

func (s stamp) encode() cbt.Generation {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, s) // a buffer takes all
	return b.Bytes()
}

func decodeStamp(g cbt.Generation) (s stamp, err error) {
	if len(g) != stampBytes {
		return s, fmt.Errorf("generation of %d bytes, the tracer's have %d", len(g), stampBytes)
	}
	if err := binary.Read(bytes.NewReader(g), binary.LittleEndian, &s); err != nil {
		return s, err
	}
	if s.Version != version {
		return s, fmt.Errorf("generation of version %d of the tracer, this is %d", s.Version, version)
	}
	return s, nil
}
