package freespace

import (
	"encoding/binary"
	"math/bits"

	"platter/block"
)

// Features of ext2, ext3 and ext4 that change what is said here. What is not
// listed as harmless is not understood.
const (
	extSparse2 = 0x200 // compatible

	extRecover   = 0x4 // incompatible
	extMetaBG    = 0x10
	ext64        = 0x80
	extCsumSeed  = 0x2000
	extIncompats = 0x2 | extMetaBG | 0x40 | ext64 | 0x100 | 0x200 | 0x400 | extCsumSeed | 0x4000 | 0x8000 | 0x10000 | 0x20000

	extSparse    = 0x1 // compatible for reading
	extGDTCsum   = 0x10
	extBigalloc  = 0x200
	extMetaCsum  = 0x400
	extROCompats = extSparse | 0x2 | 0x4 | 0x8 | extGDTCsum | 0x20 | 0x40 | 0x100 | extBigalloc | extMetaCsum | 0x1000 | 0x2000 | 0x8000 | 0x10000
)

const extBlockUninit = 0x2 // of a group: its bitmap was never written

// A group has at most one block of bitmap.
const (
	extMaxBlock  = 65536
	extMaxGroups = 1 << 24
)

// extfs is a filesystem of ext2, ext3 or ext4. Blocks and clusters are counted
// from the first block of the device.
type extfs struct {
	*volume
	sb              []byte
	blockSize       int64
	blocks, first   int64 // of the filesystem, and of its first group
	ratio           int64 // blocks in a cluster
	perGroup        int64 // blocks
	groups          int64
	inodeBlocks     int64 // of a group
	descSize        int64
	metaBG          int64 // first meta block group, 0 for none
	reserved        int64 // blocks for descriptors to come
	compat, ro, inc uint32
	seed            uint32
	hosts           []uint64 // bit for each group that holds what belongs to another
}

func (x *extfs) u16(at int) uint32 { return uint32(binary.LittleEndian.Uint16(x.sb[at:])) }
func (x *extfs) u32(at int) uint32 { return binary.LittleEndian.Uint32(x.sb[at:]) }

// ext reads the bitmaps of all groups, and believes none that its checksum or
// its group's count of free blocks does not bear out.
func ext(v *volume) error {
	x := &extfs{volume: v}
	if err := x.open(); err != nil {
		return err
	}
	x.hosts = make([]uint64, (x.groups+63)/64)
	for g := range x.groups {
		if err := x.look(g); err != nil {
			return err
		}
	}
	for g := range x.groups {
		if err := x.group(g); err != nil {
			return err
		}
	}
	return nil
}

func (x *extfs) open() (err error) {
	if x.sb, err = x.bytes(1024, 1024); err != nil {
		return err
	}
	x.compat, x.inc, x.ro = x.u32(92), x.u32(96), x.u32(100)
	if x.u32(76) == 0 {
		x.compat, x.inc, x.ro = 0, 0, 0 // no features yet, in the first revision
	}
	switch state := x.u16(58); {
	case x.u16(56) != 0xef53:
		return unsure("no superblock of ext4")
	case x.inc&extRecover != 0:
		return unsure("its journal is not empty: it is mounted, or was not unmounted")
	case x.inc&^extIncompats != 0 || x.ro&^extROCompats != 0:
		return unsure("unknown features: incompatible %#x, for reading only %#x", x.inc&^extIncompats, x.ro&^extROCompats)
	case state&1 == 0 || state&2 != 0:
		return unsure("it is mounted, was not unmounted, or has errors (state %#x)", state)
	}
	if x.ro&extMetaCsum != 0 && crc32c(^uint32(0), x.sb[:1020]) != x.u32(1020) {
		return unsure("checksum of the superblock")
	}
	return x.shape()
}

// shape reads sizes, none of which is zero afterwards.
func (x *extfs) shape() error {
	log, logCluster := x.u32(24), x.u32(28)
	if log > 6 || logCluster > 30 || logCluster < log {
		return unsure("blocks of 2^%d KiB in clusters of 2^%d KiB", log, logCluster)
	}
	x.blockSize, x.ratio = 1024<<log, 1
	if x.ro&extBigalloc != 0 {
		x.ratio = 1 << (logCluster - log)
	} else if logCluster != log && x.u32(76) > 0 {
		return unsure("clusters without bigalloc")
	}
	x.blocks, x.first, x.perGroup = int64(x.u32(4)), int64(x.u32(20)), int64(x.u32(32))
	x.descSize = 32
	if x.inc&ext64 != 0 {
		x.blocks |= int64(x.u32(0x150)) << 32
		x.descSize = int64(x.u16(254))
	}
	inodeSize := int64(128)
	if x.u32(76) > 0 {
		inodeSize = int64(x.u16(88))
	}
	inodes := int64(x.u32(40))
	switch {
	case x.blocks <= 0 || x.blocks > x.size()/x.blockSize:
		return unsure("%d blocks of %d bytes in %d bytes", x.blocks, x.blockSize, x.size())
	case x.first > 1 || x.first >= x.blocks:
		return unsure("first block %d", x.first)
	case x.perGroup == 0 || x.perGroup%(8*x.ratio) != 0 || x.perGroup/x.ratio > 8*x.blockSize:
		return unsure("%d blocks in a group", x.perGroup)
	case !powerOfTwo(uint64(x.descSize), 32, 1024) || x.inc&ext64 != 0 && x.descSize < 64:
		return unsure("group descriptors of %d bytes", x.descSize)
	case inodes == 0 || inodes > 8*x.blockSize || !powerOfTwo(uint64(inodeSize), 128, uint64(x.blockSize)):
		return unsure("%d inodes of %d bytes in a group", inodes, inodeSize)
	}
	x.groups = (x.blocks - x.first + x.perGroup - 1) / x.perGroup
	x.inodeBlocks = (inodes*inodeSize + x.blockSize - 1) / x.blockSize
	x.reserved = int64(x.u16(206))
	if x.groups > extMaxGroups {
		return unsure("%d groups", x.groups)
	}
	if x.inc&extMetaBG != 0 {
		x.metaBG = int64(x.u32(260))
	}
	x.seed = crc32c(^uint32(0), x.sb[104:120])
	if x.inc&extCsumSeed != 0 {
		x.seed = x.u32(0x270)
	}
	return nil
}

// perDesc is how many descriptors a block has.
func (x *extfs) perDesc() int64 { return x.blockSize / x.descSize }

// span is the blocks of a group.
func (x *extfs) span(g int64) (first, count int64) {
	first = x.first + g*x.perGroup
	return first, min(x.perGroup, x.blocks-first)
}

// hasSuper reports whether a group has a copy of the superblock.
func (x *extfs) hasSuper(g int64) bool {
	switch {
	case g == 0:
		return true
	case x.compat&extSparse2 != 0:
		return g == int64(x.u32(0x24c)) || g == int64(x.u32(0x250))
	case g == 1 || x.ro&extSparse == 0:
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := g
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

// meta reports whether descriptors of a group lie in its own meta block group.
func (x *extfs) meta(g int64) bool { return x.inc&extMetaBG != 0 && g/x.perDesc() >= x.metaBG }

// desc is the descriptor of one group.
type desc struct {
	bitmap, inodeBitmap, inodeTable int64
	free                            int64 // clusters
	flags                           uint32
	sum                             uint32
	sumBits                         int
}

func (x *extfs) desc(g int64) (d desc, err error) {
	n := g / x.perDesc()
	at := int64(1)
	if x.blockSize == 1024 {
		at = 2
	}
	if x.meta(g) {
		group := n * x.perDesc()
		at, _ = x.span(group)
		if x.hasSuper(group) {
			at++
		}
		if group == 0 && x.blockSize == 1024 && x.first == 0 {
			at++
		}
	} else {
		at += n
	}
	b, err := x.bytes(at*x.blockSize+g%x.perDesc()*x.descSize, int(x.descSize))
	if err != nil {
		return d, err
	}
	if !x.genuine(g, b) {
		return d, unsure("checksum of the descriptor of group %d", g)
	}
	u16 := func(at int) int64 { return int64(binary.LittleEndian.Uint16(b[at:])) }
	u32 := func(at int) int64 { return int64(binary.LittleEndian.Uint32(b[at:])) }
	d = desc{
		bitmap: u32(0), inodeBitmap: u32(4), inodeTable: u32(8), free: u16(12), flags: uint32(u16(18)),
		sum: uint32(u16(24)), sumBits: 16,
	}
	if x.descSize >= 64 {
		d.bitmap |= u32(32) << 32
		d.inodeBitmap |= u32(36) << 32
		d.inodeTable |= u32(40) << 32
		d.free |= u16(44) << 16
		d.sum |= uint32(u16(56)) << 16
		d.sumBits = 32
	}
	for _, e := range [][2]int64{{d.bitmap, 1}, {d.inodeBitmap, 1}, {d.inodeTable, x.inodeBlocks}} {
		if e[0] < x.first || e[0] > x.blocks-e[1] {
			return d, unsure("group %d has its records at block %d, of %d", g, e[0], x.blocks)
		}
	}
	return d, nil
}

// genuine checks the checksum of a descriptor, where there is one.
func (x *extfs) genuine(g int64, b []byte) bool {
	want := uint32(binary.LittleEndian.Uint16(b[30:]))
	number := binary.LittleEndian.AppendUint32(nil, uint32(g))
	var rest []byte
	if len(b) > 32 {
		rest = b[32:]
	}
	switch {
	case x.ro&extMetaCsum != 0:
		sum := crc32c(crc32c(x.seed, number), b[:30])
		return crc32c(crc32c(sum, []byte{0, 0}), rest)&0xffff == want
	case x.ro&extGDTCsum != 0:
		sum := crc16(crc16(crc16(0xffff, x.sb[104:120]), number), b[:30])
		return uint32(crc16(sum, rest)) == want
	}
	return true
}

func crc16(sum uint16, p []byte) uint16 {
	for _, c := range p {
		sum ^= uint16(c)
		for range 8 {
			sum = sum>>1 ^ sum&1*0xa001
		}
	}
	return sum
}

// look notes which groups hold records of the group.
func (x *extfs) look(g int64) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	d, err := x.desc(g)
	if err != nil {
		return err
	}
	for _, e := range [][2]int64{{d.bitmap, 1}, {d.inodeBitmap, 1}, {d.inodeTable, x.inodeBlocks}} {
		for h := (e[0] - x.first) / x.perGroup; h <= (e[0]+e[1]-1-x.first)/x.perGroup; h++ {
			if h != g {
				x.hosts[h/64] |= 1 << (h % 64)
			}
		}
	}
	return nil
}

// group tells what is free in a group.
func (x *extfs) group(g int64) error {
	d, err := x.desc(g)
	if err != nil {
		return err
	}
	if d.flags&extBlockUninit == 0 {
		return x.mapped(g, d)
	}
	if x.ro&(extMetaCsum|extGDTCsum) == 0 {
		return unsure("group %d has no bitmap, in a filesystem that writes all", g)
	}
	return x.unmapped(g, d)
}

// mapped reads a group's bitmap.
func (x *extfs) mapped(g int64, d desc) error {
	b, err := x.bytes(d.bitmap*x.blockSize, int(x.perGroup/x.ratio/8))
	if err != nil {
		return err
	}
	if x.ro&extMetaCsum != 0 && crc32c(x.seed, b)<<(32-d.sumBits) != d.sum<<(32-d.sumBits) {
		return unsure("checksum of the block bitmap of group %d", g)
	}
	first, count := x.span(g)
	clusters := (count + x.ratio - 1) / x.ratio
	if n := clearBits(b, clusters); n != d.free {
		return unsure("group %d has %d free clusters, and its bitmap %d", g, d.free, n)
	}
	for _, e := range x.own(g, d) {
		for c := (e.Offset - first) / x.ratio; c <= (e.End()-1-first)/x.ratio; c++ {
			if b[c/8]>>(c%8)&1 == 0 {
				return unsure("group %d calls its own records free", g)
			}
		}
	}
	for c := int64(0); c < clusters; {
		n := int64(0)
		for c+n < clusters && b[(c+n)/8]>>((c+n)%8)&1 == 0 {
			n++
		}
		from, to := c*x.ratio, min((c+n)*x.ratio, count)
		if n > 0 {
			if err := x.vacant((first+from)*x.blockSize, (to-from)*x.blockSize); err != nil {
				return err
			}
		}
		c += max(n, 1)
	}
	return nil
}

// clearBits counts zeros among the first n bits.
func clearBits(b []byte, n int64) (zeros int64) {
	for i := range n / 8 {
		zeros += int64(bits.OnesCount8(^b[i]))
	}
	if n%8 > 0 {
		zeros += int64(bits.OnesCount8(^b[n/8] & (1<<(n%8) - 1)))
	}
	return zeros
}

// own returns the blocks of a group that its own records lie in, in blocks.
func (x *extfs) own(g int64, d desc) spans {
	first, count := x.span(g)
	base := int64(0)
	if x.hasSuper(g) {
		gdt := (x.groups + x.perDesc() - 1) / x.perDesc()
		if x.inc&extMetaBG != 0 {
			gdt = min(gdt, x.metaBG)
		}
		base = 1 + gdt + x.reserved
	}
	if x.meta(g) {
		base = 1
		if in := g % x.perDesc(); in == 0 || in == 1 || in == x.perDesc()-1 {
			base++
		}
		if !x.hasSuper(g) {
			base--
		}
	}
	var all spans
	if base > 0 {
		all = append(all, block.Extent{Offset: first, Length: min(base, count)})
	}
	for _, e := range [][2]int64{{d.bitmap, 1}, {d.inodeBitmap, 1}, {d.inodeTable, x.inodeBlocks}} {
		from, to := max(e[0], first), min(e[0]+e[1], first+count)
		if from < to {
			all = append(all, block.Extent{Offset: from, Length: to - from})
		}
	}
	return all
}

// unmapped tells of a group that nothing was ever written to. One that holds
// records of other groups counts as used.
func (x *extfs) unmapped(g int64, d desc) error {
	if x.hosts[g/64]>>(g%64)&1 != 0 {
		return nil
	}
	first, count := x.span(g)
	used := x.own(g, d)
	for i := range used { // whole clusters
		from := (used[i].Offset - first) / x.ratio * x.ratio
		to := min((used[i].End()-first+x.ratio-1)/x.ratio*x.ratio, count)
		used[i] = block.Extent{Offset: first + from, Length: to - from}
	}
	var free int64
	var extents []block.Extent
	err := used.outside(block.Extent{Offset: first, Length: count}, func(off, length int64) error {
		extents = append(extents, block.Extent{Offset: off, Length: length})
		free += (length + x.ratio - 1) / x.ratio
		return nil
	})
	if err != nil {
		return err
	}
	if free != d.free {
		return unsure("group %d has %d free clusters, and no bitmap for what else is in it than %d", g, d.free, free)
	}
	for _, e := range extents {
		if err := x.vacant(e.Offset*x.blockSize, e.Length*x.blockSize); err != nil {
			return err
		}
	}
	return nil
}
