// Package fat reads FAT12, FAT16 and FAT32, as on boot partitions of UEFI.
//
// FAT knows no owners and no permissions: folders are 0755, files 0644, those
// marked read-only 0444, all of root's. Its times are taken as UTC.
package fat

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"strings"
	"time"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/internal/export/files/tree"
)

// maxFolder is how large folders are, in bytes, by FAT's own rule.
const maxFolder = 65536 * 32

// An FS is one filesystem. It belongs to one goroutine.
type FS struct {
	r        io.ReaderAt
	table    int64 // where the first table begins, in bytes
	data     int64 // where cluster 2 begins
	cluster  int64 // size in bytes
	clusters uint32
	bits     int // of an entry of the table
	root     uint32
	rootAt   int64 // FAT12 and FAT16: the root folder, in bytes
	rootSize int64
	window   []byte // part of the table that was read last
	windowAt int64
}

func u16(b []byte, at int) uint32 { return uint32(binary.LittleEndian.Uint16(b[at:])) }
func u32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

// Open reads the boot sector. size is that of the filesystem's partition.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, 512)
	if err := tree.ReadFull(r, b, 0); err != nil {
		return nil, err
	}
	sector, per := int64(u16(b, 11)), int64(b[13])
	reserved, tables, entries := int64(u16(b, 14)), int64(b[16]), int64(u16(b, 17))
	sectors, perTable := int64(u16(b, 19)), int64(u16(b, 22))
	if sectors == 0 {
		sectors = int64(u32(b, 32))
	}
	wide := perTable == 0
	if wide {
		perTable = int64(u32(b, 36))
	}
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || per == 0 || per&(per-1) != 0 ||
		reserved == 0 || tables == 0 || tables > 4 || perTable == 0 || sectors > size/sector {
		return nil, tree.Damaged("no boot sector of FAT")
	}
	f := &FS{r: r, table: reserved * sector, cluster: per * sector, rootSize: entries * 32}
	f.rootAt = (reserved + tables*perTable) * sector
	f.data = f.rootAt + (f.rootSize+sector-1)/sector*sector
	if f.data >= sectors*sector {
		return nil, tree.Damaged("its tables take all of FAT's %d sectors", sectors)
	}
	n := (sectors*sector - f.data) / f.cluster
	f.bits = 32
	switch {
	case wide:
		f.root, f.rootSize = u32(b, 44), 0
	case n < 4085:
		f.bits = 12
	default:
		f.bits = 16
	}
	if n+2 > perTable*sector*8/int64(f.bits) {
		n = perTable*sector*8/int64(f.bits) - 2
	}
	f.clusters = uint32(max(n, 0))
	return f, nil
}

// next returns the cluster after c, 0 at the end of a chain.
func (f *FS) next(c uint32) (uint32, error) {
	at := int64(c) * int64(f.bits) / 8
	if at < f.windowAt || at+4 > f.windowAt+int64(len(f.window)) {
		// The table may end before the window does: what lies behind it is
		// read too, and never looked at.
		f.windowAt = at &^ 4095
		f.window = make([]byte, 8192)
		if err := tree.ReadFull(f.r, f.window, f.table+f.windowAt); err != nil {
			f.window = nil
			return 0, err
		}
	}
	b := f.window[at-f.windowAt:]
	var n, end uint32
	switch f.bits {
	case 12:
		n, end = u16(b, 0), 0xff8
		if c%2 == 1 {
			n >>= 4
		}
		n &= 0xfff
	case 16:
		n, end = u16(b, 0), 0xfff8
	default:
		n, end = u32(b, 0)&0xfffffff, 0xffffff8
	}
	if n >= end {
		return 0, nil
	}
	return n, f.check(n)
}

func (f *FS) check(c uint32) error {
	if c < 2 || c-2 >= f.clusters {
		return tree.Damaged("cluster %d, of %d", c, f.clusters)
	}
	return nil
}

// chain reads clusters that follow each other in the table. Its last place is
// kept, so that reading on costs nothing.
type chain struct {
	fs    *FS
	first uint32
	at    uint32 // a cluster, and how many there are before it
	index int64
}

func (c *chain) readAt(p []byte, off int64) error {
	for len(p) > 0 {
		if err := c.seek(off / c.fs.cluster); err != nil {
			return err
		}
		in := off % c.fs.cluster
		part := p[:min(int64(len(p)), c.fs.cluster-in)]
		if err := tree.ReadFull(c.fs.r, part, c.fs.data+int64(c.at-2)*c.fs.cluster+in); err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// errShort means that a chain has fewer clusters than asked for.
var errShort = tree.Damaged("a file is longer than its chain of clusters")

func (c *chain) seek(index int64) error {
	if c.at == 0 || index < c.index {
		if err := c.fs.check(c.first); err != nil {
			return err
		}
		c.at, c.index = c.first, 0
	}
	for c.index < index {
		next, err := c.fs.next(c.at)
		if err != nil {
			return err
		}
		if next == 0 || c.index > int64(c.fs.clusters) {
			return errShort
		}
		c.at, c.index = next, c.index+1
	}
	return nil
}

// Root returns the root folder.
func (f *FS) Root() (tree.Node, error) {
	return &node{fs: f, isRoot: true, dir: true, first: f.root}, nil
}

// A node is an entry of a folder.
type node struct {
	fs     *FS
	isRoot bool
	dir    bool
	locked bool
	first  uint32 // cluster
	size   int64
	access time.Time
	modify time.Time
	place  int64 // of a file's entry, for want of a number
	names  map[uint64]*node
}

// Stat returns what FAT knows of a node.
func (n *node) Stat() tree.Stat {
	s := tree.Stat{ID: tree.ID{uint64(n.first), uint64(n.place)}, Links: 1, Size: n.size, Access: n.access, Modify: n.modify}
	switch {
	case n.dir:
		s.Mode, s.ID = unix.S_IFDIR|0o755, tree.ID{uint64(n.first)}
	case n.locked:
		s.Mode = unix.S_IFREG | 0o444
	default:
		s.Mode = unix.S_IFREG | 0o644
	}
	return s
}

// Child returns what an entry names.
func (n *node) Child(_ context.Context, e tree.Entry) (tree.Node, error) {
	child, ok := n.names[e.Ref]
	if !ok {
		return nil, tree.Damaged("no entry %q", e.Name)
	}
	return child, nil
}

// Target fails: FAT has no symbolic links.
func (n *node) Target(context.Context) (string, error) {
	return "", tree.Damaged("a symbolic link on FAT")
}

// Xattrs returns none.
func (n *node) Xattrs(context.Context) ([]tree.Xattr, error) { return nil, nil }

// Close does nothing.
func (n *node) Close() error { return nil }

// Open returns the content of a file.
func (n *node) Open(context.Context) (tree.File, error) {
	return &file{chain: chain{fs: n.fs, first: n.first}, size: n.size}, nil
}

type file struct {
	chain
	size int64
}

// Close does nothing.
func (f *file) Close() error { return nil }

// ReadAt reads the file.
func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	if off >= f.size {
		return 0, io.EOF
	}
	if int64(len(p)) > f.size-off {
		p, err = p[:f.size-off], io.EOF
	}
	if readErr := f.readAt(p, off); readErr != nil {
		return 0, readErr
	}
	return len(p), err
}

// Data returns all that is left: FAT knows no holes.
func (f *file) Data(off int64) (block.Extent, error) {
	if off >= f.size {
		return block.Extent{}, io.EOF
	}
	return block.Extent{Offset: off, Length: f.size - off}, nil
}

// Attributes of an entry.
const (
	attrReadOnly = 0x01
	attrLabel    = 0x08
	attrDir      = 0x10
	attrLong     = 0x0f
)

// Entries reads a folder. An entry has 32 bytes:
//
//	 0:11  name, padded, 0 at the end, 0xe5 deleted    22:26  last write
//	11     attributes                                  26:28  cluster, low
//	12     8: base in lower case, 16: extension        28:32  size in bytes
//	18:20  day of access
//	20:22  cluster, high
//
// Long names come before it, their last part first.
func (n *node) Entries(ctx context.Context, f func(tree.Entry) error) error {
	if !n.dir {
		return tree.Damaged("no folder")
	}
	n.names = map[uint64]*node{}
	c := chain{fs: n.fs, first: n.first}
	b := make([]byte, 512)
	var long longName
	for off := int64(0); off < maxFolder; off += int64(len(b)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n.isRoot && n.fs.rootSize > 0 {
			if off >= n.fs.rootSize {
				return nil
			}
			if err := tree.ReadFull(n.fs.r, b, n.fs.rootAt+off); err != nil {
				return err
			}
		} else if err := c.readAt(b, off); err == errShort {
			return nil // the last cluster may be full
		} else if err != nil {
			return err
		}
		for at := 0; at < len(b); at += 32 {
			e := b[at : at+32]
			switch {
			case e[0] == 0:
				return nil
			case e[0] == 0xe5:
				long = longName{}
				continue
			case e[11]&0x3f == attrLong:
				long.add(e)
				continue
			}
			name := long.take(e)
			if e[11]&attrLabel != 0 || name == "." || name == ".." {
				continue
			}
			ref := uint64(off) + uint64(at)
			n.names[ref] = n.child(e, int64(ref))
			if err := f(tree.Entry{Name: name, Ref: ref}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *node) child(e []byte, place int64) *node {
	c := &node{
		fs: n.fs, dir: e[11]&attrDir != 0, locked: e[11]&attrReadOnly != 0,
		first: u16(e, 20)<<16 | u16(e, 26), size: int64(u32(e, 28)),
		access: stamp(u16(e, 18), 0), modify: stamp(u16(e, 24), u16(e, 22)), place: int64(n.first)<<32 | place,
	}
	if c.fs.bits < 32 {
		c.first &= 0xffff
	}
	if c.dir {
		c.size = 0
	}
	return c
}

func stamp(day, clock uint32) time.Time {
	if day == 0 {
		return time.Unix(0, 0)
	}
	return time.Date(1980+int(day>>9), time.Month(day>>5&15), int(day&31),
		int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}

// A longName is being put together.
type longName struct {
	parts [20][13]uint16
	want  int // parts to come
	count int
	sum   byte
}

// add takes a part: its number and 0x40 if it is the last, thirteen characters
// in three places, and a checksum of the short name.
func (l *longName) add(e []byte) {
	number := int(e[0] & 0x1f)
	if e[0]&0x40 != 0 {
		*l = longName{want: number, count: number, sum: e[13]}
	}
	if number == 0 || number > len(l.parts) || number != l.want || l.sum != e[13] {
		*l = longName{}
		return
	}
	l.want--
	for i := range 13 {
		at := 1 + 2*i
		if i >= 5 {
			at = 14 + 2*(i-5)
		}
		if i >= 11 {
			at = 28 + 2*(i-11)
		}
		l.parts[number-1][i] = uint16(u16(e, at))
	}
}

// take returns the name of an entry, and forgets the long one.
func (l *longName) take(e []byte) string {
	defer func() { *l = longName{} }()
	if l.count == 0 || l.want != 0 || checksum(e) != l.sum {
		return short(e)
	}
	var units []uint16
	for _, p := range l.parts[:l.count] {
		for _, u := range p {
			if u == 0 {
				return string(utf16.Decode(units))
			}
			units = append(units, u)
		}
	}
	return string(utf16.Decode(units))
}

func checksum(e []byte) (sum byte) {
	for _, c := range e[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// short is the name that has no long one, in lower case where a flag says so.
func short(e []byte) string {
	base, ext := latin(e[:8]), latin(e[8:11])
	if e[0] == 0x05 { // stands for 0xe5
		base = latin(append([]byte{0xe5}, e[1:8]...))
	}
	if e[12]&8 != 0 {
		base = strings.ToLower(base)
	}
	if e[12]&16 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		return base + "." + ext
	}
	return base
}

// latin decodes a padded part of a name.
func latin(b []byte) string {
	var s strings.Builder
	for _, c := range bytes.TrimRight(b, " ") {
		s.WriteRune(rune(c))
	}
	return s.String()
}
