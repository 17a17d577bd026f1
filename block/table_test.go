package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
)

func TestGPTOfBothSectorSizes(t *testing.T) {
	t.Parallel()
	for _, sector := range []int{512, 4096} {
		dev, file := loopDisk(t, 64<<20, sector)
		run1(t, "sgdisk", "-n1:0:+2M", "-t1:ef02", "-c1:boot", "-n2:0:+4M", "-t2:ef00", "-c2:EFI system ü", "-n5:0:0", "-A5:set:2", dev)
		table := open(t, dev).Info().Table
		if table == nil || table.Type != "gpt" || table.SectorSize != sector || len(table.Partitions) != 3 {
			t.Fatalf("sector %d: table %+v", sector, table)
		}
		for i, want := range []Partition{
			{Number: 1, Extent: Extent{1 << 20, 2 << 20}, Type: guidBIOS, Name: "boot"},
			{Number: 2, Extent: Extent{3 << 20, 4 << 20}, Type: guidESP, Name: "EFI system ü"},
			{Number: 5, Extent: Extent{7 << 20, 64<<20 - 7<<20}, Active: true},
		} {
			got := table.Partitions[i]
			if got.Number != want.Number || got.Offset != want.Offset || got.Name != want.Name || got.Active != want.Active ||
				want.Type != "" && (got.Type != want.Type || got.Length != want.Length) {
				t.Errorf("sector %d: got %+v, want %+v", sector, got, want)
			}
			out := run1(t, "sgdisk", fmt.Sprintf("-i%d", got.Number), dev)
			if !strings.Contains(out, "unique GUID: "+got.ID) {
				t.Errorf("ID %s, sgdisk says\n%s", got.ID, out)
			}
		}
		if out := run1(t, "sgdisk", "-p", dev); !strings.Contains(out, "(GUID): "+table.ID) {
			t.Errorf("ID %s, sgdisk says\n%s", table.ID, out)
		}
		// A file does not say its sector size.
		if f := open(t, file).Info().Table; f == nil || f.SectorSize != sector || len(f.Partitions) != 3 {
			t.Errorf("sector %d: the file has table %+v", sector, f)
		}
	}
}

func TestBackupGPTStandsInForADamagedPrimary(t *testing.T) {
	t.Parallel()
	for _, at := range []int64{512, 1024 + 40} { // header, entries
		_, file := gptFile(t, 16<<20)
		writeFile(t, file, []byte{1, 2, 3}, at)
		if table := open(t, file).Info().Table; table == nil || len(table.Partitions) != 2 {
			t.Errorf("damage at %d: table %+v", at, table)
		}
	}
}

func gptFile(t *testing.T, size int64) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "disk")
	sparse(t, file, size)
	run1(t, "sgdisk", "-n1:0:+2M", "-n2:0:+3M", file)
	return dir, file
}

func TestMBRWithLogicalPartitions(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "disk")
	sparse(t, file, 64<<20)
	run1(t, "parted", "-s", file, "mklabel", "msdos",
		"mkpart", "primary", "ext4", "1MiB", "8MiB", "set", "1", "boot", "on",
		"mkpart", "extended", "8MiB", "60MiB",
		"mkpart", "logical", "9MiB", "20MiB", "mkpart", "logical", "21MiB", "30MiB", "mkpart", "logical", "linux-swap", "31MiB", "59MiB")
	table := open(t, file).Info().Table
	if table == nil || table.Type != "mbr" {
		t.Fatalf("table %+v", table)
	}
	const m = 1 << 20
	want := []Partition{
		{Number: 1, Extent: Extent{m, 7 * m}, Type: "83", Active: true},
		{Number: 2, Extent: Extent{8 * m, 52 * m}, Type: "0f"},
		{Number: 5, Extent: Extent{9 * m, 11 * m}, Type: "83"},
		{Number: 6, Extent: Extent{21 * m, 9 * m}, Type: "83"},
		{Number: 7, Extent: Extent{31 * m, 28 * m}, Type: "82"},
	}
	if len(table.Partitions) != len(want) {
		t.Fatalf("partitions %+v", table.Partitions)
	}
	for i, got := range table.Partitions {
		want[i].ID = fmt.Sprintf("%s-%02x", table.ID, got.Number)
		if got != want[i] {
			t.Errorf("got %+v, want %+v", got, want[i])
		}
	}
	if out := run1(t, "blkid", "-p", "-s", "PTUUID", "-o", "value", file); strings.TrimSpace(out) != table.ID {
		t.Errorf("ID %s, blkid says %s", table.ID, out)
	}
}

func TestLogicalPartitionsInCirclesEnd(t *testing.T) {
	disk := make([]byte, 1<<20)
	mark := func(b []byte) { b[510], b[511] = 0x55, 0xaa }
	entry := func(b []byte, i int, kind byte, start, n uint32) {
		e := b[mbrEntries+i*mbrEntrySize:]
		e[4] = kind
		binary.LittleEndian.PutUint32(e[8:], start)
		binary.LittleEndian.PutUint32(e[12:], n)
	}
	mark(disk)
	entry(disk, 0, 0x05, 100, 1000)
	link := disk[100*512:]
	mark(link)
	entry(link, 0, 0x83, 1, 10)
	entry(link, 1, 0x05, 200, 100)
	link = disk[300*512:]
	mark(link)
	entry(link, 0, 0x83, 1, 4_000_000_000) // reaches far out of the disk
	entry(link, 1, 0x05, 0, 100)           // back to the first link
	table, _ := Probe(bytes.NewReader(disk), int64(len(disk)), 512)
	if table == nil || len(table.Partitions) != 2 || table.Partitions[1].Extent != (Extent{101 * 512, 10 * 512}) {
		t.Errorf("table %+v", table)
	}
}

func TestDevicesWithoutTables(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":  {},
		"short":  make([]byte, 511),
		"zeros":  make([]byte, 1<<20),
		"random": noise(1, 1<<20),
		"marked": append(append(make([]byte, 510), 0x55, 0xaa), make([]byte, 1<<20)...),
	} {
		if table, content := Probe(bytes.NewReader(b), int64(len(b)), 0); table != nil || content != "" {
			t.Errorf("%s: table %+v, content %q", name, table, content)
		}
	}
}

func TestHostileGPTHeadersAreRefused(t *testing.T) {
	t.Parallel()
	_, file := gptFile(t, 4<<20+5<<20)
	whole := readFile(t, file)
	for name, change := range map[string]func(h []byte){
		"entries without number": func(h []byte) { binary.LittleEndian.PutUint32(h[80:], 0) },
		"billions of entries":    func(h []byte) { binary.LittleEndian.PutUint32(h[80:], 1<<31) },
		"entries of no size":     func(h []byte) { binary.LittleEndian.PutUint32(h[84:], 0) },
		"huge entries":           func(h []byte) { binary.LittleEndian.PutUint32(h[84:], 1<<31) },
		"entries far outside":    func(h []byte) { binary.LittleEndian.PutUint64(h[72:], 1<<63) },
		"entries at the end":     func(h []byte) { binary.LittleEndian.PutUint64(h[72:], 9<<11-31) },
		"huge header":            func(h []byte) { binary.LittleEndian.PutUint32(h[12:], 1<<31) },
		"tiny header":            func(h []byte) { binary.LittleEndian.PutUint32(h[12:], 0) },
		"usable outside":         func(h []byte) { binary.LittleEndian.PutUint64(h[48:], 1<<40) },
	} {
		b := bytes.Clone(whole)
		for _, lba := range []int{1, len(b)/512 - 1} {
			g := &gpt{sector: 512, header: b[lba*512:][:512]}
			change(g.header)
			if size := g.u32(12); size >= 20 && size <= 512 {
				g.seal()
			}
		}
		if table, _ := Probe(bytes.NewReader(b), int64(len(b)), 512); table != nil && table.Type == "gpt" {
			t.Errorf("%s: table %+v", name, table)
		}
	}
}

func TestPartitionsOutsideTheDeviceAreLeftOut(t *testing.T) {
	t.Parallel()
	_, file := gptFile(t, 16<<20)
	b := readFile(t, file)
	for i, end := range []uint64{1 << 62, 1<<64 - 1, 0} {
		b := bytes.Clone(b)
		g := &gpt{sector: 512, header: b[512:1024], entries: b[1024 : 1024+128*128]}
		binary.LittleEndian.PutUint64(g.entries[40:], end)
		crcEntries(g)
		table, _ := Probe(bytes.NewReader(b), int64(len(b)), 512)
		if table == nil || len(table.Partitions) != 1 || table.Partitions[0].Number != 2 {
			t.Errorf("%d: table %+v", i, table)
		}
	}
}

// kinds of content that the tools here can make, by blkid's name.
func contents() map[string][]string {
	return map[string][]string{
		"ext2":  {"mkfs.ext2", "-q", "-F"},
		"ext3":  {"mkfs.ext3", "-q", "-F"},
		"ext4":  {"mkfs.ext4", "-q", "-F"},
		"xfs":   {"mkfs.xfs", "-q", "-f"},
		"btrfs": {"mkfs.btrfs", "-q", "-f"},
		"vfat":  {"mkfs.vfat"},
		"swap":  {"mkswap", "-q"},
	}
}

func TestContentsAreNamedAsByBlkid(t *testing.T) {
	t.Parallel()
	for want, command := range contents() {
		t.Run(want, func(t *testing.T) {
			tool(t, command[0])
			file := filepath.Join(t.TempDir(), "fs")
			sparse(t, file, 320<<20)
			run1(t, command[0], append(command[1:], file)...)
			info := open(t, file).Info()
			oracle := strings.TrimSpace(run1(t, "blkid", "-p", "-s", "TYPE", "-o", "value", file))
			if info.Content != want || oracle != want || info.Table != nil {
				t.Errorf("content %q, table %v; blkid says %q", info.Content, info.Table, oracle)
			}
		})
	}
}

func TestFATOfEachWidth(t *testing.T) {
	tool(t, "mkfs.vfat")
	for _, width := range []string{"12", "16", "32"} {
		file := filepath.Join(t.TempDir(), "fs")
		sparse(t, file, 40<<20)
		run1(t, "mkfs.vfat", "-F", width, file)
		if info := open(t, file).Info(); info.Content != "vfat" || info.Table != nil {
			t.Errorf("FAT%s: content %q, table %v", width, info.Content, info.Table)
		}
	}
}

// TestMadeUpContents checks formats whose tools are not at hand against blkid,
// on superblocks written by their specification.
func TestMadeUpContents(t *testing.T) {
	const size = 8<<20 + 5*512
	le := func(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }
	cases := map[string]func(b []byte){
		"crypto_LUKS": func(b []byte) { copy(b, "LUKS\xba\xbe\x00\x02") },
		"LVM2_member": func(b []byte) {
			copy(b[512:], "LABELONE")
			b[520] = 1
			copy(b[512+24:], "LVM2 001")
		},
		"ntfs":     ntfs,
		"squashfs": func(b []byte) { copy(b, "hsqs"); b[28] = 4 },
		"iso9660":  func(b []byte) { copy(b[0x8000:], "\x01CD001\x01") },
		"linux_raid_member": func(b []byte) {
			at := (len(b)&^0xffff - 0x10000)
			le(b[at:], mdMagic)
			le(b[at+8:], 90)
		},
	}
	for want, fill := range cases {
		b := make([]byte, size)
		fill(b)
		table, got := Probe(bytes.NewReader(b), size, 512)
		if got != want || table != nil {
			t.Errorf("%s: got %q, table %v", want, got, table)
		}
	}
}

func ntfs(b []byte) {
	copy(b, "\xeb\x52\x90NTFS    ")
	binary.LittleEndian.PutUint16(b[11:], 512)
	b[13] = 8
	b[510], b[511] = 0x55, 0xaa
	copy(b[mbrEntries:], "BOOTMGR is missing")
}

func TestArraysOfEachVersion(t *testing.T) {
	const size = 4<<20 + 512
	for version, at := range map[string]int64{"1.0": (size/512 - 16) &^ 7 * 512, "1.1": 0, "1.2": 4096} {
		b := make([]byte, size)
		sb := b[at:]
		binary.LittleEndian.PutUint32(sb, mdMagic)
		binary.LittleEndian.PutUint32(sb[4:], 1)
		binary.LittleEndian.PutUint64(sb[128:], uint64(at/512))
		if _, got := Probe(bytes.NewReader(b), size, 512); got != "linux_raid_member" {
			t.Errorf("%s: got %q", version, got)
		}
		// A superblock in a place that is not its own is the data of another.
		binary.LittleEndian.PutUint64(sb[128:], uint64(at/512)+1)
		if _, got := Probe(bytes.NewReader(b), size, 512); got != "" {
			t.Errorf("%s displaced: got %q", version, got)
		}
	}
}

func TestPoolMember(t *testing.T) {
	b := make([]byte, 1<<20)
	copy(b[16<<10:], "\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x24\x00\x00\x00\x20\x00\x00\x00\x07version")
	binary.LittleEndian.PutUint64(b[128<<10+7*1024:], 0x00bab10c)
	if _, got := Probe(bytes.NewReader(b), int64(len(b)), 512); got != "zfs_member" {
		t.Errorf("got %q", got)
	}
}

func TestPartitionsAreLookedInto(t *testing.T) {
	t.Parallel()
	tool(t, "mkfs.ext4", "mkswap")
	dir, file := gptFile(t, 64<<20)
	run1(t, "sgdisk", "-o", "-n1:0:+20M", "-n2:0:+20M", "-n3:0:+1M", file)
	for i, command := range [][]string{{"mkfs.ext4", "-q"}, {"mkswap", "-q"}} {
		part := filepath.Join(dir, "part")
		sparse(t, part, 20<<20)
		run1(t, command[0], append(command[1:], part)...)
		writeFile(t, file, readFile(t, part), 1<<20+int64(i)*20<<20)
	}
	info := open(t, file).Info()
	if info.Table == nil || info.Content != "" {
		t.Fatalf("table %+v, content %q", info.Table, info.Content)
	}
	for i, want := range []string{"ext4", "swap", ""} {
		if got := info.Table.Partitions[i].Content; got != want {
			t.Errorf("partition %d: got %q, want %q", i+1, got, want)
		}
	}
}

func TestFirmware(t *testing.T) {
	code := append(bytes.Repeat([]byte{0x90}, 440), make([]byte, 72)...)
	esp := Partition{Type: guidESP, Content: "vfat"}
	for _, c := range []struct {
		want  string
		table *Table
		first []byte
	}{
		{"", nil, code},
		{"", &Table{Type: "gpt"}, code},
		{"uefi", &Table{Type: "gpt", Partitions: []Partition{esp}}, code},
		{"", &Table{Type: "gpt", Partitions: []Partition{{Type: guidESP}}}, code},
		{"both", &Table{Type: "gpt", Partitions: []Partition{esp, {Type: guidBIOS}}}, code},
		{"uefi", &Table{Type: "gpt", Partitions: []Partition{esp, {Type: guidBIOS}}}, make([]byte, 512)},
		{"bios", &Table{Type: "mbr", Partitions: []Partition{{Type: "83", Active: true}}}, code},
		{"", &Table{Type: "mbr", Partitions: []Partition{{Type: "83", Active: true}}}, make([]byte, 512)},
		{"both", &Table{Type: "mbr", Partitions: []Partition{{Type: "ef", Content: "vfat"}}}, code},
	} {
		if got := firmware(c.table, c.first); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.table, got, c.want)
		}
	}
}

// FuzzProbe changes bytes of a sound disk, and makes check sums fit again, so
// that hostile values get past them. Each 4 bytes of a patch are a place and
// what to put there.
func FuzzProbe(f *testing.F) {
	f.Add([]byte{}, true)
	f.Add([]byte{0, 2, 84, 0, 0, 1, 0xd2, 0x83}, true)
	f.Fuzz(func(t *testing.T, patch []byte, seal bool) {
		disk := hostileDisk()
		for ; len(patch) >= 4; patch = patch[4:] {
			disk[(int(patch[0])<<16|int(patch[1])<<8|int(patch[2]))%len(disk)] = patch[3]
		}
		g := &gpt{sector: 512, header: disk[512:1024]}
		if n, at := int(g.u32(80)), g.entriesAt(); seal && n < 200 && at > 0 && at < 10 {
			g.entries = disk[at*512:][:n*gptEntrySize]
			if size := g.u32(12); size >= gptHeaderMin && size <= 512 {
				crcEntries(g)
			}
		}
		for _, sector := range []int{0, 512, 4096} {
			table, _ := Probe(bytes.NewReader(disk), int64(len(disk)), sector)
			if table == nil {
				continue
			}
			for _, p := range table.Partitions {
				if p.Offset < 0 || p.Length <= 0 || p.End() > int64(len(disk)) || p.End() < p.Offset {
					t.Fatalf("partition %+v of a disk of %d bytes", p, len(disk))
				}
			}
			firmware(table, disk)
		}
		size := int64(len(disk))
		for _, to := range []FitTo{{Size: size + 1<<20, Sector: 512, Grow: true}, {Size: size + 1<<20, Sector: 4096, Grow: true}, {Size: size, Sector: 4096}, {Size: size - 4096, Sector: 512}} {
			table, content := Probe(bytes.NewReader(disk), size, 512)
			f, err := FitImage(bytes.NewReader(disk), size, table, content, to)
			if err == nil {
				err = f.Write(t.Context(), bytes.NewReader(disk), newRAM(to.Size, to.Sector, nil))
			}
			if err != nil && !Unfit(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%+v: %v", to, err)
			}
		}
	})
}

// hostileDisk is a disk with a sound GPT of two partitions and an MBR chain.
func hostileDisk() []byte {
	b := make([]byte, 72<<10)
	b[510], b[511] = 0x55, 0xaa
	b[mbrEntries+4] = typeGPT
	b[mbrEntries+8] = 1
	b[mbrEntries+mbrEntrySize+4] = 5
	b[mbrEntries+mbrEntrySize+8] = 40
	b[mbrEntries+mbrEntrySize+12] = 50
	h := b[512:1024]
	copy(h, gptMagic)
	for at, v := range map[int]uint32{8: 1 << 16, 12: 92, 24: 1, 32: 143, 40: 4, 48: 140, 72: 2, 80: 8, 84: 128} {
		binary.LittleEndian.PutUint32(h[at:], v)
	}
	g := &gpt{sector: 512, header: h, entries: b[1024:2048]}
	copy(g.entries, "type GUID 123456unique GUID 1234")
	binary.LittleEndian.PutUint64(g.entries[32:], 10)
	binary.LittleEndian.PutUint64(g.entries[40:], 20)
	crcEntries(g)
	return b
}
