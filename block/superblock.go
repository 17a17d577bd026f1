package block

import (
	"bytes"
	"encoding/binary"
	"io"
)

// probeSize is how much of a device's start the signatures lie in: btrfs has
// the last one, 4 KiB at 64 KiB.
const probeSize = 68 << 10

// A signature recognises one content.
type signature struct {
	name  string
	match func(d *head) bool
}

// signatures in the order they are tried: what a device is a member of comes
// before what may shine through from inside it.
func signatures() []signature {
	return []signature{
		{"linux_raid_member", isMD},
		{"LVM2_member", isLVM},
		{"crypto_LUKS", isLUKS},
		{"zfs_member", isZFS},
		{"BitLocker", func(d *head) bool { return d.has(3, "-FVE-FS-") }},
		{"xfs", isXFS},
		{"btrfs", isBtrfs},
		{"ext2", func(d *head) bool { return extVersion(d) == 2 }},
		{"ext3", func(d *head) bool { return extVersion(d) == 3 }},
		{"ext4", func(d *head) bool { return extVersion(d) == 4 }},
		{"f2fs", func(d *head) bool { return d.u32(1024) == 0xf2f52010 }},
		{"swap", isSwap},
		{"swsuspend", isSuspended},
		{"squashfs", func(d *head) bool { return d.has(0, "hsqs") && d.u16(28) == 4 }},
		{"iso9660", func(d *head) bool { return d.has(0x8001, "CD001") }},
		{"ntfs", isNTFS},
		{"exfat", func(d *head) bool { return d.has(3, "EXFAT   ") }},
		{"vfat", isFAT},
	}
}

// superblock returns what an extent of a device holds as a whole.
func superblock(r io.ReaderAt, e Extent) string {
	d := &head{r: r, e: e, b: make([]byte, probeSize)}
	n, err := readFull(r, d.b[:min(e.Length, probeSize)], e.Offset)
	if err != nil && n == 0 {
		return ""
	}
	d.b = d.b[:n]
	for _, s := range signatures() {
		if s.match(d) {
			return s.name
		}
	}
	return ""
}

// head is the beginning of a device. Numbers beyond its end are 0.
type head struct {
	r io.ReaderAt
	e Extent
	b []byte
}

func (d *head) bytes(at, n int) []byte {
	if at < 0 || at > len(d.b)-n {
		return make([]byte, n)
	}
	return d.b[at : at+n]
}

func (d *head) has(at int, s string) bool { return string(d.bytes(at, len(s))) == s }
func (d *head) u16(at int) uint16         { return binary.LittleEndian.Uint16(d.bytes(at, 2)) }
func (d *head) u32(at int) uint32         { return binary.LittleEndian.Uint32(d.bytes(at, 4)) }
func (d *head) u64(at int) uint64         { return binary.LittleEndian.Uint64(d.bytes(at, 8)) }
func (d *head) be32(at int) uint32        { return binary.BigEndian.Uint32(d.bytes(at, 4)) }
func (d *head) be16(at int) uint16        { return binary.BigEndian.Uint16(d.bytes(at, 2)) }

// far reads from beyond the head; it returns zeros where that fails.
func (d *head) far(off int64, n int) *head {
	b := make([]byte, n)
	if off >= 0 && off <= d.e.Length-int64(n) {
		if _, err := readFull(d.r, b, d.e.Offset+off); err != nil {
			clear(b)
		}
	}
	return &head{b: b}
}

func powerOfTwo(n, low, high uint32) bool { return n >= low && n <= high && n&(n-1) == 0 }

const mdMagic = 0xa92b4efc

// isMD finds the superblock of an array: 1.1 at the start, 1.2 at 4 KiB, 1.0
// and 0.90 near the end.
func isMD(d *head) bool {
	v1 := func(sb *head, at int, sector int64) bool {
		return sb.u32(at) == mdMagic && sb.u32(at+4) == 1 && sb.u64(at+128) == uint64(sector)
	}
	if v1(d, 0, 0) || v1(d, 4096, 8) {
		return true
	}
	sectors := d.e.Length / 512
	if at := (sectors - 16) &^ 7; at > 0 && v1(d.far(at*512, 256), 0, at) {
		return true
	}
	at := d.e.Length&^0xffff - 0x10000
	if at < 0 {
		return false
	}
	sb := d.far(at, 256)
	return sb.u32(0) == mdMagic && sb.u32(4) == 0 && sb.u32(8) == 90 ||
		sb.be32(0) == mdMagic && sb.be32(4) == 0 && sb.be32(8) == 90
}

// isLVM finds a label in one of the first four sectors.
func isLVM(d *head) bool {
	for i := range 4 {
		at := i * 512
		if d.has(at, "LABELONE") && d.u64(at+8) == uint64(i) && d.has(at+24, "LVM2 001") {
			return true
		}
	}
	return false
}

func isLUKS(d *head) bool {
	version := d.be16(6)
	return d.has(0, "LUKS\xba\xbe") && (version == 1 || version == 2)
}

// isZFS finds a label: packed pairs at 16 KiB, and at 128 KiB an array whose
// entries begin with a magic in the pool's byte order.
func isZFS(d *head) bool {
	pairs := d.bytes(16<<10, 512)
	if pairs[0] != 1 || !bytes.Contains(pairs, []byte("version")) {
		return false
	}
	const magic = 0x00bab10c
	ring := d.far(128<<10, 128<<10)
	for at := 0; at < len(ring.b); at += 1024 {
		if ring.u64(at) == magic || binary.BigEndian.Uint64(ring.b[at:]) == magic {
			return true
		}
	}
	return false
}

func isXFS(d *head) bool {
	version := d.be16(100) & 0xf
	return d.has(0, "XFSB") && powerOfTwo(d.be32(4), 512, 65536) &&
		powerOfTwo(uint32(d.be16(102)), 512, 32768) && version >= 1 && version <= 5
}

// isBtrfs wants the first copy of the superblock to know its own place.
func isBtrfs(d *head) bool {
	return d.has(65536+64, "_BHRfS_M") && d.u64(65536+48) == 65536
}

// extVersion returns 2, 3 or 4 by the features a filesystem asks for, 0 for
// none.
func extVersion(d *head) int {
	const sb = 1024
	if d.u16(sb+56) != 0xef53 || d.u32(sb+24) > 6 || d.u32(sb+40) == 0 {
		return 0
	}
	const (
		journal        = 0x4   // compatible
		externalDevice = 0x8   // incompatible: is only a journal
		incompat2      = 0x12  // file types, meta block groups
		incompat3      = 0x16  // and recovery
		readOnly23     = 0x007 // sparse superblocks, large files, b-trees
	)
	compat, incompat, ro := d.u32(sb+92), d.u32(sb+96), d.u32(sb+100)
	switch {
	case incompat&externalDevice != 0:
		return 0
	case compat&journal == 0 && incompat&^incompat2 == 0 && ro&^readOnly23 == 0:
		return 2
	case compat&journal != 0 && incompat&^incompat3 == 0 && ro&^readOnly23 == 0:
		return 3
	}
	return 4
}

// Swap has its mark at the end of the first page, whose size is that of the
// machine that made it.
func atPageEnd(d *head, marks ...string) bool {
	for page := 4096; page <= 65536; page *= 2 {
		for _, mark := range marks {
			if d.has(page-10, mark) {
				return true
			}
		}
	}
	return false
}

func isSwap(d *head) bool { return atPageEnd(d, "SWAPSPACE2", "SWAP-SPACE") }

func isSuspended(d *head) bool {
	return atPageEnd(d, "S1SUSPEND\x00", "S2SUSPEND\x00", "ULSUSPEND\x00", "LINHIB0001")
}

func isNTFS(d *head) bool {
	return d.has(3, "NTFS    ") && powerOfTwo(uint32(d.u16(11)), 256, 4096) && d.bytes(13, 1)[0] != 0
}

// isFAT wants a sound parameter block, and the name that formatters leave.
func isFAT(d *head) bool {
	b := d.bytes(0, 512)
	if !powerOfTwo(uint32(d.u16(11)), 512, 4096) || !powerOfTwo(uint32(b[13]), 1, 128) {
		return false
	}
	if d.u16(14) == 0 || b[16] < 1 || b[16] > 2 || b[21] != 0xf0 && b[21] < 0xf8 {
		return false
	}
	return d.has(82, "FAT32   ") || d.has(82, "MSWIN") || d.has(54, "FAT1") || d.has(54, "FAT     ") || d.has(54, "MSDOS") ||
		(b[0] == 0xeb || b[0] == 0xe9) && b[510] == 0x55 && b[511] == 0xaa && zeros(b[mbrEntries:510])
}
