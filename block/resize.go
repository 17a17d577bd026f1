package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A Disk is what a partition table is rewritten on. A *Target is one.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Size() int64     // bytes
	SectorSize() int // bytes, logical
}

// MoveBackupGPT makes the GPT of a disk fit its size, after the image of a
// disk of oldSize bytes was written to it: the backup goes to the disk's end,
// the primary header and the protective MBR learn of it, all else stays byte
// for byte. It returns false when there is nothing to do: no GPT, or one that
// ends where the disk does. A GPT whose primary copy is damaged is an error,
// and nothing is written: which copy is right is not ours to guess.
//
// The backup is written first, so that at every moment one copy is whole.
func MoveBackupGPT(d Disk, oldSize int64) (changed bool, err error) {
	if d.Size() <= oldSize {
		return false, nil
	}
	sector := int64(d.SectorSize())
	first := make([]byte, sector)
	if _, err := readFull(d, first, 0); err != nil {
		return false, fmt.Errorf("move backup GPT: %w", err)
	}
	if !isMBR(first) || protective(first) < 0 {
		return false, nil
	}
	g, err := readGPT(d, d.Size(), sector, 1)
	if errors.Is(err, errNoGPT) {
		// Says the old backup that there is a table?
		if _, e := readGPT(d, oldSize, sector, oldSize/sector-1); e != nil {
			return false, nil
		}
		return false, fmt.Errorf("move backup GPT: the primary copy is damaged, repair it with gdisk or sgdisk: %w", err)
	}
	if err != nil {
		return false, fmt.Errorf("move backup GPT: %w", err)
	}
	last := d.Size()/sector - 1
	mbr := stretch(first, oldSize/sector, last+1)
	if g.other() == last && !mbr {
		return false, nil
	}
	if err := g.move(d, last); err != nil {
		return false, fmt.Errorf("move backup GPT: %w", err)
	}
	if mbr {
		if _, err := d.WriteAt(first, 0); err != nil {
			return true, fmt.Errorf("move backup GPT: enlarge the protective MBR: %w", err)
		}
	}
	return true, nil
}

// move writes the backup so that its header is in the given sector, and then
// the primary header.
func (g *gpt) move(d Disk, last int64) error {
	entriesAt := last - g.entrySectors()
	if entriesAt <= g.highest() {
		return fmt.Errorf("a partition reaches to sector %d, the backup would begin at %d", g.highest(), entriesAt)
	}
	backup := &gpt{sector: g.sector, header: append([]byte(nil), g.header...), entries: g.entries}
	put := func(h *gpt, at int, v int64) { binary.LittleEndian.PutUint64(h.header[at:], uint64(v)) }
	put(backup, 24, last)
	put(backup, 32, 1)
	put(backup, 48, entriesAt-1)
	put(backup, 72, entriesAt)
	backup.seal()
	put(g, 32, last)
	put(g, 48, entriesAt-1)
	g.seal()

	entries := make([]byte, g.entrySectors()*g.sector)
	copy(entries, g.entries)
	if _, err := d.WriteAt(entries, entriesAt*g.sector); err != nil {
		return err
	}
	if _, err := d.WriteAt(backup.header, last*g.sector); err != nil {
		return err
	}
	_, err := d.WriteAt(g.header, g.sector)
	return err
}

// highest returns the last sector of any partition.
func (g *gpt) highest() (last int64) {
	for e := g.entries; len(e) >= gptEntrySize; e = e[gptEntrySize:] {
		if !zeros(e[:16]) {
			last = max(last, int64(binary.LittleEndian.Uint64(e[40:])))
		}
	}
	return last
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

// wipeReach is how far from the image's end, and from the disk's, the
// signatures of what was there before may lie: of arrays, pools and GPTs.
const wipeReach = 1 << 20

// WipeBeyond zeroes the first MiB behind an image of imageSize bytes and the
// last MiB of the disk, so that no array, pool or table that was on the disk
// before comes back to life. It goes before MoveBackupGPT, and writes nothing
// to the image's own bytes.
func WipeBeyond(d Disk, imageSize int64) error {
	size := d.Size()
	near := min(size, imageSize+wipeReach)
	far := max(near, size-wipeReach)
	for _, e := range []Extent{{imageSize, near - imageSize}, {far, size - far}} {
		if e.Length <= 0 {
			continue
		}
		// Aligned, and thus past the page cache but for odd ends.
		if _, err := d.WriteAt(scratch(int(e.Length)), e.Offset); err != nil {
			return fmt.Errorf("wipe old signatures behind the image: %w", err)
		}
	}
	return nil
}

// ErrReread means that the kernel goes on with the partition table it had: a
// notice, the restore itself is whole.
var ErrReread = errors.New("the kernel has not read the new partition table")

// RereadTable has the kernel read a disk's partition table again. It returns
// nil for files and partitions, and an error wrapping ErrReread when the
// kernel did not do it.
func (t *Target) RereadTable() error {
	if t.file || t.info.Kind == KindPartition {
		return nil
	}
	err := t.any().do(func(fd int) error { return unix.IoctlSetInt(fd, unix.BLKRRPART, 0) })
	if err != nil {
		return fmt.Errorf("%w of %s: %w: run 'partprobe %s', or restart", ErrReread, t.path, err, t.path)
	}
	return nil
}
