package block

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"strings"
	"testing"
)

// ram is a disk in memory, all zeros but for the pages written to.
type ram struct {
	size   int64
	sector int
	pages  map[int64][]byte
}

func newRAM(size int64, sector int, b []byte) *ram {
	r := &ram{size, sector, map[int64][]byte{}}
	if _, err := r.WriteAt(b, 0); err != nil {
		panic(err)
	}
	return r
}

func (r *ram) Size() int64     { return r.size }
func (r *ram) SectorSize() int { return r.sector }

func (r *ram) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		if at >= r.size {
			return n, io.EOF
		}
		part := p[n:min(len(p), n+int(512-at%512))]
		if page := r.pages[at/512]; page != nil {
			copy(part, page[at%512:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	return n, nil
}

func (r *ram) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		if at >= r.size {
			return n, io.ErrShortWrite
		}
		part := p[n:min(len(p), n+int(512-at%512))]
		n += len(part)
		if r.pages[at/512] == nil {
			if zeros(part) {
				continue
			}
			r.pages[at/512] = make([]byte, 512)
		}
		copy(r.pages[at/512][at%512:], part)
	}
	return n, nil
}

// sum is a hash of all that is not zero.
func (r *ram) sum() uint64 {
	var sum uint64
	for at, page := range r.pages {
		sum += crc64.Checksum(page, crc64.MakeTable(crc64.ECMA)) * uint64(2*at+1)
	}
	return sum
}

// fitted fits a disk to which the image of one of oldSize bytes was written.
func fitted(d Disk, oldSize int64) (changed bool, err error) {
	image := make([]byte, oldSize)
	if _, err := readFull(d, image, 0); err != nil {
		return false, err
	}
	r := bytes.NewReader(image)
	table, content := Probe(r, oldSize, d.SectorSize())
	f, err := FitImage(r, oldSize, table, content, FitTo{Size: d.Size(), Sector: d.SectorSize()})
	if err != nil {
		return false, err
	}
	return !f.Empty(), errors.Join(f.Write(context.Background(), r, d), f.Check(d))
}

// verify asks sgdisk, which must find nothing to complain of.
func verify(t *testing.T, dev string) {
	t.Helper()
	if out := run1(t, "sgdisk", "-v", dev); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v %s:\n%s", dev, out)
	}
}

func TestBackupGPTMovesToTheEndOfALargerDisk(t *testing.T) {
	t.Parallel()
	for _, sector := range []int{512, 4096} {
		for _, more := range []int64{4096, 33 << 20} {
			t.Run(fmt.Sprintf("%d+%d", sector, more), func(t *testing.T) {
				const size = 32 << 20
				dev, _ := loopDisk(t, size, sector)
				run1(t, "sgdisk", "-n1:0:+4M", "-n7:0:0", "-c7:last", dev)
				image := readFile(t, dev)
				larger, file := loopDisk(t, size+more, sector)
				writeFile(t, file, noise(5, size+int(more)), 0)
				run1(t, "losetup", "-c", larger)
				tg := target(t, larger, TargetOptions{Size: size, SectorSize: sector})
				if _, err := tg.WriteAt(image, 0); err != nil {
					t.Fatal(err)
				}
				if err := WipeBeyond(tg, size); err != nil {
					t.Fatal(err)
				}
				if changed, err := fitted(tg, size); !changed || err != nil {
					t.Fatalf("fitted = %v, %v", changed, err)
				}
				if err := tg.Sync(); err != nil {
					t.Fatal(err)
				}
				tg.Close()
				verify(t, larger)
				got := readFile(t, larger)
				// Only the headers' own fields and the MBR's size may differ.
				mask := func(b []byte) []byte {
					b = bytes.Clone(b[:size])
					clear(b[mbrEntries+5 : mbrEntries+8])
					clear(b[mbrEntries+12 : mbrEntries+16])
					h := b[sector:]
					clear(h[16:20])
					clear(h[32:40])
					clear(h[48:56])
					clear(b[size-33*max(sector, 512):]) // a new backup may lie over the old one
					return b
				}
				equal(t, "rest of the image", mask(got), mask(image))
				beyond := Extent{size, min(more, wipeReach)}
				if more >= 2*wipeReach && !zeros(got[beyond.Offset:beyond.End()]) {
					t.Error("old data is left behind the image")
				}
			})
		}
	}
}

func TestBackupGPTIsLeftAlone(t *testing.T) {
	t.Parallel()
	_, file := gptFile(t, 8<<20)
	gptDisk := readFile(t, file)
	for name, c := range map[string]struct {
		disk *ram
		old  int64
	}{
		"same size":        {newRAM(8<<20, 512, gptDisk), 8 << 20},
		"no table":         {newRAM(32<<20, 512, nil), 8 << 20},
		"random":           {newRAM(32<<20, 512, noise(1, 8<<20)), 8 << 20},
		"empty image":      {newRAM(32<<20, 512, nil), 0},
		"other sectors":    {newRAM(32<<20, 4096, gptDisk), 8 << 20},
		"MBR":              {newRAM(32<<20, 512, mbrDisk()), 8 << 20},
		"of another place": {newRAM(32<<20, 512, gptDisk[512:]), 8<<20 - 512},
	} {
		before := c.disk.sum()
		if changed, err := fitted(c.disk, c.old); changed || err != nil {
			t.Errorf("%s: fitted = %v, %v", name, changed, err)
		}
		if c.disk.sum() != before {
			t.Errorf("%s: written to", name)
		}
	}
}

func mbrDisk() []byte {
	b := make([]byte, 512)
	b[510], b[511] = 0x55, 0xaa
	b[mbrEntries+4], b[mbrEntries+8], b[mbrEntries+13] = 0x83, 1, 8
	return b
}

// Which of two copies is right is not ours to guess.
func TestDamagedPrimaryIsLeftAlone(t *testing.T) {
	t.Parallel()
	_, file := gptFile(t, 8<<20)
	b := readFile(t, file)
	b[512+50] ^= 1
	r := bytes.NewReader(b)
	table, content := Probe(r, 8<<20, 512)
	f, err := FitImage(r, 8<<20, table, content, FitTo{Size: 32 << 20, Sector: 512})
	if err != nil || !f.Empty() || len(f.Notices) != 1 {
		t.Errorf("got %+v, %v, want a notice", f, err)
	}
	for _, to := range []FitTo{{Size: 7 << 20, Sector: 512}, {Size: 32 << 20, Sector: 4096}} {
		if _, err := FitImage(r, 8<<20, table, content, to); !Unfit(err) {
			t.Errorf("%+v: got %v, want a reason", to, err)
		}
	}
}

func TestProtectiveMBRSizes(t *testing.T) {
	const t2 = int64(1) << 41 // 2 TiB
	for _, c := range []struct {
		old, new int64
		sector   int
		before   uint32 // 0: what sgdisk would write
		want     uint32
	}{
		{8 << 20, 32 << 20, 512, 0, 32<<11 - 1},
		{8 << 20, t2 - 512, 512, 0, 1<<32 - 2},
		{8 << 20, t2, 512, 0, 1<<32 - 1},
		{8 << 20, t2 + 512, 512, 0, 1<<32 - 1},
		{8 << 20, 8 * t2, 512, 0, 1<<32 - 1},
		{8 << 20, 4 * t2, 4096, 0, 1<<31 - 1},
		{8 << 20, 32 << 20, 512, 1<<32 - 1, 1<<32 - 1},
		{8 << 20, 32 << 20, 512, 100, 100}, // hybrid
	} {
		d := newRAM(c.new, c.sector, gptOf(c.old, int64(c.sector), c.before))
		if _, err := fitted(d, c.old); err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		first := make([]byte, 512)
		_, _ = d.ReadAt(first, 0)
		if got := binary.LittleEndian.Uint32(first[mbrEntries+12:]); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
		if table, err := gptTable(d, c.new, int64(c.sector)); err != nil || len(table.Partitions) != 1 {
			t.Errorf("%+v: table %+v, %v", c, table, err)
		}
		if _, err := readGPT(d, c.new, int64(c.sector), c.new/int64(c.sector)-1); err != nil {
			t.Errorf("%+v: backup: %v", c, err)
		}
	}
}

// gptOf makes the primary half of a GPT disk with one partition.
func gptOf(size, sector int64, protect uint32) []byte {
	b := make([]byte, 34*sector)
	b[510], b[511] = 0x55, 0xaa
	e := b[mbrEntries:]
	e[4], e[8] = typeGPT, 1
	if protect == 0 {
		protect = uint32(min(size/sector-1, 1<<32-1))
	}
	binary.LittleEndian.PutUint32(e[12:], protect)
	h := b[sector : 2*sector]
	copy(h, gptMagic)
	last := size/sector - 1
	for at, v := range map[int]int64{8: 1 << 16, 12: 92, 24: 1, 32: last, 40: 34, 48: last - 33, 72: 2, 80: 128, 84: 128} {
		binary.LittleEndian.PutUint32(h[at:], uint32(v))
	}
	g := &gpt{sector: sector, header: h, entries: b[2*sector : 2*sector+128*128]}
	copy(g.entries, "type GUID 123456unique GUID 1234")
	binary.LittleEndian.PutUint64(g.entries[32:], 40)
	binary.LittleEndian.PutUint64(g.entries[40:], 50)
	crcEntries(g)
	return b
}

func TestWipeBeyondKeepsTheImage(t *testing.T) {
	for _, c := range []struct{ image, size int64 }{
		{0, 0},
		{0, 512},
		{1 << 20, 1 << 20},
		{1 << 20, 1<<20 + 512},
		{1 << 20, 2<<20 - 512},
		{1<<20 + 100, 2 << 20},
		{1 << 20, 3 << 20},
		{1 << 20, 3<<20 + 512},
		{1 << 20, 4 << 20},
		{12345, 5 << 20},
	} {
		old := noise(3, int(c.size))
		d := newRAM(c.size, 512, old)
		if err := WipeBeyond(d, c.image); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		want := bytes.Clone(old)
		clear(want[c.image:min(c.size, c.image+wipeReach)])
		clear(want[max(c.image, c.size-wipeReach):])
		got := make([]byte, c.size)
		_, _ = d.ReadAt(got, 0)
		equal(t, fmt.Sprint(c), got, want)
	}
}

func TestBackupGPTOfALargerFile(t *testing.T) {
	t.Parallel()
	_, file := gptFile(t, 8<<20)
	tg := target(t, file, TargetOptions{Size: 20<<20 + 512, InPlace: true})
	if changed, err := fitted(tg, 8<<20); !changed || err != nil {
		t.Fatalf("fitted = %v, %v", changed, err)
	}
	tg.Close()
	verify(t, file)
}
