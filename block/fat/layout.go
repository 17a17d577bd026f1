package fat

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
)

// A Layout is a filesystem laid out anew: what of it is new, and from where the
// contents of files come.
type Layout struct {
	Sector int64 // bytes
	Bits   int64 // 12, 16 or 32

	off    int64 // of the filesystem on its disk, before and after
	pieces []piece
	copies []move
}

// A piece is written as it is, at an offset of the filesystem.
type piece struct {
	at int64
	b  []byte
}

// A move is a part of a file: length bytes, and zeros up to padded.
type move struct{ from, to, length, padded int64 }

// Plan lays the filesystem of length bytes at off of r out anew for sectors of
// the given size, in the same place. It reads tables and folders, and writes
// nothing. The error wraps ErrUnfit where it cannot be done.
func Plan(r io.ReaderAt, off, length int64, sector int) (*Layout, error) {
	s, err := open(r, off, length)
	if err != nil {
		return nil, err
	}
	p := &planner{source: s, layout: &Layout{Sector: int64(sector), off: off}}
	root, err := p.readRoot()
	if err != nil {
		return nil, err
	}
	if err := p.size(length, int64(sector), len(root)); err != nil {
		return nil, err
	}
	if err := p.folders(root); err != nil {
		return nil, err
	}
	p.records()
	return p.layout, nil
}

// Write puts the filesystem onto w, which holds anything; the contents of files
// come from r, which the plan was made from.
func (l *Layout) Write(ctx context.Context, r io.ReaderAt, w io.WriterAt) error {
	buf := make([]byte, 1<<20)
	for _, m := range l.copies {
		for done := int64(0); done < m.padded; {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := buf[:min(int64(len(buf)), m.padded-done)]
			clear(part)
			if want := part[:max(0, min(int64(len(part)), m.length-done))]; len(want) > 0 {
				if n, err := r.ReadAt(want, l.off+m.from+done); n < len(want) {
					return fmt.Errorf("read the FAT filesystem at %d: %w", l.off+m.from+done, err)
				}
			}
			if _, err := w.WriteAt(part, l.off+m.to+done); err != nil {
				return err
			}
			done += int64(len(part))
		}
	}
	// What leads to the files is last, and the boot sector the last of that.
	for _, p := range l.pieces {
		if _, err := w.WriteAt(p.b, l.off+p.at); err != nil {
			return err
		}
	}
	return nil
}

// A planner makes a Layout of a source.
type planner struct {
	*source
	layout *Layout
	to     shape
	table2 []byte // of to
	next   uint32 // cluster
	root32 uint32 // cluster of the root folder, 0 but with 32 bits
}

// readRoot returns the root folder as it is.
func (p *planner) readRoot() ([]byte, error) {
	if p.bits == 32 {
		chain, err := p.chain(p.first)
		if err != nil {
			return nil, err
		}
		return p.readFolder(chain)
	}
	b := make([]byte, p.root*32)
	if err := p.read(b, p.data()-p.rootSectors()*p.sector); err != nil {
		return nil, err
	}
	return cut(b), nil
}

// size finds a shape in which the clusters are as many as their kind of table
// may have.
func (p *planner) size(length, sector int64, root int) error {
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 {
		return unfit("sectors of %d bytes", sector)
	}
	cluster := max(sector, 4096)
	for _, kind := range []struct{ bits, least, most int64 }{{32, 65525, maxClusters}, {16, 4085, 65524}, {12, 1, 4084}} {
		s := shape{sector: sector, cluster: cluster, bits: kind.bits, total: length / sector, reserved: 1, tables: 2}
		if kind.bits == 32 {
			s.reserved = 32
		} else {
			perSector := sector / 32
			s.root = (max(512, int64(root)/32) + perSector - 1) / perSector * perSector
		}
		for s.table = 1; ; s.table++ {
			s.clusters = (s.total*sector - s.data()) / cluster
			if s.clusters > kind.most {
				s.total -= (s.clusters - kind.most) * cluster / sector
				continue
			}
			if (s.clusters+2)*s.bits <= s.table*sector*8 {
				break
			}
		}
		if s.clusters >= kind.least {
			p.to, p.next = s, 2
			p.layout.Bits = s.bits
			p.table2 = make([]byte, s.table*sector)
			return nil
		}
	}
	return unfit("%d bytes are too few", length)
}

// take gives a chain of n clusters, 0 for none.
func (p *planner) take(n int64) (first uint32, err error) {
	if n == 0 {
		return 0, nil
	}
	if int64(p.next)+n > p.to.clusters+2 {
		return 0, unfit("its files do not fit into %d clusters of %d bytes", p.to.clusters, p.to.cluster)
	}
	first = p.next
	for ; n > 0; n-- {
		next := p.next + 1
		if n == 1 {
			next = p.to.end()
		}
		p.to.set(p.table2, p.next, next)
		p.next++
	}
	return first, nil
}

// A folder is one that was read, and where it will be.
type folder struct {
	content     []byte
	self, above uint32 // clusters, 0 for the root folder
	at          int64  // where it will be
	room        int64  // bytes
}

// folders goes through all of them, the root folder first.
func (p *planner) folders(content []byte) (err error) {
	root := folder{content: content, at: (p.to.reserved + p.to.tables*p.to.table) * p.to.sector, room: p.to.root * 32}
	if p.to.bits == 32 {
		if root, err = p.place(content, 0); err != nil {
			return err
		}
		p.root32, root.self = root.self, 0
	}
	for list := []folder{root}; len(list) > 0; list = list[1:] {
		below, err := p.convert(list[0])
		if err != nil {
			return err
		}
		list = append(list, below...)
	}
	return nil
}

// place finds a place for a folder.
func (p *planner) place(content []byte, above uint32) (f folder, err error) {
	// One entry more: an empty one ends the folder.
	n := max(1, (int64(len(content))+32+p.to.cluster-1)/p.to.cluster)
	f = folder{content: content, above: above, room: n * p.to.cluster}
	if f.self, err = p.take(n); err == nil {
		f.at = p.to.place(f.self)
	}
	return f, err
}

// convert has a folder's entries lead to the new places, and returns the
// folders below.
func (p *planner) convert(f folder) (below []folder, err error) {
	for at := 0; at+32 <= len(f.content); at += 32 {
		e := f.content[at : at+32]
		const label, dir, long = 0x08, 0x10, 0x0f
		switch {
		case e[0] == 0xe5 || e[11]&long == long:
			continue
		case e[11]&label != 0:
			setFirst(e, 0)
		case string(e[:11]) == ".          ":
			setFirst(e, f.self)
		case string(e[:11]) == "..         ":
			setFirst(e, f.above)
		case e[11]&dir != 0:
			sub, err := p.below(e, f.self)
			if err != nil {
				return nil, err
			}
			below = append(below, sub)
		default:
			if err := p.file(e); err != nil {
				return nil, err
			}
		}
	}
	b := make([]byte, f.room)
	copy(b, f.content)
	p.layout.pieces = append(p.layout.pieces, piece{f.at, b})
	return below, nil
}

func (p *planner) below(e []byte, self uint32) (folder, error) {
	chain, err := p.chain(p.firstOf(e))
	if err != nil {
		return folder{}, err
	}
	content, err := p.readFolder(chain)
	if err != nil {
		return folder{}, err
	}
	f, err := p.place(content, self)
	setFirst(e, f.self)
	return f, err
}

// file moves a file's content.
func (p *planner) file(e []byte) error {
	size := int64(binary.LittleEndian.Uint32(e[28:]))
	var chain []uint32
	if first := p.firstOf(e); first != 0 {
		var err error
		if chain, err = p.chain(first); err != nil {
			return err
		}
	}
	if int64(len(chain))*p.cluster < size {
		return unfit("a file of %d bytes has %d clusters: check it with fsck.fat", size, len(chain))
	}
	first, err := p.take((size + p.to.cluster - 1) / p.to.cluster)
	if err != nil {
		return err
	}
	setFirst(e, first)
	to := p.to.place(max(first, 2))
	for n := 0; n < len(chain) && size > 0; {
		run := 1
		for n+run < len(chain) && chain[n+run] == chain[n]+uint32(run) {
			run++
		}
		length := min(int64(run)*p.cluster, size)
		m := move{p.source.place(chain[n]), to, length, length}
		if size -= length; size == 0 {
			m.padded = (to+length-p.to.data()+p.to.cluster-1)/p.to.cluster*p.to.cluster + p.to.data() - to
		}
		p.layout.copies = append(p.layout.copies, m)
		to, n = to+length, n+run
	}
	return nil
}

func (p *planner) firstOf(e []byte) uint32 {
	first := uint32(binary.LittleEndian.Uint16(e[26:]))
	if p.bits == 32 {
		first |= uint32(binary.LittleEndian.Uint16(e[20:])) << 16
	}
	return first
}

func setFirst(e []byte, cluster uint32) {
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint16(e[20:], uint16(cluster>>16))
}

// records adds tables and boot sectors.
func (p *planner) records() {
	t := &p.to
	t.set(p.table2, 0, t.end()&^0xff|uint32(p.boot[21]))
	t.set(p.table2, 1, t.end())
	add := func(sector int64, b []byte) {
		p.layout.pieces = append(p.layout.pieces, piece{sector * t.sector, b})
	}
	add(t.reserved+t.table, p.table2)
	add(t.reserved, p.table2)
	boot := p.bootSector()
	if t.bits == 32 {
		info := make([]byte, t.sector)
		copy(info, "RRaA")
		copy(info[484:], "rrAa")
		binary.LittleEndian.PutUint32(info[488:], uint32(t.clusters+2)-p.next)
		binary.LittleEndian.PutUint32(info[492:], p.next-1)
		info[510], info[511] = 0x55, 0xaa
		add(7, info)
		add(6, boot)
		add(1, info)
	}
	add(0, boot)
}

// bootSector is that of the source with another shape.
func (p *planner) bootSector() []byte {
	t, old := &p.to, p.boot
	b := make([]byte, t.sector)
	put16 := func(at int, v int64) { binary.LittleEndian.PutUint16(b[at:], uint16(v)) }
	put32 := func(at int, v int64) { binary.LittleEndian.PutUint32(b[at:], uint32(v)) }
	copy(b, old[:28])
	put16(11, t.sector)
	b[13] = byte(t.cluster / t.sector)
	put16(14, t.reserved)
	b[16] = byte(t.tables)
	put16(17, t.root)
	put16(19, 0)
	put16(22, 0)
	put32(28, p.u32(28)*p.sector/t.sector)
	put32(32, t.total)
	from, to := 36, 36 // of drive number, volume ID, label and name
	if p.bits == 32 {
		from = 64
	}
	if t.bits == 32 {
		put32(36, t.table)
		put32(44, int64(p.root32))
		put16(48, 1)
		put16(50, 6)
		to = 64
	} else {
		put16(22, t.table)
	}
	copy(b[to:to+26], old[from:from+26])
	b[to+1] = 0 // it is clean
	if old[from+2] == 0x29 {
		copy(b[to+18:], fmt.Sprintf("FAT%-5d", t.bits))
	}
	if p.bits == t.bits {
		copy(b[to+26:510], old[from+26:510])
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}
