package block

import (
	"encoding/binary"
	"fmt"
)

// A link is one sector of the chain that an MBR's partitions are listed in: the
// first sector of the disk, or one before a logical partition.
type link struct {
	at    int64 // bytes
	b     []byte
	base  int64 // where its partitions are counted from, in bytes
	outer int64 // where links are counted from: the extended partition
}

// entry is one of a link's entries.
func (l *link) entry(i int) []byte { return l.b[mbrEntries+i*mbrEntrySize:][:mbrEntrySize] }

// mbr fits an MBR and the chain of its logical partitions.
func (f *fitter) mbr() error {
	if f.to.Size == f.size && !f.converts() && !f.to.Grow {
		return nil
	}
	chain, err := f.chain()
	if err != nil {
		return err
	}
	top := f.table.last()
	for _, p := range f.table.inUse() {
		_, end, err := f.place(p.Number, p.Extent)
		if err != nil {
			return err
		}
		if (end+1)*f.sector > f.to.Size {
			return f.tooSmall(fmt.Sprintf("partition %d reaches to byte %d of %d", p.Number, p.End(), f.to.Size))
		}
	}
	if f.converts() {
		f.changed("write the partition table for sectors of %d bytes, instead of %d", f.sector, f.from)
	}
	end := f.to.Size
	if f.to.Grow && top != nil {
		const mib = 1 << 20
		if end = min(end/mib*mib, (1<<32-1)*f.sector); end > top.End() {
			f.grown(top.Number, Extent{top.Offset, end - top.Offset})
		}
	}
	// The links that are found from others go before those.
	for i := len(chain) - 1; i >= 0; i-- {
		if err := f.relink(&chain[i], top, end); err != nil {
			return err
		}
	}
	return nil
}

// chain reads the first sector and all links behind it.
func (f *fitter) chain() ([]link, error) {
	chain := []link{{b: make([]byte, mbrSize)}}
	if _, err := readFull(f.image, chain[0].b, 0); err != nil {
		return nil, err
	}
	for i := range 4 {
		e := chain[0].entry(i)
		if !isExtended(e[4]) {
			continue
		}
		x := mbrExtent(e, f.from)
		seen := map[int64]bool{}
		for at := x.Offset; at >= 0 && !seen[at] && len(chain) <= maxLogical && at+mbrSize <= min(x.End(), f.size); {
			seen[at] = true
			l := link{at: at, b: make([]byte, mbrSize), base: at, outer: x.Offset}
			if _, err := readFull(f.image, l.b, at); err != nil {
				return nil, err
			}
			if !isMBR(l.b) {
				break
			}
			chain = append(chain, l)
			at = -1
			for n := range 2 {
				if e := l.entry(n); isExtended(e[4]) {
					at = x.Offset + mbrExtent(e, f.from).Offset
				}
			}
		}
		break // the kernel follows one
	}
	return chain, nil
}

// relink writes one link for the target. Its extended entries end where the
// target does, and reach up to end around a partition that grows.
func (f *fitter) relink(l *link, top *Partition, end int64) error {
	changed := false
	for i := range 4 {
		e := l.entry(i)
		if e[4] == 0 {
			continue
		}
		base := l.base
		if isExtended(e[4]) && l.outer > 0 {
			base = l.outer
		}
		x := mbrExtent(e, f.from)
		x.Offset += base
		is := x
		switch {
		case f.Grown != nil && isExtended(e[4]) && top.Offset >= x.Offset && top.End() <= x.End():
			is.Length = max(x.Length, end-x.Offset)
		case f.Grown != nil && !isExtended(e[4]) && x == top.Extent:
			is.Length = end - x.Offset
		case x.End() > f.to.Size && isExtended(e[4]):
			is.Length = (f.to.Size - x.Offset) / f.sector * f.sector
		}
		if (is.Offset-base)%f.sector != 0 || is.Length < f.sector {
			return &misfit{
				fmt.Sprintf("has sectors of %d bytes, and an entry of the partition table begins at byte %d", f.sector, is.Offset),
				"choose a target with sectors of " + fmt.Sprint(f.from) + " bytes, or restore to a file",
			}
		}
		if is == x && !f.converts() {
			continue
		}
		first, count := (is.Offset-base)/f.sector, is.Length/f.sector
		if count > 1<<32-1 {
			return f.tooSmall(fmt.Sprintf("an MBR cannot express %d sectors", count))
		}
		binary.LittleEndian.PutUint32(e[8:], uint32(first))
		binary.LittleEndian.PutUint32(e[12:], uint32(count))
		copy(e[1:4], chs(is.Offset/f.sector))
		copy(e[5:8], chs(is.End()/f.sector-1))
		changed = true
	}
	if changed {
		f.patch(l.at, l.b)
	}
	return nil
}
