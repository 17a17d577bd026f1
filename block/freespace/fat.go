package freespace

import (
	"bytes"
	"encoding/binary"
)

// A fatfs is a filesystem of FAT12, FAT16 or FAT32.
type fatfs struct {
	*volume
	boot       []byte
	bits       int64 // of an entry: 12, 16 or 32
	sector     int64 // bytes
	cluster    int64 // bytes
	table      int64 // offset of the first table
	tableBytes int64
	data       int64 // offset of the second cluster
	clusters   int64
}

func (f *fatfs) u16(at int) int64 { return int64(binary.LittleEndian.Uint16(f.boot[at:])) }

// fat reads the table of clusters. It has no checksum: both copies of it must
// be the same.
func fat(v *volume) error {
	f := &fatfs{volume: v}
	if err := f.open(); err != nil {
		return err
	}
	if err := f.clean(); err != nil {
		return err
	}
	free, err := f.walk()
	if err != nil {
		return err
	}
	return f.counted(free)
}

func (f *fatfs) open() (err error) {
	if f.boot, err = f.bytes(0, 512); err != nil {
		return err
	}
	f.sector, f.cluster = f.u16(11), int64(f.boot[13])
	tables, rootEntries := int64(f.boot[16]), f.u16(17)
	total, length := f.u16(19), f.u16(22)
	if total == 0 {
		total = le32(f.boot, 32)
	}
	wide := length == 0
	if wide {
		length = le32(f.boot, 36)
	}
	switch {
	case !powerOfTwo(uint64(f.sector), 512, 4096) || !powerOfTwo(uint64(f.cluster), 1, 128):
		return unsure("clusters of %d sectors of %d bytes", f.cluster, f.sector)
	case tables != 2:
		return unsure("%d copies of its table: of one alone nothing tells whether it is right", tables)
	case total*f.sector > f.size() || f.u16(14) == 0 || length == 0:
		return unsure("%d sectors of %d bytes in %d bytes", total, f.sector, f.size())
	case wide && f.u16(40)&0x80 != 0:
		return unsure("its tables are not kept alike")
	}
	root := (rootEntries*32 + f.sector - 1) / f.sector
	first := f.u16(14) + tables*length + root
	f.clusters = (total - first) / f.cluster
	if first >= total || f.clusters < 1 {
		return unsure("%d sectors of records, of %d", first, total)
	}
	switch {
	case wide:
		f.bits = 32
	case f.clusters < 4085:
		f.bits = 12
	default:
		f.bits = 16
	}
	if f.clusters >= 65525 != wide || f.clusters > 0x0ffffff5 {
		return unsure("%d clusters, in a FAT%d", f.clusters, f.bits)
	}
	f.cluster *= f.sector
	f.table, f.tableBytes, f.data = f.u16(14)*f.sector, length*f.sector, first*f.sector
	if (f.clusters+2)*f.bits/8 > f.tableBytes {
		return unsure("a table of %d bytes for %d clusters", f.tableBytes, f.clusters)
	}
	return nil
}

// clean looks at the marks of a filesystem that is mounted.
func (f *fatfs) clean() error {
	state := f.boot[37]
	if f.bits == 32 {
		state = f.boot[65]
	}
	if state&3 != 0 {
		return unsure("it is mounted, was not unmounted, or has errors")
	}
	b, err := f.bytes(f.table, 8)
	if err != nil {
		return err
	}
	if f.bits == 16 && b[3]&0xc0 != 0xc0 || f.bits == 32 && b[7]&0x0c != 0x0c {
		return unsure("it was not unmounted, or has errors")
	}
	return nil
}

// walk goes through both tables a piece at a time, three bytes of which hold
// two entries of FAT12.
func (f *fatfs) walk() (free int64, err error) {
	const piece = 48 << 10
	a, b := make([]byte, piece), make([]byte, piece)
	perPiece := piece * 8 / f.bits
	end := f.clusters + 2
	for first := int64(0); first < end; first += perPiece {
		if err := f.ctx.Err(); err != nil {
			return 0, err
		}
		off := first * f.bits / 8
		n := min(piece, f.tableBytes-off)
		if err := f.at(f.table+off, a[:n]); err != nil {
			return 0, err
		}
		if err := f.at(f.table+f.tableBytes+off, b[:n]); err != nil {
			return 0, err
		}
		if !bytes.Equal(a[:n], b[:n]) {
			return 0, unsure("its two tables differ")
		}
		for i := max(2, first); i < min(first+perPiece, end); i++ {
			if f.entry(a, i-first) != 0 {
				continue
			}
			free++
			if err := f.vacant(f.data+(i-2)*f.cluster, f.cluster); err != nil {
				return 0, err
			}
		}
	}
	return free, nil
}

func (f *fatfs) entry(b []byte, i int64) uint32 {
	switch f.bits {
	case 12:
		n := uint32(binary.LittleEndian.Uint16(b[i*3/2:]))
		return n >> (4 * (i & 1)) & 0xfff
	case 16:
		return uint32(binary.LittleEndian.Uint16(b[i*2:]))
	}
	return binary.LittleEndian.Uint32(b[i*4:]) & 0x0fffffff
}

// counted compares with the count that FAT32 keeps, if it does.
func (f *fatfs) counted(free int64) error {
	if f.bits != 32 {
		return nil
	}
	at := f.u16(48)
	if at == 0 || at >= f.u16(14) {
		return nil
	}
	b, err := f.bytes(at*f.sector, 512)
	if err != nil {
		return err
	}
	if count := le32(b, 488); string(b[:4]) == "RRaA" && count != 0xffffffff && count != free {
		return unsure("it has %d free clusters, and its table %d", count, free)
	}
	return nil
}
