package job

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
)

// tool runs a program of the system, or skips the test when it is missing.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("NOT TESTED: %s is not installed", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// sparseFile makes a file of zeros.
func sparseFile(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	return file
}

// systemDisk makes a disk of 96 MiB as systems are on: GPT, a FAT filesystem,
// ext4 and swap, on sectors of the given size. It returns what it holds.
func systemDisk(t *testing.T, sector int) []byte {
	t.Helper()
	dev, file := loop(t, make([]byte, 96<<20), sector)
	sgdisk(t, "-n1:0:+34M", "-t1:ef00", "-n2:0:+24M", "-n3:0:+4M", "-t3:8200", dev)
	part := func(n int, size int64, tool func(file string)) {
		f := sparseFile(t, size)
		tool(f)
		copyInto(t, dev, f, partitionOf(t, dev, n).Offset)
	}
	part(1, 34<<20, func(f string) {
		tool(t, "mkfs.vfat", "-F", map[int]string{512: "32", 4096: "16"}[sector], "-S", fmt.Sprint(sector), "-s", "1", "-n", "ESP", f)
		for name, size := range map[string]int{"BOOTX64.EFI": 700_001, "grub.cfg": 77} {
			from := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(from, bytes.Repeat([]byte(name), size/len(name)+1)[:size], 0o600); err != nil {
				t.Fatal(err)
			}
			tool(t, "mcopy", "-i", f, from, "::/"+name)
		}
	})
	part(2, 24<<20, func(f string) {
		tree := t.TempDir()
		if err := os.WriteFile(filepath.Join(tree, "etc"), bytes.Repeat([]byte("configuration\n"), 100_000), 0o644); err != nil {
			t.Fatal(err)
		}
		tool(t, "mkfs.ext4", "-q", "-b", "4096", "-d", tree, f)
	})
	part(3, 4<<20, func(f string) { tool(t, "mkswap", f) })
	return onDisk(t, dev, file)
}

func copyInto(t *testing.T, dev, file string, off int64) {
	t.Helper()
	tool(t, "dd", "if="+file, "of="+dev, "bs=1M", fmt.Sprintf("seek=%dB", off), "conv=notrunc,fsync", "status=none")
}

func partitionOf(t *testing.T, path string, number int) block.Partition {
	t.Helper()
	d, err := block.Look(path)
	if err != nil || d.Table == nil {
		t.Fatalf("no partition table on %s: %v", path, err)
	}
	for _, p := range d.Table.Partitions {
		if p.Number == number {
			return p
		}
	}
	t.Fatalf("no partition %d on %s: %+v", number, path, d.Table.Partitions)
	return block.Partition{}
}

// isSystemDisk proves that a disk is the one of systemDisk, whatever its size
// and sectors.
func isSystemDisk(t *testing.T, dev string, disk []byte) {
	t.Helper()
	if out := sgdisk(t, "-v", dev); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
	all := readFile(t, dev)
	old, _ := block.Probe(bytes.NewReader(disk), int64(len(disk)), 0)
	for i, p := range old.Partitions {
		now := partitionOf(t, dev, p.Number)
		if now.Offset != p.Offset || now.Length < p.Length/4096*4096 || now.ID != p.ID || now.Type != p.Type || now.Content != p.Content {
			t.Errorf("partition %+v, want %+v", now, p)
		}
		file := filepath.Join(t.TempDir(), "part")
		if err := os.WriteFile(file, all[now.Offset:now.End()], 0o600); err != nil {
			t.Fatal(err)
		}
		switch now.Content {
		case "vfat":
			tool(t, "fsck.vfat", "-n", file)
			out := filepath.Join(t.TempDir(), "out")
			for name, size := range map[string]int{"BOOTX64.EFI": 700_001, "grub.cfg": 77} {
				tool(t, "mcopy", "-n", "-i", file, "::/"+name, out)
				if !bytes.Equal(readFile(t, out), bytes.Repeat([]byte(name), size/len(name)+1)[:size]) {
					t.Errorf("%s is another file", name)
				}
			}
		case "ext4":
			tool(t, "e2fsck", "-fn", file)
		}
		if i > 0 && !bytes.Equal(all[p.Offset:][:p.Length/4096*4096], disk[p.Offset:][:p.Length/4096*4096]) {
			t.Errorf("partition %d is another", p.Number)
		}
	}
}

func TestRestoreToASmallerDiskThatThePartitionsFit(t *testing.T) {
	sweep(t)
	disk := systemDisk(t, 512)
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	least := 1<<20 + 34<<20 + 24<<20 + 4<<20 + 33*512 // 33 sectors are the backup table
	for _, size := range []int{least, least + 512, least + 65<<10, 80 << 20} {
		dev, file := loop(t, junk(t, size), 512)
		r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev})
		isSystemDisk(t, dev, disk)
		if r.Plan.Fit.Length != int64(size) || len(r.Plan.Fit.Changes) == 0 || !r.ReadBack {
			t.Errorf("%d bytes: %+v", size, r.Plan.Fit)
		}
		again := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev, InPlace: true})
		isSystemDisk(t, dev, disk)
		if again.Written+again.Zeroed > 3<<20 {
			t.Errorf("%d bytes, in place: wrote %d and zeroed %d", size, again.Written, again.Zeroed)
		}
		_ = file
	}
	for _, size := range []int{least - 512, 20 << 20} {
		refused(t, env, size, 512, RestoreOptions{Image: "disk"}, "is too small: partition")
	}
}

// refused proves that a restore is refused for a reason, and writes nothing.
func refused(t *testing.T, env *Env, size, sector int, opts RestoreOptions, reason string) {
	t.Helper()
	old := junk(t, size)
	dev, file := loop(t, old, sector)
	opts.Target, opts.Confirm = dev, yes
	_, err := Restore(t.Context(), env, opts)
	if !errors.Is(err, block.ErrRefused) || !strings.Contains(err.Error(), reason) {
		t.Errorf("got %v, want a refusal: %s", err, reason)
	}
	if !bytes.Equal(onDisk(t, dev, file), old) {
		t.Errorf("%s: the device was written to", reason)
	}
}

// 512 to 4096 and back: table and FAT filesystem count in the target's sectors.
func TestRestoreToOtherSectors(t *testing.T) {
	sweep(t)
	for _, c := range []struct{ from, to int }{{512, 4096}, {4096, 512}} {
		disk := systemDisk(t, c.from)
		env := newEnv(t, 64<<10)
		diskImage(t, env, disk)
		for _, size := range []int{96 << 20, 128 << 20, 70 << 20} {
			dev, _ := loop(t, junk(t, size), c.to)
			r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev})
			isSystemDisk(t, dev, disk)
			if !strings.Contains(strings.Join(r.Plan.Steps, "\n"), fmt.Sprintf("FAT filesystem of partition 1 out anew for sectors of %d", c.to)) {
				t.Errorf("the plan does not say it: %q", r.Plan.Steps)
			}
			canMount(t, dev, 2, "etc")
		}
	}
}

// canMount proves that the kernel mounts a partition of a disk, and finds a file.
func canMount(t *testing.T, disk string, number int, file string) {
	t.Helper()
	onPartition(t, disk, number, func(dev string) {
		dir := t.TempDir()
		tool(t, "mount", "-o", "ro", dev, dir)
		defer func() { tool(t, "umount", dir) }()
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	})
}

// onPartition calls f with a device that is one partition.
func onPartition(t *testing.T, disk string, number int, f func(dev string)) {
	t.Helper()
	dev, detach, err := block.Attach(disk, partitionOf(t, disk, number).Extent)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := detach(); err != nil {
			t.Error(err)
		}
	}()
	f(dev)
}

// logicalDisk makes an MBR disk of 64 MiB with logical partitions.
func logicalDisk(t *testing.T) []byte {
	t.Helper()
	file := sparseFile(t, 64<<20)
	script := filepath.Join(t.TempDir(), "script")
	text := "label: dos\nlabel-id: 0x12345678\nstart=2048,size=16384,type=83,bootable\nstart=18432,size=98304,type=5\n" +
		"start=20480,size=20480,type=83\nstart=43008,size=20480,type=83\nstart=65536,size=40960,type=83\n"
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "sh", "-c", "sfdisk -q "+file+" <"+script)
	disk := readFile(t, file)
	random(seeded(t, 3), disk[20480*512:][:1<<20])
	ext := sparseFile(t, 40960*512)
	tool(t, "mkfs.ext4", "-q", "-b", "4096", ext)
	copy(disk[65536*512:], readFile(t, ext))
	return disk
}

func TestRestoreOfLogicalPartitions(t *testing.T) {
	sweep(t)
	disk := logicalDisk(t)
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	for _, c := range []struct {
		size, sector int
		grow         bool
	}{{64 << 20, 512, false}, {96 << 20, 512, false}, {96 << 20, 512, true}, {54 << 20, 512, false}, {64 << 20, 4096, false}, {96 << 20, 4096, true}} {
		dev, _ := loop(t, junk(t, c.size), c.sector)
		r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev, Grow: c.grow})
		if out := tool(t, "sfdisk", "-V", dev); !strings.Contains(out, "No errors detected") {
			t.Errorf("%+v: sfdisk -V: %s", c, out)
		}
		all := readFile(t, dev)
		old, _ := block.Probe(bytes.NewReader(disk), int64(len(disk)), 512)
		for _, p := range old.Partitions {
			now := partitionOf(t, dev, p.Number)
			want := p.Extent
			if c.grow && (p.Number == 7 || p.Number == 2) {
				want.Length = int64(c.size) - p.Offset
			}
			if p.Number == 2 && want.End() > int64(c.size) {
				want.Length = int64(c.size) - p.Offset
			}
			if now.Extent != want || now.Type != p.Type || now.Active != p.Active {
				t.Errorf("%+v: partition %+v, want %v", c, now, want)
			}
			if p.Number != 2 && p.Number != 7 && !bytes.Equal(all[p.Offset:p.End()], disk[p.Offset:p.End()]) {
				t.Errorf("%+v: partition %d is another", c, p.Number)
			}
		}
		// Whatever tables are for, the kernel's view of them is what counts.
		canMount(t, dev, 7, "lost+found")
		if c.grow && (r.Grown == nil || r.Grown.Filesystem == "") {
			t.Errorf("%+v: grown %+v, notices %q", c, r.Grown, r.Notices)
		}
	}
	refused(t, env, (65536+40960)*512-512, 512, RestoreOptions{Image: "disk"}, "partition 7 reaches")
}

func TestRestoreLeavesAHybridMBRAlone(t *testing.T) {
	disk := gptDisk(t, 24<<20)
	e := disk[446+16:][:16]
	e[4] = 0x83
	binary.LittleEndian.PutUint32(e[8:], 2048)
	binary.LittleEndian.PutUint32(e[12:], 8192)
	binary.LittleEndian.PutUint32(disk[446+12:], 2047) // the protective entry ends before it
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	dev, file := loop(t, junk(t, 40<<20), 512)
	r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev})
	if got := onDisk(t, dev, file); !bytes.Equal(got[:512], disk[:512]) {
		t.Error("the MBR is another")
	}
	if !strings.Contains(strings.Join(r.Plan.Notices, "\n"), "hybrid MBR") {
		t.Errorf("notices: %q", r.Plan.Notices)
	}
	refused(t, env, 40<<20, 4096, RestoreOptions{Image: "disk"}, "hybrid MBR")
}

// A disk that starts both ways starts by UEFI alone from other sectors, which the
// plan says.
func TestCodeForABIOSIsOfItsOwnSectors(t *testing.T) {
	disk := systemDisk(t, 512)
	f := sparseFile(t, int64(len(disk)))
	if err := os.WriteFile(f, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	sgdisk(t, "-n4:0:+1M", "-t4:ef02", f)
	disk = readFile(t, f)
	copy(disk, "boot code")
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	for sector, want := range map[int]bool{512: false, 4096: true} {
		dev, _ := loop(t, junk(t, 96<<20), sector)
		r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev})
		if got := strings.Contains(strings.Join(r.Plan.Notices, "\n"), "must start by UEFI"); got != want {
			t.Errorf("sectors of %d: notices %q", sector, r.Plan.Notices)
		}
	}
}

// A disk of more than 2 TiB: its protective MBR says so as far as it can.
func TestRestoreToADiskOfMoreThan2TiB(t *testing.T) {
	disk := gptDisk(t, 24<<20)
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	file := sparseFile(t, 3<<40)
	dev := strings.TrimSpace(tool(t, "losetup", "-f", "--show", file))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev})
	if out := sgdisk(t, "-v", dev); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
	first := make([]byte, 512)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint32(first[446+12:]); got != 1<<32-1 {
		t.Errorf("the protective entry has %d sectors", got)
	}
}

// One partition out of a disk's image: into a file, a larger device, and one
// of its own size, wherever its blocks begin.
func TestRestoreOfOnePartition(t *testing.T) {
	sweep(t)
	const from, size = 2<<20 + 7*512, 5<<20 + 3*512
	disk := junk(t, 12<<20)
	copy(disk, readFile(t, func() string {
		f := sparseFile(t, 12<<20)
		sgdisk(t, "-a1", fmt.Sprintf("-n3:%d:%d", from/512, (from+size)/512-1), f)
		return f
	}())[:34*512])
	clear(disk[from+1<<20 : from+2<<20])
	for _, bs := range []int{4 << 10, 64 << 10, 4 << 20} {
		env := newEnv(t, bs)
		diskImage(t, env, disk)
		want := disk[from : from+size]
		file := filepath.Join(t.TempDir(), "part")
		r := mustRestore(t, env, RestoreOptions{Image: "disk:p3", Target: file})
		if !bytes.Equal(readFile(t, file), want) || r.Plan.Partition == nil || r.Plan.Partition.Number != 3 || !r.ReadBack {
			t.Errorf("blocks of %d: the file is not the partition: %+v", bs, r.Plan.Partition)
		}
		for _, inPlace := range []bool{false, true} {
			dev, backing := loop(t, junk(t, size+2<<20), 512)
			mustRestore(t, env, RestoreOptions{Image: "disk:p3", Target: dev, InPlace: inPlace})
			got := onDisk(t, dev, backing)
			if !bytes.Equal(got[:size], want) {
				t.Errorf("blocks of %d, in place %v: the device is not the partition", bs, inPlace)
			}
			if again := mustRestore(t, env, RestoreOptions{Image: "disk:p3", Target: dev, InPlace: true}); again.Written+again.Zeroed != 0 {
				t.Errorf("blocks of %d, in place once more: wrote %d, zeroed %d", bs, again.Written, again.Zeroed)
			}
		}
		refused(t, env, size-512, 512, RestoreOptions{Image: "disk:p3"}, "is too small")
		if _, err := Restore(t.Context(), env, RestoreOptions{Image: "disk:p2", Target: file, Confirm: yes}); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "there are p3") {
			t.Errorf("a partition that is not there: %v", err)
		}
	}
}

// A partition's image goes into a partition of a disk, whose others stay.
func TestRestoreIntoAnExistingPartition(t *testing.T) {
	sweep(t)
	env := newEnv(t, 64<<10)
	diskImage(t, env, systemDisk(t, 512))
	other := gptDisk(t, 64<<20)
	copy(other, readFile(t, func() string {
		f := sparseFile(t, 64<<20)
		sgdisk(t, "-n1:0:+4M", "-n2:0:+24M", "-n3:0:0", f)
		return f
	}())[:34*512])
	dev, file := loop(t, other, 512)
	tool(t, "partx", "-a", dev)
	defer func() { tool(t, "partx", "-d", dev) }()
	mustRestore(t, env, RestoreOptions{Image: "disk:p2", Target: dev + "p2"})
	tool(t, "e2fsck", "-fn", dev+"p2")
	got := onDisk(t, dev, file)
	if !bytes.Equal(got[:5<<20], other[:5<<20]) || !bytes.Equal(got[29<<20:], other[29<<20:]) {
		t.Error("another partition was written to")
	}
}

// --grow: the last partition and what is in it take the room of a larger disk.
func TestRestoreGrowsTheLastFilesystem(t *testing.T) {
	sweep(t)
	for _, content := range []string{"ext4", "xfs", "btrfs", "swap"} {
		for _, sector := range []int{512, 4096} {
			if sector != 512 && content != "ext4" && !long() {
				continue
			}
			t.Run(fmt.Sprint(content, sector), func(t *testing.T) {
				size, larger := int64(160<<20), int64(300<<20)
				if content == "xfs" { // not smaller
					size, larger = 320<<20, 500<<20
				}
				dev, file := loop(t, make([]byte, size), 512)
				sgdisk(t, "-n1:0:+2M", "-n2:0:0", dev)
				onPartition(t, dev, 2, func(dev string) {
					switch content {
					case "swap":
						tool(t, "mkswap", "-L", "label", "-U", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", dev)
					case "xfs":
						tool(t, "mkfs.xfs", "-q", "-s", "size=4096", dev)
					default:
						tool(t, "mkfs."+content, map[string][]string{"ext4": {"-q", "-b", "4096", dev}, "btrfs": {"-q", dev}}[content]...)
					}
					if content != "swap" {
						dir := t.TempDir()
						tool(t, "mount", dev, dir)
						defer func() { tool(t, "umount", dir) }()
						if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("content"), 100_000), 0o600); err != nil {
							t.Fatal(err)
						}
					}
				})
				env := newEnv(t, 64<<10)
				diskImage(t, env, onDisk(t, dev, file))
				tool(t, "losetup", "-d", dev)
				target := sparseFile(t, larger)
				dev = strings.TrimSpace(tool(t, "losetup", "-f", "--show", "-b", fmt.Sprint(sector), target))
				t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
				r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev, Grow: true})
				if r.Grown == nil || r.Grown.Filesystem == "" || r.Grown.Partition.End() != larger-1<<20 {
					t.Fatalf("grown: %+v, plan %q", r.Grown, r.Plan.Steps)
				}
				if out := sgdisk(t, "-v", dev); !strings.Contains(out, "No problems found") {
					t.Errorf("sgdisk -v: %s", out)
				}
				onPartition(t, dev, 2, func(dev string) { isGrown(t, dev, content, r.Grown.Partition.Length) })
			})
		}
	}
}

// isGrown proves that a filesystem is sound, has its file, and is about as
// large as its partition.
func isGrown(t *testing.T, dev, content string, size int64) {
	t.Helper()
	switch content {
	case "swap":
		if out := tool(t, "swaplabel", dev); !strings.Contains(out, "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0") || !strings.Contains(out, "label") {
			t.Errorf("swaplabel: %s", out)
		}
		head := make([]byte, 2048)
		f, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.ReadAt(head, 0); err != nil || int64(binary.LittleEndian.Uint32(head[1028:])+1) != size/4096 {
			t.Errorf("last page %d, %v, want %d", binary.LittleEndian.Uint32(head[1028:]), err, size/4096-1)
		}
		return
	case "ext4":
		tool(t, "e2fsck", "-fn", dev)
	case "xfs":
		tool(t, "xfs_repair", "-n", dev)
	case "btrfs":
		tool(t, "btrfs", "check", dev)
	}
	dir := t.TempDir()
	tool(t, "mount", "-o", "ro", dev, dir)
	defer func() { tool(t, "umount", dir) }()
	if !bytes.Equal(readFile(t, filepath.Join(dir, "file")), bytes.Repeat([]byte("content"), 100_000)) {
		t.Error("the file is another")
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Blocks)*st.Bsize < size*8/10 {
		t.Errorf("%d bytes, %v, in a partition of %d", int64(st.Blocks)*st.Bsize, err, size)
	}
}
