package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A GPT header, little-endian:
//
//	 0:8   "EFI PART"
//	 8:12  revision
//	12:16  header size, 92 or more
//	16:20  CRC-32 of the header with this field zero
//	24:32  sector of this header
//	32:40  sector of the other header
//	40:48  first usable sector
//	48:56  last usable sector
//	56:72  disk GUID
//	72:80  first sector of the entries
//	80:84  number of entries
//	84:88  bytes of an entry, 128
//	88:92  CRC-32 of the entries
const (
	gptMagic     = "EFI PART"
	gptHeaderMin = 92
	gptEntrySize = 128
	// maxEntries bounds what a hostile header makes us read. Tools write 128;
	// the largest table met in the wild has 512.
	maxEntries = 4096
)

// errNoGPT means that there is none, or none that the kernel would accept.
var errNoGPT = errors.New("no valid GPT")

// A gpt is one of the two copies of a GPT, checked.
type gpt struct {
	sector  int64  // bytes
	header  []byte // one sector
	entries []byte
}

func (g *gpt) u64(at int) uint64 { return binary.LittleEndian.Uint64(g.header[at:]) }
func (g *gpt) u32(at int) uint32 { return binary.LittleEndian.Uint32(g.header[at:]) }

func (g *gpt) self() int64      { return int64(g.u64(24)) }
func (g *gpt) other() int64     { return int64(g.u64(32)) }
func (g *gpt) entriesAt() int64 { return int64(g.u64(72)) }

// entrySectors returns how many sectors the entries fill.
func (g *gpt) entrySectors() int64 { return roundUp(int64(len(g.entries)), g.sector) / g.sector }

// readGPT reads and checks the copy whose header is in the given sector of a
// device of size bytes.
func readGPT(r io.ReaderAt, size, sector, lba int64) (*gpt, error) {
	total := size / sector
	if lba < 1 || lba >= total {
		return nil, fmt.Errorf("%w: the device ends before sector %d", errNoGPT, lba)
	}
	g := &gpt{sector: sector, header: make([]byte, sector)}
	if _, err := readFull(r, g.header, lba*sector); err != nil {
		return nil, err
	}
	if err := g.checkHeader(lba, total); err != nil {
		return nil, fmt.Errorf("%w in sector %d: %w", errNoGPT, lba, err)
	}
	g.entries = make([]byte, int(g.u32(80))*gptEntrySize)
	if _, err := readFull(r, g.entries, g.entriesAt()*sector); err != nil {
		return nil, err
	}
	if got, want := crc32.ChecksumIEEE(g.entries), g.u32(88); got != want {
		return nil, fmt.Errorf("%w in sector %d: entries have CRC %08x, want %08x", errNoGPT, lba, got, want)
	}
	return g, nil
}

// checkHeader lets no number through that could lead outside the device.
func (g *gpt) checkHeader(lba, total int64) error {
	if string(g.header[:8]) != gptMagic {
		return errors.New("no signature")
	}
	size := g.u32(12)
	if size < gptHeaderMin || int64(size) > g.sector {
		return fmt.Errorf("header of %d bytes", size)
	}
	if got, want := g.headerCRC(), g.u32(16); got != want {
		return fmt.Errorf("header has CRC %08x, want %08x", got, want)
	}
	n := g.u32(80)
	switch {
	case g.self() != lba:
		return fmt.Errorf("header says that it is in sector %d", g.self())
	case g.u32(84) != gptEntrySize:
		return fmt.Errorf("entries of %d bytes", g.u32(84))
	case n < 1 || n > maxEntries:
		return fmt.Errorf("%d entries", n)
	}
	sectors := roundUp(int64(n)*gptEntrySize, g.sector) / g.sector
	if at := g.entriesAt(); at < 1 || at > total-sectors {
		return fmt.Errorf("entries in sector %d of %d", at, total)
	}
	if first, last := g.u64(40), g.u64(48); first > last || last >= uint64(total) {
		return fmt.Errorf("usable sectors %d to %d of %d", first, last, total)
	}
	return nil
}

func (g *gpt) headerCRC() uint32 {
	h := append([]byte(nil), g.header[:g.u32(12)]...)
	clear(h[16:20])
	return crc32.ChecksumIEEE(h)
}

// seal puts the right CRC into a header that was changed.
func (g *gpt) seal() { binary.LittleEndian.PutUint32(g.header[16:], g.headerCRC()) }

// readFull is ReadAt that tells a short read from a whole one, as readers at
// the end of a device may return either nil or io.EOF with it.
func readFull(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
