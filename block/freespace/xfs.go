package freespace

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	xfsNeedsRepair = 0x10
	xfsIncompats   = 0x1ff &^ xfsNeedsRepair
	xfsROCompats   = 0xf
	xfsMaxLevels   = 12
)

// xfsfs is a filesystem of XFS. Numbers are big-endian.
type xfsfs struct {
	*volume
	sb                []byte
	blockSize, sector int64
	blocks, agBlocks  int64
	agCount           int64
	agLog             uint
	v5                bool
	log               int64 // first block, of the device
	logBlocks         int64
}

func be16(b []byte, at int) int64 { return int64(binary.BigEndian.Uint16(b[at:])) }
func be32(b []byte, at int) int64 { return int64(binary.BigEndian.Uint32(b[at:])) }
func be64(b []byte, at int) int64 { return int64(binary.BigEndian.Uint64(b[at:])) }

// xfs reads the tree of free extents by block number of each allocation group.
// What they add up to must be what the group's header says.
func xfs(v *volume) error {
	x := &xfsfs{volume: v}
	if err := x.open(); err != nil {
		return err
	}
	if err := x.settled(); err != nil {
		return err
	}
	for n := range x.agCount {
		if err := x.group(n); err != nil {
			return err
		}
	}
	return nil
}

// genuineXFS checks the checksum at an offset of a sector or block of version 5.
func genuineXFS(b []byte, at int) bool {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, b[:at])
	sum = crc32.Update(sum, table, make([]byte, 4))
	return crc32.Update(sum, table, b[at+4:]) == binary.LittleEndian.Uint32(b[at:])
}

func (x *xfsfs) open() (err error) {
	if x.sb, err = x.bytes(0, 512); err != nil {
		return err
	}
	version := be16(x.sb, 100) & 0xf
	x.v5 = version == 5
	x.blockSize, x.sector = be32(x.sb, 4), be16(x.sb, 102)
	switch {
	case string(x.sb[:4]) != "XFSB" || version != 4 && version != 5:
		return unsure("no superblock of version 4 or 5")
	case !powerOfTwo(uint64(x.blockSize), 512, 65536) || !powerOfTwo(uint64(x.sector), 512, 32768) || x.sector > x.blockSize:
		return unsure("blocks of %d bytes, sectors of %d", x.blockSize, x.sector)
	}
	if x.sb, err = x.bytes(0, int(x.sector)); err != nil {
		return err
	}
	if x.v5 {
		inc, ro := be32(x.sb, 216), be32(x.sb, 212)
		switch {
		case !genuineXFS(x.sb, 224):
			return unsure("checksum of the superblock")
		case inc&^xfsIncompats != 0 || ro&^xfsROCompats != 0:
			return unsure("unknown features, or it needs repair: incompatible %#x, for reading only %#x", inc&^xfsIncompats, ro&^xfsROCompats)
		}
	}
	x.blocks, x.agBlocks, x.agCount, x.agLog = be64(x.sb, 8), be32(x.sb, 84), be32(x.sb, 88), uint(x.sb[124])
	logStart := be64(x.sb, 48)
	x.logBlocks = be32(x.sb, 96)
	switch {
	case x.sb[126] != 0:
		return unsure("mkfs did not finish")
	case x.blocks <= 0 || x.blocks > x.size()/x.blockSize:
		return unsure("%d blocks of %d bytes in %d bytes", x.blocks, x.blockSize, x.size())
	case x.agBlocks < 16 || x.agCount != (x.blocks+x.agBlocks-1)/x.agBlocks || x.agLog > 31 || x.agBlocks > 1<<x.agLog:
		return unsure("%d groups of %d blocks", x.agCount, x.agBlocks)
	case logStart <= 0:
		return unsure("its log is on another device")
	}
	group, at := logStart>>x.agLog, logStart&(1<<x.agLog-1)
	x.log = group*x.agBlocks + at
	if group >= x.agCount || x.logBlocks <= 0 || x.logBlocks > x.agBlocks-at || x.log+x.logBlocks > x.blocks {
		return unsure("a log of %d blocks at block %d of group %d", x.logBlocks, at, group)
	}
	return nil
}

// An xfsGroup is an allocation group while its tree is walked.
type xfsGroup struct {
	*xfsfs
	number        int64
	first, length int64 // blocks
	next          int64 // first block after the last free extent
	free          int64 // blocks, so far
	visits        int64
}

func (x *xfsfs) group(n int64) error {
	g := &xfsGroup{xfsfs: x, number: n, first: n * x.agBlocks}
	g.length = min(x.agBlocks, x.blocks-g.first)
	b, err := x.bytes(g.first*x.blockSize+x.sector, int(x.sector))
	if err != nil {
		return err
	}
	root, level, free := be32(b, 16), be32(b, 28), be32(b, 52)
	switch {
	case string(b[:4]) != "XAGF" || be32(b, 4) != 1 || be32(b, 8) != n || be32(b, 12) != g.length:
		return unsure("header of group %d", n)
	case x.v5 && !genuineXFS(b, 216):
		return unsure("checksum of the header of group %d", n)
	case level < 1 || level > xfsMaxLevels:
		return unsure("a tree of %d levels in group %d", level, n)
	}
	// The four headers come first.
	g.next = (4*x.sector + x.blockSize - 1) / x.blockSize
	if err := g.node(root, level-1); err != nil {
		return err
	}
	if g.free != free {
		return unsure("group %d has %d free blocks, and its tree %d", n, free, g.free)
	}
	return nil
}

// node walks what is below a block of the tree.
func (g *xfsGroup) node(at, level int64) error {
	if err := g.ctx.Err(); err != nil {
		return err
	}
	if g.visits++; at <= 0 || at >= g.length || g.visits > g.length {
		return unsure("a tree with block %d, in group %d of %d blocks", at, g.number, g.length)
	}
	b, err := g.bytes((g.first+at)*g.blockSize, int(g.blockSize))
	if err != nil {
		return err
	}
	magic, header := "ABTB", 16
	if g.v5 {
		magic, header = "AB3B", 56
	}
	count := int(be16(b, 6))
	most := (len(b) - header) / 8
	if level > 0 {
		most = (len(b) - header) / 12
	}
	daddr := (g.first + at) * (g.blockSize / 512)
	switch {
	case string(b[:4]) != magic || be16(b, 4) != level || count > most:
		return unsure("block %d of the tree of group %d", at, g.number)
	case g.v5 && (!genuineXFS(b, 52) || be64(b, 16) != daddr || be32(b, 48) != g.number):
		return unsure("checksum of block %d of the tree of group %d", at, g.number)
	}
	for i := range count {
		if level > 0 {
			err = g.node(be32(b, header+most*8+i*4), level-1)
		} else {
			err = g.extent(be32(b, header+i*8), be32(b, header+i*8+4))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *xfsGroup) extent(from, count int64) error {
	at := g.first + from
	switch {
	case from < g.next || count <= 0 || count > g.length-from:
		return unsure("%d free blocks at %d of group %d", count, from, g.number)
	case at < g.log+g.logBlocks && at+count > g.log:
		return unsure("group %d calls the log free", g.number)
	}
	g.next, g.free = from+count, g.free+count
	return g.vacant(at*g.blockSize, count*g.blockSize)
}
