package segment

import (
	"bytes"
	"fmt"

	"github.com/pierrec/lz4/v4"

	"platter/image"
)

// A Codec encodes and decodes payloads. The zero Codec is ready. It belongs to
// one goroutine.
type Codec struct {
	out, check []byte // for encoding, made when first needed
	open       []byte // a payload that was sealed
}

// Encode returns plain as an LZ4 block, or plain itself where LZ4 saves less
// than a 64th. The result is valid until the next call.
//
// It is decoded again and compared with plain before it is returned: an
// encoder's or memory's mistake must not be found on the day of a restore.
func (c *Codec) Encode(plain []byte) (stored []byte, flags uint8, err error) {
	if len(c.out) < len(plain) {
		c.out, c.check = make([]byte, len(plain)), make([]byte, len(plain))
	}
	// LZ4's table comes from a pool: most codecs never encode.
	n, err := lz4.CompressBlock(plain, c.out[:len(plain)-len(plain)/64], nil)
	if err != nil || n == 0 {
		return plain, 0, nil // it does not fit: incompressible
	}
	if err := c.Decode(c.check[:len(plain)], c.out[:n], FlagLZ4); err != nil || !bytes.Equal(c.check[:len(plain)], plain) {
		return nil, 0, fmt.Errorf("encode %d bytes: they decode to something else (%v): this machine's memory or processor makes mistakes", len(plain), err)
	}
	return c.out[:n], FlagLZ4, nil
}

// Decode decodes stored into dst, which it must fill exactly.
func (c *Codec) Decode(dst, stored []byte, flags uint8) error {
	switch flags {
	case 0:
		if len(stored) != len(dst) {
			return fmt.Errorf("raw payload of %d bytes, want %d: %w", len(stored), len(dst), image.ErrCorrupt)
		}
		copy(dst, stored)
	case FlagLZ4:
		n, err := lz4.UncompressBlock(stored, dst)
		if err != nil {
			return fmt.Errorf("lz4: %w: %w", err, image.ErrCorrupt)
		}
		if n != len(dst) {
			return fmt.Errorf("lz4 payload decodes to %d bytes, want %d: %w", n, len(dst), image.ErrCorrupt)
		}
	default:
		return fmt.Errorf("payload with flags %#x: %w", flags, image.ErrCorrupt)
	}
	return nil
}
