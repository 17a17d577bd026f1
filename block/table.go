package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/diskfs/go-diskfs/backend"
	diskgpt "github.com/diskfs/go-diskfs/partition/gpt"
	diskmbr "github.com/diskfs/go-diskfs/partition/mbr"
)

// maxProbed bounds how many partitions are looked into.
const maxProbed = 256

// Probe says what a device of size bytes holds: its partition table, or what
// fills it as a whole. Content has the names that blkid uses: ext4, xfs,
// LVM2_member, and so on; "" is anything else. A sectorSize of 0 tries 512 and
// 4096 bytes.
//
// All that it reads is taken as hostile: bad or unreadable data is no table
// and no content, and partitions that reach beyond the device are left out.
func Probe(r io.ReaderAt, size int64, sectorSize int) (table *Table, content string) {
	table, content, _ = probe(r, size, sectorSize)
	return table, content
}

// probe also returns the first sector, nil if it cannot be read.
func probe(r io.ReaderAt, size int64, sectorSize int) (table *Table, content string, first []byte) {
	content = superblock(r, Extent{0, size})
	first = make([]byte, mbrSize)
	if size < mbrSize {
		return nil, content, nil
	}
	if _, err := readFull(r, first, 0); err != nil {
		return nil, content, nil
	}
	if table = readTable(r, first, size, sectorSize, content); table == nil {
		return nil, content, first
	}
	for i := range table.Partitions[:min(len(table.Partitions), maxProbed)] {
		p := &table.Partitions[i]
		p.Content = superblock(r, p.Extent)
	}
	return table, "", first
}

func readTable(r io.ReaderAt, first []byte, size int64, sectorSize int, content string) *Table {
	if !isMBR(first) {
		return nil
	}
	sectors := []int{sectorSize}
	if sectorSize == 0 {
		sectors = []int{512, 4096}
	}
	if protective(first) >= 0 {
		for _, sector := range sectors {
			if t, err := gptTable(r, size, int64(sector)); err == nil {
				return t
			}
		}
	}
	t, err := mbrTable(r, first, size, int64(sectors[0]))
	if err != nil {
		return nil
	}
	// The first sectors of FAT and NTFS are marked like an MBR.
	if len(t.Partitions) == 0 && (content != "" || zeros(first[:mbrEntries])) {
		return nil
	}
	return t
}

// gptTable reads the first copy of a GPT that is whole.
func gptTable(r io.ReaderAt, size, sector int64) (*Table, error) {
	g, err := readGPT(r, size, sector, 1)
	if errors.Is(err, errNoGPT) {
		g, err = readGPT(r, size, sector, size/sector-1)
	}
	if err != nil {
		return nil, err
	}
	return g.table(size)
}

// table decodes a copy that was checked. go-diskfs trusts the sizes in a
// header, so it is given a small disk of our own making: one plain header,
// and the entries behind it.
func (g *gpt) table(size int64) (*Table, error) {
	plain := &gpt{sector: g.sector, header: make([]byte, g.sector)}
	copy(plain.header, g.header[:gptHeaderMin])
	binary.LittleEndian.PutUint32(plain.header[8:], 1<<16)
	binary.LittleEndian.PutUint32(plain.header[12:], gptHeaderMin)
	binary.LittleEndian.PutUint32(plain.header[20:], 0)
	binary.LittleEndian.PutUint64(plain.header[24:], 1)
	binary.LittleEndian.PutUint64(plain.header[72:], 2)
	plain.seal()
	disk := append(append(make([]byte, g.sector), plain.header...), g.entries...)
	var t *diskgpt.Table
	err := guard(func() (err error) {
		t, err = diskgpt.Read(newMemory(disk), int(g.sector), int(g.sector))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoGPT, err)
	}
	table := &Table{Type: "gpt", ID: t.GUID, SectorSize: int(g.sector), Partitions: []Partition{}}
	for _, p := range t.Partitions {
		if p.Start < 1 || p.Start > p.End || p.End >= uint64(size/g.sector) {
			continue
		}
		table.Partitions = append(table.Partitions, Partition{
			Number: p.Index,
			Extent: Extent{int64(p.Start) * g.sector, int64(p.End-p.Start+1) * g.sector},
			Type:   string(p.Type), ID: p.GUID, Name: p.Name,
			Active: p.Attributes&legacyBoot != 0,
		})
	}
	return table, nil
}

// legacyBoot is the attribute of a GPT partition that a BIOS starts from.
const legacyBoot = 1 << 2

// mbrTable decodes an MBR and the logical partitions behind it.
func mbrTable(r io.ReaderAt, first []byte, size, sector int64) (*Table, error) {
	var t *diskmbr.Table
	err := guard(func() (err error) {
		t, err = diskmbr.Read(newMemory(first), int(sector), int(sector))
		return err
	})
	if err != nil {
		return nil, err
	}
	table := &Table{Type: "mbr", ID: t.UUID(), SectorSize: int(sector), Partitions: []Partition{}}
	var logical []Partition
	for _, p := range t.Partitions {
		x := Extent{int64(p.Start) * sector, int64(p.Size) * sector}
		if p.Type == diskmbr.Empty || x.Offset == 0 || x.Length == 0 || x.End() > size {
			continue
		}
		e := first[mbrEntries+(p.Index-1)*mbrEntrySize:][:mbrEntrySize]
		table.Partitions = append(table.Partitions, mbrPartition(p.Index, e, x, table.ID))
		if isExtended(byte(p.Type)) && logical == nil {
			logical = logicals(r, x, sector, table.ID)
		}
	}
	table.Partitions = append(table.Partitions, logical...)
	return table, nil
}

// guard turns a panic over hostile input into an error.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read partition table: %v", p)
		}
	}()
	return f()
}

// memory is a disk in memory, as go-diskfs wants to read it.
type memory struct{ *bytes.Reader }

var _ backend.File = memory{}

func newMemory(b []byte) memory { return memory{bytes.NewReader(b)} }

func (memory) Close() error               { return nil }
func (memory) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Partition types that tell what a disk starts by.
const (
	guidESP  = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	guidBIOS = "21686148-6449-6E6F-744E-656564454649"
)

// firmware says what a disk looks bootable by. It is a guess from the outside:
// code in the first sector and a place for the rest of the boot loader, or a
// partition that UEFI looks into.
func firmware(t *Table, first []byte) string {
	if t == nil || len(first) < mbrSize {
		return ""
	}
	var bios, uefi bool
	for _, p := range t.Partitions {
		switch {
		case p.Type == guidESP, t.Type == "mbr" && p.Type == fmt.Sprintf("%02x", typeESP):
			uefi = uefi || p.Content == "vfat"
		case p.Type == guidBIOS, p.Active:
			bios = true
		}
	}
	// Boot loaders also start from MBR disks without an active partition.
	bios = (bios || t.Type == "mbr") && !zeros(first[:440])
	switch {
	case bios && uefi:
		return "both"
	case bios:
		return "bios"
	case uefi:
		return "uefi"
	}
	return ""
}
