package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// gpt fits a GPT: its backup goes to the target's end, entries and headers
// count in the target's sectors, the protective MBR covers the target. All else
// stays byte for byte.
//
// Which of two copies is right is not ours to guess: with a damaged primary the
// image goes onto the same sectors only, as it is.
func (f *fitter) gpt() error {
	if f.to.Size == f.size && !f.converts() && !f.to.Grow {
		return nil
	}
	g, err := readGPT(f.image, f.size, f.from, 1)
	if errors.Is(err, errNoGPT) {
		if f.to.Size >= f.size && !f.converts() {
			f.Notices = append(f.Notices, fmt.Sprintf("the image's partition table is restored as it is, its backup not at the disk's end: the primary copy is damaged, repair it with gdisk or sgdisk: %v", err))
			return nil
		}
		return &misfit{fmt.Sprintf("is another than the image's disk, whose primary partition table is damaged (%v)", err), "choose a target of the same size and sectors, or restore to a file"}
	}
	if err != nil {
		return err
	}
	first := make([]byte, mbrSize)
	if _, err := readFull(f.image, first, 0); err != nil {
		return err
	}
	last := f.to.Size/f.sector - 1
	t, err := f.entries(g, last)
	if err != nil {
		return err
	}
	mbr, err := f.protect(first, last)
	if err != nil {
		return err
	}
	if g.other() != last || f.converts() || f.Grown != nil {
		f.putGPT(t, last)
	}
	if mbr {
		f.patch(0, first)
	}
	return nil
}

// entries returns the table with what fits the target, its headers to be made.
func (f *fitter) entries(g *gpt, last int64) (*gpt, error) {
	if int64(g.u32(12)) > f.sector {
		return nil, &misfit{fmt.Sprintf("has sectors of %d bytes, and the table's header %d", f.sector, g.u32(12)), "restore to a file"}
	}
	t := &gpt{sector: f.sector, header: make([]byte, f.sector), entries: append([]byte(nil), g.entries...)}
	copy(t.header, g.header[:min(f.from, f.sector)])
	lastUsable := last - t.entrySectors() - 1
	firstUsable := int64(2)
	if f.converts() {
		firstUsable += t.entrySectors()
		binary.LittleEndian.PutUint64(t.header[40:], uint64(firstUsable))
		binary.LittleEndian.PutUint64(t.header[72:], 2)
		f.changed("write the partition table for sectors of %d bytes, instead of %d", f.sector, f.from)
	}
	var top []byte // entry of the last partition
	var number int
	for i, e := 0, t.entries; len(e) >= gptEntrySize; i, e = i+1, e[gptEntrySize:] {
		if zeros(e[:16]) {
			continue
		}
		at := Extent{Offset: int64(binary.LittleEndian.Uint64(e[32:])) * f.from}
		at.Length = (int64(binary.LittleEndian.Uint64(e[40:]))+1)*f.from - at.Offset
		if at.Offset < 0 || at.Length <= 0 || at.End() > f.size {
			return nil, &misfit{fmt.Sprintf("is another than the image's disk, whose partition %d reaches from %d over %d bytes out of it", i+1, at.Offset, at.Length), "restore to a file"}
		}
		begin, end, err := f.place(i+1, at)
		switch {
		case err != nil:
			return nil, err
		case end > lastUsable:
			return nil, f.tooSmall(fmt.Sprintf("partition %d reaches to byte %d, and with the backup table behind it that needs %d bytes of %d",
				i+1, at.End(), (end+2+t.entrySectors())*f.sector, f.to.Size))
		case begin < firstUsable:
			return nil, &misfit{fmt.Sprintf("has sectors of %d bytes, and the larger table would reach into partition %d", f.sector, i+1), "restore to a file"}
		}
		binary.LittleEndian.PutUint64(e[32:], uint64(begin))
		binary.LittleEndian.PutUint64(e[40:], uint64(end))
		if top == nil || end > int64(binary.LittleEndian.Uint64(top[40:])) {
			top, number = e, i+1
		}
	}
	f.growGPT(top, number, lastUsable)
	return t, nil
}

// growGPT has the last partition end where the room does, in whole MiB.
func (f *fitter) growGPT(e []byte, number int, lastUsable int64) {
	if !f.to.Grow || e == nil {
		return
	}
	perMiB := (1 << 20) / f.sector
	end := (lastUsable+1)/perMiB*perMiB - 1
	if end <= int64(binary.LittleEndian.Uint64(e[40:])) {
		return
	}
	binary.LittleEndian.PutUint64(e[40:], uint64(end))
	begin := int64(binary.LittleEndian.Uint64(e[32:]))
	f.grown(number, Extent{begin * f.sector, (end + 1 - begin) * f.sector})
}

// grown notes which partition grows, and to what.
func (f *fitter) grown(number int, e Extent) {
	for _, p := range f.table.Partitions {
		if p.Number == number {
			f.changed("enlarge partition %d from %d to %d bytes", number, p.Length, e.Length)
			p.Extent = e
			f.Grown = &p
		}
	}
}

// putGPT makes headers for both copies. The backup is written first, so that at
// every moment one copy is whole.
func (f *fitter) putGPT(t *gpt, last int64) {
	entries := make([]byte, t.entrySectors()*f.sector)
	copy(entries, t.entries)
	header := func(self, other, entriesAt int64) []byte {
		h := &gpt{sector: f.sector, header: append([]byte(nil), t.header...)}
		put := func(at int, v int64) { binary.LittleEndian.PutUint64(h.header[at:], uint64(v)) }
		put(24, self)
		put(32, other)
		put(48, last-t.entrySectors()-1)
		put(72, entriesAt)
		binary.LittleEndian.PutUint32(h.header[88:], crc32.ChecksumIEEE(t.entries))
		h.seal()
		return h.header
	}
	backupAt := last - t.entrySectors()
	f.patch(backupAt*f.sector, entries)
	f.patch(last*f.sector, header(last, 1, backupAt))
	if f.converts() || f.Grown != nil {
		f.patch(t.entriesAt()*f.sector, entries)
	}
	f.patch(f.sector, header(1, last, t.entriesAt()))
	if f.to.Size != f.size {
		f.changed("move the backup partition table to the end of the disk")
	}
}

// protect changes the protective MBR for a target with the given last sector,
// and reports whether it did.
func (f *fitter) protect(first []byte, last int64) (bool, error) {
	i := protective(first)
	if i < 0 {
		return false, nil // the kernel would not look for a GPT either
	}
	changed := stretch(first, f.size/f.from, last+1)
	for n := range 4 {
		e := first[mbrEntries+n*mbrEntrySize:][:mbrEntrySize]
		if n == i || e[4] == 0 {
			continue
		}
		if !f.converts() {
			f.Notices = append(f.Notices, fmt.Sprintf("the disk has a hybrid MBR, with partition %d beside the GPT's: the MBR is left as it is; look at it with gdisk", n+1))
			break
		}
		return false, &misfit{fmt.Sprintf("has sectors of %d bytes, and the image's disk a hybrid MBR that counts in %d", f.sector, f.from), "choose a target with the same sectors, or restore to a file"}
	}
	return changed, nil
}

// stretch makes the protective entry of an MBR cover a disk of total sectors,
// if it did just that on the old one. It leaves an entry alone that someone
// made shorter on purpose, or as long as it can be, and reports whether it changed anything.
func stretch(mbr []byte, old, total int64) bool {
	e := mbr[mbrEntries+protective(mbr)*mbrEntrySize:][:mbrEntrySize]
	const most = 1<<32 - 1
	size := int64(binary.LittleEndian.Uint32(e[12:]))
	want := min(total-1, most)
	if size == want || size != min(old-1, most) {
		return false
	}
	binary.LittleEndian.PutUint32(e[12:], uint32(want))
	copy(e[5:8], chs(want))
	return true
}

// chs writes a sector number as cylinder, head and sector on a disk of 255
// heads and 63 sectors, all ones where that cannot express it.
func chs(sector int64) []byte {
	const heads, sectors = 255, 63
	c := sector / (heads * sectors)
	if c > 1023 {
		return []byte{0xff, 0xff, 0xff}
	}
	h, s := sector/sectors%heads, sector%sectors+1
	return []byte{byte(h), byte(s) | byte(c>>8<<6), byte(c)}
}
