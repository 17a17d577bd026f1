package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pierrec/lz4/v4"
)

// Places in the header of a bootable kernel, the "boot protocol" of x86.
const (
	setupSectorsAt  = 0x1f1 // u8: sectors of setup code, after the first
	payloadOffsetAt = 0x248 // u32: from the end of the setup code
	payloadLengthAt = 0x24c // u32
)

// An LZ4 stream of the old format: the magic number, then blocks, each after
// its length, of which all but the last hold lz4Block bytes.
const (
	lz4Magic = 0x184c2102
	lz4Block = 8 << 20
)

var errNotLZ4 = errors.New("the kernel is not compressed by LZ4")

// extract returns the ELF file within a bootable kernel: an emulated machine
// starts it at once, without first unpacking it instruction by instruction.
func extract(image []byte) ([]byte, error) {
	if len(image) < 4096 {
		return nil, fmt.Errorf("a kernel of %d bytes", len(image))
	}
	at := (int(image[setupSectorsAt])+1)*512 + int(binary.LittleEndian.Uint32(image[payloadOffsetAt:]))
	length := int(binary.LittleEndian.Uint32(image[payloadLengthAt:]))
	if length < 8 || at+length > len(image) {
		return nil, fmt.Errorf("a payload of %d bytes at %d in a kernel of %d", length, at, len(image))
	}
	payload := image[at : at+length]
	if binary.LittleEndian.Uint32(payload) != lz4Magic {
		return nil, errNotLZ4
	}
	// The last 4 bytes are the length of it all.
	whole := make([]byte, 0, binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	for payload = payload[4:]; len(payload) > 4; {
		n := int(binary.LittleEndian.Uint32(payload))
		if n > len(payload)-8 {
			return nil, fmt.Errorf("an LZ4 block of %d bytes where %d are left", n, len(payload)-8)
		}
		plain := make([]byte, lz4Block)
		m, err := lz4.UncompressBlock(payload[4:4+n], plain)
		if err != nil {
			return nil, fmt.Errorf("unpack the kernel: %w", err)
		}
		whole, payload = append(whole, plain[:m]...), payload[4+n:]
	}
	if _, err := elf.NewFile(bytes.NewReader(whole)); err != nil {
		return nil, fmt.Errorf("the kernel's payload: %w", err)
	}
	return whole, nil
}
