// Package grub puts GRUB on a disk for a BIOS to start, as its own installer
// would, which needs a device and root.
package grub

import (
	"encoding/binary"
	"fmt"
)

// The boot sector loads the first sector of the core image, which loads the
// rest by a list of runs of sectors in itself.
const (
	sectorSize    = 512
	coreListAt    = 0x1f4 // in the core's first sector: start (8), sectors (2), segment (2)
	coreSegment   = 0x820 // where the rest of the core is loaded
	kernelStartAt = 0x5c  // in the boot sector: the core's first sector (8)
	driveCheckAt  = 0x66  // in the boot sector: a jump that GRUB's installer removes
)

// Code is what the BIOS and GRUB itself load.
type Code struct {
	Core []byte // lies at the place that it was made for
	boot []byte
}

// Place makes the boot sector and the core image, as grub-mkimage made it, fit
// a place of so many sectors, which begins at sector start of its disk.
func Place(boot, core []byte, start, sectors int64) (*Code, error) {
	if len(boot) < sectorSize || len(core) < sectorSize {
		return nil, fmt.Errorf("GRUB's boot sector has %d bytes and its core %d: they are not whole", len(boot), len(core))
	}
	core = append([]byte(nil), core...)
	for len(core)%sectorSize != 0 {
		core = append(core, 0)
	}
	if int64(len(core)) > sectors*sectorSize {
		return nil, fmt.Errorf("GRUB's core of %d bytes does not fit into %d", len(core), sectors*sectorSize)
	}
	binary.LittleEndian.PutUint64(core[coreListAt:], uint64(start+1))
	binary.LittleEndian.PutUint16(core[coreListAt+8:], uint16(len(core)/sectorSize-1))
	binary.LittleEndian.PutUint16(core[coreListAt+10:], coreSegment)
	b := append([]byte(nil), boot[:sectorSize]...)
	binary.LittleEndian.PutUint64(b[kernelStartAt:], uint64(start))
	b[driveCheckAt], b[driveCheckAt+1] = 0x90, 0x90
	return &Code{core, b}, nil
}

// Sector returns the boot sector for a disk whose first sector is old: its
// parameter block, signature and partition table are kept.
func (c *Code) Sector(old []byte) []byte {
	b := append([]byte(nil), c.boot...)
	copy(b[0x03:0x5a], old[0x03:0x5a])
	copy(b[0x1b8:0x200], old[0x1b8:0x200])
	return b
}
