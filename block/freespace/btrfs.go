package freespace

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"sort"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"

	"platter/block"
)

const (
	btrfsSuper     = 64 << 10
	btrfsIncompats = 0xfff | 0x10000
	btrfsROCompats = 0xf

	btrfsStriped = 1<<3 | 1<<6 | 1<<7 | 1<<8 // RAID 0, 10, 5, 6

	btrfsRootTree   = 1
	btrfsExtentTree = 2
	btrfsChunkTree  = 3

	btrfsRootItem     = 132
	btrfsExtentItem   = 168
	btrfsMetadataItem = 169
	btrfsChunkItem    = 228

	btrfsHeader    = 101
	btrfsMaxLevel  = 7
	btrfsMaxChunks = 1 << 18
)

// A btrfsKey orders the items of a tree.
type btrfsKey struct {
	object uint64
	kind   byte
	offset uint64
}

func (k btrfsKey) before(o btrfsKey) bool {
	if k.object != o.object {
		return k.object < o.object
	}
	if k.kind != o.kind {
		return k.kind < o.kind
	}
	return k.offset < o.offset
}

// A btrfsChunk maps a range of logical addresses to where this device has it,
// which may be in two places, or in none.
type btrfsChunk struct {
	logical, length int64
	striped         bool
	copies          []int64 // offsets on the device
}

// A btrfsfs is one device of a filesystem. Numbers are little-endian.
type btrfsfs struct {
	*volume
	sb         []byte
	fsid       []byte // of tree blocks
	nodeSize   int64
	device     uint64
	deviceSize int64
	chunks     []btrfsChunk // by logical address
	stripes    spans        // of this device that chunks have
	always     spans        // in use whatever trees say
}

func le32(b []byte, at int) int64  { return int64(binary.LittleEndian.Uint32(b[at:])) }
func le64(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }

// btrfs reads what no extent lies in, and what belongs to no chunk. What the
// extents add up to must be what the superblock says is used.
func btrfs(v *volume) error {
	x := &btrfsfs{volume: v}
	if err := x.open(); err != nil {
		return err
	}
	if err := x.system(); err != nil {
		return err
	}
	if err := x.readChunks(); err != nil {
		return err
	}
	root, level, err := x.extentRoot()
	if err != nil {
		return err
	}
	if err := x.extents(root, level); err != nil {
		return err
	}
	return x.unallocated()
}

// genuine checks the checksum that a block begins with.
func (x *btrfsfs) genuine(kind int, b []byte) bool {
	var sum []byte
	switch kind {
	case 0:
		sum = binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b[32:], crc32.MakeTable(crc32.Castagnoli)))
	case 1:
		sum = binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(b[32:]))
	case 2:
		all := sha256.Sum256(b[32:])
		sum = all[:]
	case 3:
		all := blake2b.Sum256(b[32:])
		sum = all[:]
	default:
		return false
	}
	return bytes.Equal(b[:len(sum)], sum)
}

func (x *btrfsfs) checksum() int { return int(binary.LittleEndian.Uint16(x.sb[196:])) }

func (x *btrfsfs) open() (err error) {
	if x.sb, err = x.bytes(btrfsSuper, 4096); err != nil {
		return err
	}
	inc, ro := le64(x.sb, 188), le64(x.sb, 180)
	x.nodeSize, x.device, x.deviceSize = le32(x.sb, 148), le64(x.sb, 201), int64(le64(x.sb, 209))
	switch {
	case string(x.sb[64:72]) != "_BHRfS_M" || le64(x.sb, 48) != btrfsSuper:
		return unsure("no superblock of btrfs")
	case !x.genuine(x.checksum(), x.sb):
		return unsure("checksum of the superblock")
	case le64(x.sb, 56)&^3 != 0:
		return unsure("flags %#x: it has errors, or is being changed", le64(x.sb, 56))
	case inc&^btrfsIncompats != 0 || ro&^btrfsROCompats != 0:
		return unsure("unknown features: incompatible %#x, for reading only %#x", inc&^btrfsIncompats, ro&^btrfsROCompats)
	case le64(x.sb, 96) != 0:
		return unsure("its log is not empty: it is mounted, or was not unmounted")
	case !powerOfTwo(uint64(x.nodeSize), 4096, 65536):
		return unsure("nodes of %d bytes", x.nodeSize)
	case x.deviceSize <= 0 || x.deviceSize > x.size():
		return unsure("a device of %d bytes, in %d", x.deviceSize, x.size())
	}
	x.fsid = x.sb[32:48]
	if inc&0x400 != 0 { // the trees have a name of their own
		x.fsid = x.sb[571:587]
	}
	x.always = spans{{Offset: 0, Length: 1 << 20}}
	for _, mirror := range []int64{64 << 20, 256 << 30} {
		x.always = append(x.always, block.Extent{Offset: mirror, Length: 64 << 10})
	}
	return nil
}

// system reads the chunks that the chunk tree itself lies in.
func (x *btrfsfs) system() error {
	n := le32(x.sb, 160)
	if n > 2048 {
		return unsure("%d bytes of system chunks", n)
	}
	for b := x.sb[811 : 811+n]; len(b) > 0; {
		if len(b) < 17+80 {
			return unsure("system chunks are cut off")
		}
		size := 17 + 48 + 32*int(binary.LittleEndian.Uint16(b[17+44:]))
		if b[8] != btrfsChunkItem || size > len(b) {
			return unsure("system chunks are cut off")
		}
		if err := x.chunk(le64(b, 9), b[17:size]); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

func (x *btrfsfs) chunk(logical uint64, b []byte) error {
	if len(b) < 80 || len(x.chunks) >= btrfsMaxChunks {
		return unsure("a chunk of %d bytes, after %d", len(b), len(x.chunks))
	}
	length, kind, stripes := le64(b, 0), le64(b, 24), int(binary.LittleEndian.Uint16(b[44:]))
	const most = 1 << 62
	if logical > most || length == 0 || length > most-logical || len(b) != 48+32*stripes || stripes == 0 {
		return unsure("a chunk of %d bytes at %d", length, logical)
	}
	c := btrfsChunk{logical: int64(logical), length: int64(length), striped: kind&btrfsStriped != 0}
	for i := range stripes {
		s := b[48+32*i:]
		if le64(s, 0) != x.device {
			continue
		}
		at := le64(s, 8)
		// A stripe of a striped chunk is shorter: to be on the safe side, the
		// whole length counts.
		room := min(int64(length), x.deviceSize-int64(min(at, most)))
		if at > most || room <= 0 || !c.striped && room < c.length {
			return unsure("a chunk of %d bytes at %d of the device", length, at)
		}
		c.copies = append(c.copies, int64(at))
		x.stripes = append(x.stripes, block.Extent{Offset: int64(at), Length: room})
	}
	x.chunks = append(x.chunks, c)
	return nil
}

// find returns the chunk that an address is in.
func (x *btrfsfs) find(logical int64) *btrfsChunk {
	i := sort.Search(len(x.chunks), func(i int) bool { return x.chunks[i].logical > logical }) - 1
	if i < 0 || logical-x.chunks[i].logical >= x.chunks[i].length {
		return nil
	}
	return &x.chunks[i]
}

// node reads a block of a tree and checks that it is what its parent means.
func (x *btrfsfs) node(logical, generation uint64, level int) ([]byte, error) {
	if logical > 1<<62 {
		return nil, unsure("a tree block at %d", logical)
	}
	c := x.find(int64(logical))
	if c == nil || c.striped || len(c.copies) == 0 || int64(logical)-c.logical > c.length-x.nodeSize {
		return nil, unsure("the tree block at %d is not on this device alone", logical)
	}
	b, err := x.bytes(c.copies[0]+int64(logical)-c.logical, int(x.nodeSize))
	if err != nil {
		return nil, err
	}
	switch {
	case !x.genuine(x.checksum(), b):
		return nil, unsure("checksum of the tree block at %d", logical)
	case le64(b, 48) != logical || le64(b, 80) != generation || int(b[100]) != level || !bytes.Equal(b[32:48], x.fsid):
		return nil, unsure("the tree block at %d is another one", logical)
	}
	return b, nil
}

// walk calls f with the items of a tree in order.
func (x *btrfsfs) walk(owner, logical, generation uint64, level int, f func(k btrfsKey, item []byte) error) error {
	last, begun := btrfsKey{}, false
	var down func(logical, generation uint64, level int) error
	down = func(logical, generation uint64, level int) error {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		b, err := x.node(logical, generation, level)
		if err != nil {
			return err
		}
		if le64(b, 88) != owner {
			return unsure("the tree block at %d is of another tree", logical)
		}
		size := 25
		if level > 0 {
			size = 33
		}
		count := int(le32(b, 96))
		if count > (len(b)-btrfsHeader)/size {
			return unsure("%d items in the tree block at %d", count, logical)
		}
		for i := range count {
			p := b[btrfsHeader+i*size:]
			k := btrfsKey{le64(p, 0), p[8], le64(p, 9)}
			if level > 0 {
				// The first of a node may be less than what is below it, and
				// never less than what came before.
				if begun && !last.before(k) {
					return unsure("the tree block at %d is out of order", logical)
				}
				if err := down(le64(p, 17), le64(p, 25), level-1); err != nil {
					return err
				}
				continue
			}
			if begun && !last.before(k) {
				return unsure("the tree block at %d is out of order", logical)
			}
			last, begun = k, true
			at, n := le32(p, 17), le32(p, 21)
			if at > int64(len(b)-btrfsHeader) || n > int64(len(b)-btrfsHeader)-at {
				return unsure("an item in the tree block at %d", logical)
			}
			if err := f(k, b[btrfsHeader+at:btrfsHeader+at+n]); err != nil {
				return err
			}
		}
		return nil
	}
	if level > btrfsMaxLevel {
		return unsure("a tree of %d levels", level)
	}
	return down(logical, generation, level)
}

// readChunks reads the chunk tree.
func (x *btrfsfs) readChunks() error {
	byAddress := func(list []btrfsChunk) {
		slices.SortFunc(list, func(a, b btrfsChunk) int { return int(min(1, max(-1, a.logical-b.logical))) })
	}
	byAddress(x.chunks)
	all := &btrfsfs{device: x.device, deviceSize: x.deviceSize}
	err := x.walk(btrfsChunkTree, le64(x.sb, 88), le64(x.sb, 164), int(x.sb[199]), func(k btrfsKey, item []byte) error {
		if k.kind != btrfsChunkItem {
			return nil
		}
		return all.chunk(k.offset, item)
	})
	if err != nil {
		return err
	}
	x.chunks, x.stripes = all.chunks, all.stripes
	byAddress(x.chunks)
	for i := 1; i < len(x.chunks); i++ {
		if before := x.chunks[i-1]; before.logical+before.length > x.chunks[i].logical {
			return unsure("chunks overlap at %d", x.chunks[i].logical)
		}
	}
	return nil
}

type btrfsRoot struct {
	logical, generation uint64
	level               int
}

func (x *btrfsfs) extentRoot() (root btrfsRoot, level int, err error) {
	found := false
	err = x.walk(btrfsRootTree, le64(x.sb, 80), le64(x.sb, 72), int(x.sb[198]), func(k btrfsKey, item []byte) error {
		if k.object != btrfsExtentTree || k.kind != btrfsRootItem {
			return nil
		}
		if found || len(item) < 239 {
			return unsure("the root of the extent tree")
		}
		root, found = btrfsRoot{le64(item, 176), le64(item, 160), int(item[238])}, true
		return nil
	})
	if err == nil && !found {
		err = unsure("there is no extent tree")
	}
	return root, root.level, err
}

// extents tells what of the chunks no extent lies in.
func (x *btrfsfs) extents(root btrfsRoot, level int) error {
	g := &btrfsGaps{btrfsfs: x}
	if len(x.chunks) > 0 {
		g.at = x.chunks[0].logical
	}
	var used uint64
	err := x.walk(btrfsExtentTree, root.logical, root.generation, level, func(k btrfsKey, _ []byte) error {
		length := k.offset
		switch k.kind {
		case btrfsExtentItem:
		case btrfsMetadataItem:
			length = uint64(x.nodeSize)
		default:
			return nil
		}
		if k.object > 1<<62 || length == 0 || length > 1<<62 {
			return unsure("an extent of %d bytes at %d", length, k.object)
		}
		used += length
		return g.extent(int64(k.object), int64(length))
	})
	if err != nil {
		return err
	}
	if want := le64(x.sb, 120); used != want {
		return unsure("%d bytes are used, and its extents have %d", want, used)
	}
	return g.until(len(x.chunks))
}

// btrfsGaps goes through the chunks from one extent to the next.
type btrfsGaps struct {
	*btrfsfs
	chunk int   // that the walk is in
	at    int64 // logical address after the last extent
}

func (g *btrfsGaps) extent(logical, length int64) error {
	i := sort.Search(len(g.chunks), func(i int) bool { return g.chunks[i].logical > logical }) - 1
	if i < g.chunk || logical-g.chunks[i].logical > g.chunks[i].length-length {
		return unsure("the extent at %d is in no chunk", logical)
	}
	if err := g.until(i); err != nil {
		return err
	}
	if logical < g.at {
		return unsure("extents overlap at %d", logical)
	}
	if err := g.gap(logical); err != nil {
		return err
	}
	g.at = logical + length
	return nil
}

// until ends the chunks before the i-th.
func (g *btrfsGaps) until(i int) error {
	for ; g.chunk < i; g.chunk++ {
		c := g.chunks[g.chunk]
		if err := g.gap(c.logical + c.length); err != nil {
			return err
		}
		if g.chunk+1 < len(g.chunks) {
			g.at = g.chunks[g.chunk+1].logical
		}
	}
	return nil
}

// gap says that the chunk holds nothing up to an address.
func (g *btrfsGaps) gap(to int64) error {
	c := g.chunks[g.chunk]
	if c.striped {
		return nil
	}
	for _, at := range c.copies {
		e := block.Extent{Offset: at + g.at - c.logical, Length: to - g.at}
		if err := g.always.outside(e, g.vacant); err != nil {
			return err
		}
	}
	return nil
}

// unallocated tells what of the device belongs to no chunk.
func (x *btrfsfs) unallocated() error {
	sort.Slice(x.stripes, func(i, j int) bool { return x.stripes[i].Offset < x.stripes[j].Offset })
	at := int64(0)
	for _, e := range append(x.stripes, block.Extent{Offset: x.deviceSize}) {
		if e.Offset > at {
			if err := x.always.outside(block.Extent{Offset: at, Length: e.Offset - at}, x.vacant); err != nil {
				return err
			}
		}
		at = max(at, e.End())
	}
	return nil
}
