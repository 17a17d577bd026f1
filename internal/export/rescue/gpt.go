package rescue

import (
	"encoding/binary"
	"hash/crc32"
	"unicode/utf16"
)

// Places on the medium, in sectors: the boot code of a BIOS, then the EFI system
// partition, then the backup of the table.
const (
	codeStart  = 2048
	codeEnd    = 4095
	espStart   = 4096
	tableSize  = 32 // sectors of entries
	gptEntries = 128
)

// GUIDs as they stand on disks: the first three groups little-endian.
var (
	guidBIOSBoot = [16]byte{0x48, 0x61, 0x68, 0x21, 0x49, 0x64, 0x6f, 0x6e, 0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49}
	guidESP      = [16]byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
)

// partition puts the partition tables on a disk: the protective one, whose boot
// sector is the caller's, and both GPTs. id makes their GUIDs.
func partition(disk []byte, id [16]byte) {
	sectors := int64(len(disk) / sectorSize)
	mbr := disk[446:512]
	copy(mbr, []byte{0x80, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0}) // marked active: some firmware wants one
	binary.LittleEndian.PutUint32(mbr[12:], uint32(min(sectors-1, 0xffffffff)))
	mbr[64], mbr[65] = 0x55, 0xaa

	entries := make([]byte, gptEntries*128)
	put := func(n int, kind [16]byte, first, last int64, name string) {
		e := entries[n*128:]
		copy(e, kind[:])
		copy(e[16:], derived(id, byte(n+1)))
		binary.LittleEndian.PutUint64(e[32:], uint64(first))
		binary.LittleEndian.PutUint64(e[40:], uint64(last))
		for i, c := range utf16.Encode([]rune(name)) {
			binary.LittleEndian.PutUint16(e[56+2*i:], c)
		}
	}
	put(0, guidBIOSBoot, codeStart, codeEnd, "boot code")
	put(1, guidESP, espStart, sectors-tableSize-2, "PLATTER")
	copy(disk[2*sectorSize:], entries)
	copy(disk[(sectors-tableSize-1)*sectorSize:], entries)
	header(disk[sectorSize:], entries, id, 1, sectors-1, 2, sectors)
	header(disk[(sectors-1)*sectorSize:], entries, id, sectors-1, 1, sectors-tableSize-1, sectors)
}

// header writes the header of a GPT, little-endian:
//
//	 0:8   "EFI PART"
//	 8:12  version 1.0
//	12:16  its length, 92
//	16:20  CRC-32 of it, with this field zero
//	24:32  its sector
//	32:40  the other's
//	40:56  first and last sector for partitions
//	56:72  GUID of the disk
//	72:80  first sector of the entries
//	80:92  their number, the length of one, CRC-32 of all
func header(h, entries []byte, id [16]byte, self, other, entriesAt, sectors int64) {
	le := binary.LittleEndian
	copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	for i, v := range []int64{self, other, tableSize + 2, sectors - tableSize - 2} {
		le.PutUint64(h[24+8*i:], uint64(v))
	}
	copy(h[56:], derived(id, 0))
	le.PutUint64(h[72:], uint64(entriesAt))
	le.PutUint32(h[80:], gptEntries)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
}

// derived is the nth GUID made of id, marked as a random one.
func derived(id [16]byte, n byte) []byte {
	id[15] ^= n
	id[7] = id[7]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id[:]
}
