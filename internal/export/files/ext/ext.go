// Package ext reads ext2, ext3 and ext4: files with their holes, hard and
// symbolic links, devices, owners, times, extended attributes and ACLs.
//
// A filesystem whose journal holds writes is not read: what its files are is
// known only once the journal was replayed.
package ext

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"platter/internal/export/files/tree"
)

// Incompatible features: those that change nothing for a reader, or are
// understood here.
const (
	featRecover  = 0x4
	featMetaBG   = 0x10
	feat64       = 0x80
	featEAInode  = 0x400
	featKnown    = 0x2 | featMetaBG | 0x40 | feat64 | 0x100 | 0x200 | featEAInode | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
	roSparse     = 0x1
	compatSparse = 0x200
)

const (
	rootInode  = 2
	maxBlock   = 65536
	superblock = 1024 // where it is, and its size
)

// An FS is one filesystem. It is safe for concurrent use if its reader is.
type FS struct {
	r           io.ReaderAt
	blockSize   int64
	blocks      int64
	first       int64 // block of the first group
	perGroup    int64 // blocks
	inodes      int64
	groupInodes int64
	inodeSize   int64
	descSize    int64
	metaBG      int64 // first meta block group
	compat      uint32
	incompat    uint32
	ro          uint32
	backups     [2]int64 // groups that hold the copies under sparse_super2
}

// le reads numbers of bytes that are known to be there.
type le []byte

func (b le) u16(at int) uint32 { return uint32(binary.LittleEndian.Uint16(b[at:])) }
func (b le) u32(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

// Open reads the superblock. size is that of the filesystem's partition.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	sb := make(le, superblock)
	if err := tree.ReadFull(r, sb, superblock); err != nil {
		return nil, err
	}
	if sb.u16(56) != 0xef53 {
		return nil, tree.Damaged("no superblock of ext4")
	}
	f := &FS{r: r, inodeSize: 128, descSize: 32}
	if sb.u32(76) > 0 {
		f.compat, f.incompat, f.ro, f.inodeSize = sb.u32(92), sb.u32(96), sb.u32(100), int64(sb.u16(88))
	}
	switch {
	case f.incompat&featRecover != 0:
		return nil, tree.NeedsKernel("its journal holds writes: it was mounted when it was imaged")
	case f.incompat&^featKnown != 0:
		return nil, tree.NeedsKernel("features %#x of ext4 are not known", f.incompat&^featKnown)
	case sb.u32(24) > 6:
		return nil, tree.Damaged("blocks of 2^%d KiB", sb.u32(24))
	}
	f.blockSize = 1024 << sb.u32(24)
	f.blocks, f.first, f.perGroup = int64(sb.u32(4)), int64(sb.u32(20)), int64(sb.u32(32))
	f.inodes, f.groupInodes = int64(sb.u32(0)), int64(sb.u32(40))
	f.backups = [2]int64{int64(sb.u32(0x24c)), int64(sb.u32(0x250))}
	if f.incompat&feat64 != 0 {
		f.blocks |= int64(sb.u32(0x150)) << 32
		f.descSize = int64(sb.u16(254))
	}
	if f.incompat&featMetaBG != 0 {
		f.metaBG = int64(sb.u32(260))
	}
	switch {
	case f.blocks <= f.first || f.blocks > size/f.blockSize || f.first > 1:
		return nil, tree.Damaged("%d blocks of %d bytes from %d on, in %d bytes", f.blocks, f.blockSize, f.first, size)
	case f.perGroup == 0 || f.groupInodes == 0 || f.groupInodes > 8*f.blockSize:
		return nil, tree.Damaged("%d blocks and %d inodes in a group", f.perGroup, f.groupInodes)
	case !powerOfTwo(f.inodeSize, 128, f.blockSize) || !powerOfTwo(f.descSize, 32, 1024) || f.incompat&feat64 != 0 && f.descSize < 64:
		return nil, tree.Damaged("inodes of %d bytes, descriptors of %d", f.inodeSize, f.descSize)
	}
	return f, nil
}

func powerOfTwo(n, low, high int64) bool { return n >= low && n <= high && n&(n-1) == 0 }

// Root returns the root folder.
func (f *FS) Root() (tree.Node, error) { return f.inode(rootInode) }

// inode reads inode n.
func (f *FS) inode(n uint64) (*inode, error) {
	if n == 0 || n > uint64(f.inodes) {
		return nil, tree.Damaged("inode %d, of %d", n, f.inodes)
	}
	group, index := int64(n-1)/f.groupInodes, int64(n-1)%f.groupInodes
	table, err := f.inodeTable(group)
	if err != nil {
		return nil, err
	}
	in := &inode{fs: f, number: n, b: make(le, f.inodeSize)}
	if err := tree.ReadFull(f.r, in.b, table*f.blockSize+index*f.inodeSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	return in, nil
}

// inodeTable returns the block where the inodes of a group begin.
func (f *FS) inodeTable(group int64) (int64, error) {
	per := f.blockSize / f.descSize
	at := int64(1)
	if f.blockSize == 1024 {
		at = 2
	}
	if meta := group / per; f.incompat&featMetaBG != 0 && meta >= f.metaBG {
		host := meta * per
		at = f.first + host*f.perGroup
		if f.hasSuper(host) {
			at++
		}
		if host == 0 && f.blockSize == 1024 && f.first == 0 {
			at++
		}
	} else {
		at += meta
	}
	d := make(le, f.descSize)
	if err := tree.ReadFull(f.r, d, at*f.blockSize+group%per*f.descSize); err != nil {
		return 0, fmt.Errorf("group %d: %w", group, err)
	}
	table := int64(d.u32(8))
	if f.descSize >= 64 {
		table |= int64(d.u32(40)) << 32
	}
	if table <= 0 || table >= f.blocks {
		return 0, tree.Damaged("group %d has its inodes at block %d, of %d", group, table, f.blocks)
	}
	return table, nil
}

// hasSuper reports whether a group has a copy of the superblock.
func (f *FS) hasSuper(g int64) bool {
	switch {
	case g == 0:
		return true
	case f.compat&compatSparse != 0:
		return g == f.backups[0] || g == f.backups[1]
	case g == 1 || f.ro&roSparse == 0:
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

// block reads one block.
func (f *FS) block(n int64) (le, error) {
	if n <= 0 || n >= f.blocks {
		return nil, tree.Damaged("block %d, of %d", n, f.blocks)
	}
	b := make(le, f.blockSize)
	return b, tree.ReadFull(f.r, b, n*f.blockSize)
}

var _ tree.Node = (*inode)(nil)

// Child returns the inode of an entry.
func (in *inode) Child(_ context.Context, e tree.Entry) (tree.Node, error) {
	n, err := in.fs.inode(e.Ref)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Close does nothing: an inode is only memory.
func (in *inode) Close() error { return nil }
