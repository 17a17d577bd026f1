package vmtests

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"platter/internal/export/rescue/apt"
	"platter/internal/export/rescue/grub"
	"platter/vmtests/debian"
	"platter/vmtests/disk"
	"platter/vmtests/loop"
	"platter/vmtests/qemu"
)

// sayRoot has a system say on the serial port what it started from.
const sayRoot = `[Unit]
DefaultDependencies=no
After=local-fs.target swap.target
Before=getty.target
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh -c 'echo "started from $$(findmnt -no UUID /) on $$(findmnt -no SOURCE /), swap $$(swapon --show=NAME --noheadings)"'
`

// narrowDisk makes a disk with Debian as it is on a machine that knows one way to
// it: a BIOS starts it, its initramfs has the drivers of virtio alone, and it
// names its root /dev/vda3. An EFI system partition is there and empty.
func narrowDisk(t *testing.T) string {
	t.Helper()
	cache, err := debian.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	archive, err := debian.Narrow(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := apt.Unpack(t.Context(), cache, "grub-pc-bin", []string{"grub-pc-bin"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := apt.Unpack(t.Context(), cache, "signed-loaders", []string{"shim-signed", "grub-efi-amd64-signed"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	const size, root = 1200 * mib, 1000 * mib
	path := sparse(t, size)
	sh(t, "", "sgdisk", "-n1:0:+1M", "-t1:ef02", "-n2:0:+64M", "-t2:ef00", fmt.Sprintf("-n3:0:+%dM", root/mib), "-n4:0:+16M", "-t4:8200", path)
	tree := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "", "tar", "-C", tree, "--numeric-owner", "-xf", archive)
	kernels, _ := filepath.Glob(tree + "/boot/vmlinuz-*")
	if len(kernels) != 1 {
		t.Fatalf("kernels: %q", kernels)
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	for name, body := range map[string]string{
		"etc/fstab":                          "/dev/vda3 / ext4 errors=remount-ro 0 1\n/dev/vda4 none swap sw 0 0\n",
		"etc/hostname":                       "narrow\n",
		"etc/systemd/system/sayroot.service": sayRoot,
		"boot/grub/grub.cfg":                 fmt.Sprintf("insmod part_gpt\ninsmod ext2\nlinux /boot/vmlinuz-%s root=/dev/vda3 ro console=ttyS0 quiet mitigations=off random.trust_cpu=on\ninitrd /boot/initrd.img-%[1]s\nboot\n", release),
	} {
		file := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(body), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	wants := filepath.Join(tree, "etc/systemd/system/multi-user.target.wants")
	if err := errors.Join(os.MkdirAll(wants, 0o755), os.Symlink("../sayroot.service", wants+"/sayroot.service")); err != nil {
		t.Fatal(err)
	}
	sh(t, "", "cp", "-a", signed+"/usr/lib/shim", signed+"/usr/lib/grub", tree+"/usr/lib/")
	for n, make := range map[int]func(part string){
		2: func(part string) { sh(t, "", "mkfs.vfat", "-F", "32", part) },
		3: func(part string) { sh(t, "", "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, part) },
		4: func(part string) { sh(t, "", "mkswap", part) },
	} {
		at := map[int]int64{2: 2 * mib, 3: 66 * mib, 4: 1066 * mib}[n]
		part := sparse(t, map[int]int64{2: 64 * mib, 3: root, 4: 16 * mib}[n])
		make(part)
		sh(t, "", "dd", "if="+part, "of="+path, "bs=1M", fmt.Sprintf("seek=%d", at/mib), "conv=notrunc,sparse", "status=none")
	}
	installGRUB(t, filepath.Join(parts, "usr/lib/grub/i386-pc"), path)
	return path
}

// installGRUB does as grub-install would on partition 1 of a disk whose /boot is
// on partition 3.
func installGRUB(t *testing.T, parts, path string) {
	t.Helper()
	core := filepath.Join(t.TempDir(), "core.img")
	sh(t, "", "grub-mkimage", "-O", "i386-pc", "-d", parts, "-o", core, "-p", "(,gpt3)/boot/grub", "biosdisk", "part_gpt", "ext2", "configfile", "normal", "linux", "boot", "gzio")
	image, err := os.ReadFile(core)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile(filepath.Join(parts, "boot.img"))
	if err != nil {
		t.Fatal(err)
	}
	code, err := grub.Place(boot, image, 2048, 2048)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first := make([]byte, 512)
	if _, err := f.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	write(t, path, code.Sector(first), 0)
	write(t, path, code.Core, mib)
}

// uuidOf is what mount calls a partition of a disk, as blkid says.
func uuidOf(t *testing.T, path string, mibs int64) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/usr/sbin/blkid", "-p", "-o", "value", "-s", "UUID", "-O", fmt.Sprint(mibs*mib), path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// A system that knows one way to its disk starts behind another, by other
// firmware, and beside the disk that it is a copy of; without --adapt it does not.
func TestAdaptedSystemStarts(t *testing.T) {
	if os.Getenv("PLATTER_TEST_ADAPT") == "" {
		t.Skip("builds a Debian and starts machines: set PLATTER_TEST_ADAPT=1")
	}
	needLoop(t)
	if what := debian.Lacking(); what != "" {
		t.Skip("needs " + what)
	}
	for _, fw := range []qemu.Firmware{qemu.BIOS, qemu.UEFI} {
		if what := qemu.Missing(fw); what != "" {
			t.Skip("needs the package " + what)
		}
	}
	source := narrowDisk(t)
	r := newRepo(t)
	r.backup(source, "old/disk")
	root := uuidOf(t, source, 66)
	restore := func(args ...string) string {
		target := sparse(t, 1300*mib)
		dev := attach(t, target, loop.Options{})
		t.Logf("%v: %s", args, r.run(append([]string{"restore", "old/disk", dev.Path, "--yes"}, args...)...))
		if err := disk.VerifyTable(t.Context(), dev.Path); err != nil {
			t.Error(err)
		}
		if err := dev.Flush(); err != nil {
			t.Fatal(err)
		}
		return target
	}
	starts := func(m qemu.Machine, want ...string) {
		t.Helper()
		m.CPUs, m.Memory = 2, 1024
		b, err := m.Login(t.Context(), 15*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %s: %s after %v", m.Firmware, m.Bus, b.Prompt, b.Elapsed)
		for _, w := range want {
			if !strings.Contains(b.Serial, w) {
				t.Errorf("the serial port lacks %q:\n%s", w, b.Serial)
			}
		}
	}
	plain := restore()
	starts(qemu.Machine{Disk: plain, Firmware: qemu.BIOS}, "started from "+root+" on /dev/vda3, swap /dev/vda4")
	if serial, err := (qemu.Machine{Disk: plain, Firmware: qemu.BIOS, Bus: "nvme", CPUs: 2, Memory: 1024}).Until(t.Context(), "/dev/vda3 does not exist", 10*time.Minute); err != nil {
		t.Errorf("without --adapt on NVMe: %v\n%s", err, serial)
	}
	starts(qemu.Machine{Disk: restore("--adapt"), Firmware: qemu.BIOS, Bus: "nvme"}, "started from "+root+" on /dev/nvme0n1p3, swap /dev/nvme0n1p4")
	starts(qemu.Machine{Disk: restore("--adapt", "--firmware", "uefi"), Firmware: qemu.UEFI, Bus: "nvme", Secure: true}, "started from "+root+" on /dev/nvme0n1p3")

	// The copy starts as a stick beside the original, and each has its own.
	renamed := restore("--adapt", "--new-ids")
	now := uuidOf(t, renamed, 66)
	if now == root {
		t.Errorf("the root's UUID is %s still", now)
	}
	starts(qemu.Machine{Disk: plain, Medium: renamed, Firmware: qemu.BIOS}, "started from "+now+" on /dev/sda3, swap /dev/sda4")

	// What the target would be can be started before there is one.
	r.run("boot", "old/disk", "--adapt", "--bus", "nvme", "--firmware", "uefi", "--emulate", "--timeout", "15m")
}
