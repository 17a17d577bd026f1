package block

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fake builds a tree like the kernel's, of devices that need not exist.
type fake struct {
	t *testing.T
	system
	numbers map[string]uint64 // of paths
	next    uint32
}

func newFake(t *testing.T) *fake {
	dir := t.TempDir()
	f := &fake{t: t, numbers: map[string]uint64{}}
	f.system = system{
		proc: dir + "/proc", sys: dir + "/sys", dev: "/dev", run: dir + "/run",
		rdev: func(path string) (uint64, bool) { dev, ok := f.numbers[path]; return dev, ok },
	}
	f.put("proc/self/mountinfo", "")
	f.put("proc/swaps", "Filename Type Size Used Priority\n")
	return f
}

func (f *fake) put(path, text string) {
	f.t.Helper()
	path = filepath.Join(filepath.Dir(f.sys), path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = file.WriteString(text)
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) link(path, to string) {
	f.t.Helper()
	path = filepath.Join(f.sys, path)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.Symlink(to, path)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// add makes a device; "sda/sda1" is a partition.
func (f *fake) add(name string, attrs ...string) node {
	f.t.Helper()
	f.next++
	return f.addAs(unix.Mkdev(8, f.next), name, attrs...)
}

// addAs makes a device of a given number.
func (f *fake) addAs(dev uint64, name string, attrs ...string) node {
	f.t.Helper()
	numbers := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	dir, base := "devices/virtual/block/"+name, filepath.Base(name)
	f.put("sys/"+dir+"/dev", numbers+"\n")
	f.put("sys/"+dir+"/size", "2048\n")
	if base != name {
		f.put("sys/"+dir+"/partition", strings.TrimLeft(base, "abcdefghijklmnopqrstuvwxyz")+"\n")
	} else {
		f.link("block/"+base, filepath.Join(f.sys, dir))
	}
	for i := 0; i < len(attrs); i += 2 {
		f.put("sys/"+dir+"/"+attrs[i], attrs[i+1]+"\n")
	}
	full := filepath.Join(f.sys, dir)
	f.link("class/block/"+base, full)
	f.link("dev/block/"+numbers, full)
	f.numbers["/dev/"+base] = dev
	n, err := f.node(dev)
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// stack says that upper is built upon lower.
func (f *fake) stack(upper, lower node) {
	rel := func(n node) string { return strings.TrimPrefix(n.dir, f.sys+"/") }
	f.link(rel(lower)+"/holders/"+upper.name, upper.dir)
	f.link(rel(upper)+"/slaves/"+lower.name, lower.dir)
}

func (f *fake) mount(dev, point, fstype, source, super string) {
	f.put("proc/self/mountinfo", fmt.Sprintf("%d 1 %s / %s rw,relatime shared:1 - %s %s %s\n", 100+f.next, dev, point, fstype, source, super))
}

func number(n node) string { return fmt.Sprintf("%d:%d", unix.Major(n.dev), unix.Minor(n.dev)) }

func (f *fake) used(n node) []Usage {
	f.t.Helper()
	t, err := f.tally()
	if err != nil {
		f.t.Fatal(err)
	}
	return t.device(n)
}

func TestUsagesOfDevices(t *testing.T) {
	f := newFake(t)
	idle := f.add("sda")
	f.add("sda/sda1")
	disk, part, other := f.add("sdb"), f.add("sdb/sdb1"), f.add("sdb/sdb2")
	f.mount(number(part), `/srv/with\040blank`, "ext4", "/dev/sdb1", "rw,errors=remount-ro")
	ro := f.add("sdc")
	f.mount(number(ro), "/mnt", "iso9660", "/dev/sdc", "ro,nojoliet")
	bound := f.add("sdd")
	f.put("proc/self/mountinfo", fmt.Sprintf("200 1 %s / /ro ro - ext4 /dev/sdd rw\n", number(bound)))
	swap := f.add("sde")
	f.put("proc/swaps", "/dev/sde                partition\t1000\t0\t-2\n")
	pv, lv := f.add("sdf"), f.add("dm-0", "dm/name", "my--vg-root", "dm/uuid", "LVM-abcdef")
	f.stack(lv, pv)
	crypt, mapped := f.add("sdg"), f.add("dm-1", "dm/name", "luks-1", "dm/uuid", "CRYPT-LUKS2-x")
	f.stack(mapped, crypt)
	member, array := f.add("sdh"), f.add("md127", "md/level", "raid1")
	f.stack(array, member)
	btrfs1, btrfs2 := f.add("sdi"), f.add("sdj")
	f.mount("0:44", "/pool", "btrfs", "/dev/sdi", "rw,subvol=/")
	f.link("fs/btrfs/1234/devices/sdi", btrfs1.dir)
	f.link("fs/btrfs/1234/devices/sdj", btrfs2.dir)
	held, holder := f.add("sdk"), f.add("bcache0")
	f.stack(holder, held)

	for _, c := range []struct {
		n    node
		want string
	}{
		{idle, ""},
		{disk, "/dev/sdb1 is mounted at /srv/with blank"},
		{part, "/dev/sdb1 is mounted at /srv/with blank"},
		{other, ""},
		{ro, "/dev/sdc is mounted read-only at /mnt"},
		{bound, "/dev/sdd is mounted at /ro"},
		{swap, "/dev/sde is swap"},
		{pv, "/dev/sdf is part of LVM, under my-vg/root"},
		{lv, ""},
		{crypt, "/dev/sdg is used by the device-mapper device luks-1"},
		{member, "/dev/sdh is a member of the array /dev/md127"},
		{btrfs1, "/dev/sdi is mounted at /pool"},
		{btrfs2, "/dev/sdj is part of the btrfs mounted at /pool"},
		{held, "/dev/sdk is held by /dev/bcache0"},
	} {
		var got []string
		for _, u := range f.used(c.n) {
			got = append(got, u.String())
			if u.release() == "" {
				t.Errorf("%s: no advice", u)
			}
			if writes := c.n != ro; u.Writes != writes {
				t.Errorf("%s: writes %v", u, u.Writes)
			}
		}
		if strings.Join(got, "; ") != c.want {
			t.Errorf("%s: got %q, want %q", c.n.name, got, c.want)
		}
	}
}

func TestWholeDiskInUseTakesItsPartitionsAlong(t *testing.T) {
	f := newFake(t)
	disk, part := f.add("sda"), f.add("sda/sda1")
	f.stack(f.add("dm-0", "dm/name", "mpatha", "dm/uuid", "mpath-1"), disk)
	if used := f.used(part); len(used) != 1 || used[0].Device != "/dev/sda" {
		t.Errorf("got %v", used)
	}
}

func TestCirclesOfDevicesEnd(t *testing.T) {
	f := newFake(t)
	a, b := f.add("dm-0"), f.add("dm-1")
	f.stack(a, b)
	f.stack(b, a)
	f.mount(number(a), "/repo", "ext4", "/dev/dm-0", "rw")
	f.used(a)
	tl, err := f.tally()
	if err != nil {
		t.Fatal(err)
	}
	g := ground{tally: tl, devs: map[uint64]bool{}, files: map[[2]uint64]bool{}}
	g.device(a.dev, 0)
	if !g.devs[a.dev] || !g.devs[b.dev] {
		t.Errorf("got %v", g.devs)
	}
}

func TestGroundOfARepository(t *testing.T) {
	f := newFake(t)
	disk, part := f.add("sda"), f.add("sda/sda2")
	other := f.add("sda/sda1")
	lv := f.add("dm-0", "dm/name", "vg-repo", "dm/uuid", "LVM-1")
	f.stack(lv, part)
	spare1, spare2 := f.add("sdb"), f.add("sdc")
	f.link("fs/btrfs/1/devices/sdb", spare1.dir)
	f.link("fs/btrfs/1/devices/sdc", spare2.dir)
	f.mount(number(lv), "/repo", "ext4", "/dev/mapper/vg-repo", "rw")
	f.mount("0:50", "/pool", "btrfs", "/dev/sdb", "rw")
	tl, err := f.tally()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dev  uint64
		want []node
	}{
		{lv.dev, []node{lv, part, disk}},
		{other.dev, []node{other, disk}},
		{unix.Mkdev(0, 50), []node{spare1, spare2}},
		{unix.Mkdev(0, 51), nil}, // tmpfs
	} {
		g := ground{tally: tl, devs: map[uint64]bool{}, files: map[[2]uint64]bool{}}
		g.mount(c.dev, 0, 0)
		if len(g.devs) != len(c.want) || slices.ContainsFunc(c.want, func(n node) bool { return !g.devs[n.dev] }) {
			t.Errorf("%d:%d: got %v, want %v", unix.Major(c.dev), unix.Minor(c.dev), g.devs, c.want)
		}
	}
}

func TestVolumeNames(t *testing.T) {
	for in, want := range map[string]string{"vg-lv": "vg/lv", "my--vg-my--lv": "my-vg/my-lv", "a----b-c": "a--b/c", "plain": "plain", "": "", "x-": "x/"} {
		if got := volumeName(in); got != want {
			t.Errorf("volumeName(%q) = %q, want %q", in, got, want)
		}
	}
}

// mountable skips the test when the kernel lacks a filesystem.
func mountable(t *testing.T, kind string) {
	t.Helper()
	_ = exec.Command("modprobe", "-q", kind).Run()
	if b, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(b), "\t"+kind+"\n") {
		t.Skipf("NOT TESTED: this kernel cannot mount %s", kind)
	}
}

// formatted makes a loop device with a filesystem.
func formatted(t *testing.T, kind string) (dev, file string) {
	t.Helper()
	command := contents()[kind]
	tool(t, command[0])
	size := int64(32 << 20)
	if kind == "xfs" || kind == "btrfs" {
		size = 320 << 20
	}
	dev, file = loopDisk(t, size, 512)
	run1(t, command[0], append(command[1:], dev)...)
	return dev, file
}

func TestMountedDevicesAndTheirFilesAreInUse(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs", "vfat"} {
		t.Run(kind, func(t *testing.T) {
			mountable(t, kind)
			dev, file := formatted(t, kind)
			for _, path := range []string{dev, file} {
				if src, err := Open(path, OpenOptions{}); err != nil {
					t.Errorf("not mounted: %v", err)
				} else {
					src.Close()
				}
			}
			dir := mountAt(t, dev)
			for _, path := range []string{dev, file} {
				_, err := Open(path, OpenOptions{})
				if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "--live") {
					t.Errorf("mounted: Open(%s) = %v", path, err)
				}
				src, err := Open(path, OpenOptions{Live: true})
				if err != nil {
					t.Fatal(err)
				}
				if !src.(Observer).Live() || len(src.(Observer).Usage()) == 0 {
					t.Errorf("%s does not count as live", path)
				}
				src.Close()
			}
			run1(t, "mount", "-o", "remount,ro", dir)
			for _, path := range []string{dev, file} {
				src, err := Open(path, OpenOptions{})
				if err != nil {
					t.Errorf("mounted read-only: %v", err)
					continue
				}
				if src.(Observer).Live() {
					t.Errorf("%s counts as live", path)
				}
				src.Close()
				if _, err := PlanTarget(path, TargetOptions{}); !errors.Is(err, ErrRefused) {
					t.Errorf("mounted read-only: PlanTarget(%s) = %v", path, err)
				}
			}
		})
	}
}

func TestMountedPartitionMakesTheDiskInUse(t *testing.T) {
	t.Parallel()
	dev, file := loopDisk(t, 64<<20, 512)
	run1(t, "sgdisk", "-n1:0:+30M", "-n2:0:0", dev)
	partx(t, dev)
	run1(t, "mkfs.ext4", "-q", dev+"p1")
	dir := mountAt(t, dev+"p1")
	for path, refused := range map[string]bool{dev: true, dev + "p1": true, file: true, dev + "p2": false} {
		src, err := Open(path, OpenOptions{})
		if errors.Is(err, ErrInUse) != refused {
			t.Errorf("Open(%s) = %v", path, err)
		}
		if err == nil {
			info := src.Info()
			if info.Kind != KindPartition || info.Name != fileName(file)+"/p2" || info.Identity == "" {
				t.Errorf("info %+v", info)
			}
			src.Close()
		}
		if _, err := PlanTarget(path, TargetOptions{}); errors.Is(err, ErrRefused) != refused {
			t.Errorf("PlanTarget(%s) = %v", path, err)
		}
	}
	_ = dir
}

func TestSwapIsInUse(t *testing.T) {
	dev, file := formatted(t, "swap")
	run1(t, "swapon", dev)
	t.Cleanup(func() { _ = exec.Command("swapoff", dev).Run() })
	for _, path := range []string{dev, file} {
		if _, err := Open(path, OpenOptions{}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "swapoff") {
			t.Errorf("Open(%s) = %v", path, err)
		}
	}
}

func TestClaimedDeviceIsInUse(t *testing.T) {
	dev, _ := loopDisk(t, 1<<20, 512)
	h, err := openHandle(dev, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := Open(dev, OpenOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("Open = %v, want ErrInUse", err)
	}
	if _, err := PlanTarget(dev, TargetOptions{}); !errors.Is(err, ErrRefused) {
		t.Errorf("PlanTarget = %v, want ErrRefused", err)
	}
}

func TestSecondLoopOfAFileCounts(t *testing.T) {
	dev, file := formatted(t, "ext4")
	second := attach(t, file)
	mountAt(t, dev)
	if _, err := Open(second, OpenOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("Open = %v, want ErrInUse", err)
	}
}

func TestDevicesListWhatCanBeImaged(t *testing.T) {
	dev, file := formatted(t, "ext4")
	dir := mountAt(t, dev)
	idle, _ := loopDisk(t, 1<<20, 4096)
	list, err := Devices()
	if err != nil {
		t.Fatal(err)
	}
	find := func(path string) Device {
		i := slices.IndexFunc(list, func(d Device) bool { return d.Path == path })
		if i < 0 {
			t.Fatalf("%s is not listed", path)
		}
		return list[i]
	}
	d := find(dev)
	if d.How != Live || !strings.Contains(d.Why, dir) || d.Content != "ext4" || d.Name != fileName(file) || d.Kind != KindLoop {
		t.Errorf("got %+v", d)
	}
	if d := find(idle); d.How != Still || d.LogicalSector != 4096 || d.Size != 1<<20 {
		t.Errorf("got %+v", d)
	}
	for _, d := range list {
		if d.Size == 0 || d.Name == "" || d.Why == "" || strings.Contains(d.Path, "zram") {
			t.Errorf("listed: %+v", d)
		}
	}
}

func TestDiskOfAVirtualMachineIsInUse(t *testing.T) {
	tool(t, "qemu-nbd", "qemu-img")
	dev, _ := loopDisk(t, 1<<20, 512)
	file := filepath.Join(t.TempDir(), "disk")
	sparse(t, file, 1<<20)
	for _, path := range []string{file, dev} {
		for _, readOnly := range []bool{false, true} {
			stop := serve(t, path, readOnly)
			_, err := Open(path, OpenOptions{})
			if errors.Is(err, ErrInUse) == readOnly {
				t.Errorf("%s, read-only %v: Open = %v", path, readOnly, err)
			}
			if _, err := PlanTarget(path, TargetOptions{}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "virtual machine") {
				t.Errorf("%s, read-only %v: PlanTarget = %v", path, readOnly, err)
			}
			stop()
		}
	}
	tg := target(t, file, TargetOptions{Size: 1 << 20})
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", file).CombinedOutput(); err == nil {
		t.Errorf("QEMU writes to a disk that is being restored: %s", out)
	}
	tg.Close()
	run1(t, "qemu-io", "-f", "raw", "-c", "write 0 512", file)
}

// serve has QEMU open a disk, and returns when it has.
func serve(t *testing.T, path string, readOnly bool) (stop func()) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "sock")
	args := []string{"-f", "raw", "-k", socket, "-t"}
	if readOnly {
		args = append(args, "-r")
	}
	cmd := exec.Command("qemu-nbd", append(args, path)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		// It answers once it has the disk.
		if exec.Command("qemu-nbd", "--list", "-k", socket).Run() == nil {
			return stop
		}
		if time.Since(start) > 20*time.Second {
			t.Fatal("qemu-nbd does not start")
		}
	}
}
