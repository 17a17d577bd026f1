package thick

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"platter/block"
)

// The kernel's table of a snapshot ("persistent exception store", version 1),
// little-endian, in chunks of a size that its header names:
//
//	chunk 0: header
//	  0:4    magic
//	  4:8    1 while the snapshot is valid
//	  8:12   version
//	 12:16   chunk size in sectors of 512 bytes
//	chunk 1: an area of the table: records of 16 bytes
//	  0:8    number of a chunk of the volume that was overwritten
//	  8:16   where its old content is; 0 ends the table
//	then as many chunks of old content as an area has records, the next area,
//	and so on.
const (
	magic      = 0x70416e53
	headerSize = 16
	recordSize = 16
	sectorSize = 512
)

// ErrInvalid means that a snapshot ran out of room, or never was one.
var ErrInvalid = errors.New("the snapshot is not valid")

// read calls changed with each extent of a volume that was overwritten since
// the snapshot with this table was taken. r reads the device that the table is
// on, of size bytes, in whole chunks; wanted is the size of a chunk in bytes.
//
// Records of a chunk that the kernel is just writing may be missing: those are
// of writes that had not ended when it was read.
func read(r io.ReaderAt, size, wanted int64, buf []byte, changed func(block.Extent)) error {
	buf = buf[:wanted]
	if _, err := r.ReadAt(buf, 0); err != nil {
		return fmt.Errorf("read the snapshot's header: %w", err)
	}
	if err := header(buf, wanted); err != nil {
		return err
	}
	perArea := wanted / recordSize
	for at := wanted; at+wanted <= size; at += wanted * (perArea + 1) {
		if _, err := r.ReadAt(buf, at); err != nil {
			return fmt.Errorf("read the snapshot's table at %d: %w", at, err)
		}
		for rec := buf; len(rec) > 0; rec = rec[recordSize:] {
			old, now := binary.LittleEndian.Uint64(rec), binary.LittleEndian.Uint64(rec[8:])
			if now == 0 {
				return nil
			}
			if old > 1<<62/uint64(wanted) || now >= uint64(size/wanted) {
				return fmt.Errorf("the snapshot's table at %d says that chunk %d is kept at %d of %d: %w", at, old, now, size/wanted, ErrInvalid)
			}
			changed(block.Extent{Offset: int64(old) * wanted, Length: wanted})
		}
	}
	// The last area ends with the device.
	return nil
}

func header(b []byte, wanted int64) error {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	switch {
	case u32(0) != magic:
		return fmt.Errorf("its magic number is %#x, want %#x: %w", u32(0), uint32(magic), ErrInvalid)
	case u32(8) != 1:
		return fmt.Errorf("its table has version %d, want 1: %w", u32(8), ErrInvalid)
	case u32(4) != 1:
		return fmt.Errorf("it ran out of room: %w", ErrInvalid)
	case int64(u32(12))*sectorSize != wanted:
		return fmt.Errorf("its chunks have %d sectors, want %d: %w", u32(12), wanted/sectorSize, ErrInvalid)
	}
	return nil
}
