package block

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// An IDChange is an identity that a disk or a partition has no more, and the
// one in its place. For the disk the partition's number is 0. IDs are as udev
// writes them: GUIDs in lower case, MBR signatures as 8 hex digits.
type IDChange struct {
	Partition int    `json:"partition"`
	Old       string `json:"old"`
	New       string `json:"new"`
}

// NewIDs gives a disk new identities: with a GPT the disk's GUID and those of
// its partitions in both copies, with an MBR its signature. It returns none
// for a disk without a table. A GPT of which one copy is damaged is an error,
// and nothing is written.
func NewIDs(d Disk) ([]IDChange, error) {
	sector := int64(d.SectorSize())
	first := make([]byte, sector)
	if _, err := readFull(d, first, 0); err != nil {
		return nil, fmt.Errorf("new IDs: %w", err)
	}
	switch {
	case !isMBR(first):
		return nil, nil
	case protective(first) < 0:
		return newSignature(d, first)
	}
	g, err := readGPT(d, d.Size(), sector, 1)
	if err != nil {
		return nil, fmt.Errorf("new IDs: %w", err)
	}
	backup, err := readGPT(d, d.Size(), sector, g.other())
	if err == nil && !bytes.Equal(g.entries, backup.entries) {
		err = errors.New("the copies of the partition table differ")
	}
	if err != nil {
		return nil, fmt.Errorf("new IDs: repair the backup GPT first, with gdisk or sgdisk: %w", err)
	}
	list := g.renew()
	copy(backup.entries, g.entries)
	copy(backup.header[56:72], g.header[56:72])
	// The backup first, so that at every moment one copy is whole.
	for _, c := range []*gpt{backup, g} {
		binary.LittleEndian.PutUint32(c.header[88:], crc32.ChecksumIEEE(c.entries))
		c.seal()
		_, err := d.WriteAt(c.entries, c.entriesAt()*sector)
		if err == nil {
			_, err = d.WriteAt(c.header, c.self()*sector)
		}
		if err != nil {
			return nil, fmt.Errorf("new IDs: %w", err)
		}
	}
	return list, nil
}

// renew makes up new GUIDs in a copy that was checked.
func (g *gpt) renew() []IDChange {
	list := []IDChange{renewGUID(g.header[56:72], 0)}
	for i := range len(g.entries) / gptEntrySize {
		e := g.entries[i*gptEntrySize : (i+1)*gptEntrySize]
		if !zeros(e[:16]) {
			list = append(list, renewGUID(e[16:32], i+1))
		}
	}
	return list
}

func renewGUID(b []byte, partition int) IDChange {
	c := IDChange{Partition: partition, Old: guidText(b)}
	_, _ = rand.Read(b) // never fails
	b[7] = b[7]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	c.New = guidText(b)
	return c
}

// guidText writes a GUID, of which the first three parts are little-endian.
func guidText(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]),
		binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

// signatureAt is where an MBR has the disk's signature.
const signatureAt = 440

func newSignature(d Disk, first []byte) ([]IDChange, error) {
	b := first[signatureAt : signatureAt+4]
	text := func() string { return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(b)) }
	c := IDChange{Old: text()}
	for zeros(b) || text() == c.Old {
		_, _ = rand.Read(b)
	}
	c.New = text()
	if _, err := d.WriteAt(first, 0); err != nil {
		return nil, fmt.Errorf("new IDs: %w", err)
	}
	return []IDChange{c}, nil
}

// FilesystemID returns what mount calls the UUID of what is in an extent,
// content as Probe names it; "" if that has none that is known here.
func FilesystemID(r io.ReaderAt, e Extent, content string) string {
	read := func(at int64, n int) []byte {
		b := make([]byte, n)
		if at+int64(n) > e.Length {
			return nil
		}
		if _, err := readFull(r, b, e.Offset+at); err != nil {
			return nil
		}
		return b
	}
	uuid := func(at int64) string {
		b := read(at, 16)
		if b == nil || zeros(b) {
			return ""
		}
		return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	}
	switch content {
	case "ext2", "ext3", "ext4":
		return uuid(1024 + 104)
	case "xfs":
		return uuid(32)
	case "btrfs":
		return uuid(65536 + 32)
	case "swap":
		return uuid(1024 + 12)
	case "crypto_LUKS":
		return strings.TrimRight(string(read(168, 36)), "\x00")
	case "vfat":
		at := int64(39)
		if b := read(22, 2); b != nil && zeros(b) {
			at = 67
		}
		b := read(at, 4)
		if b == nil {
			return ""
		}
		return strings.ToUpper(hex.EncodeToString([]byte{b[3], b[2]}) + "-" + hex.EncodeToString([]byte{b[1], b[0]}))
	}
	return ""
}
