package rescue

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"platter/internal/export/rescue/cpio"
	"platter/internal/export/rescue/ramfs"
)

//go:embed files
var scripts embed.FS

// packages hold the kernel's boot loaders, the programs of the medium, and the
// libraries that these are linked with. The kernel comes besides.
var packages = []string{
	"shim-signed", "shim-helpers-amd64-signed", "grub-efi-amd64-signed", "grub-pc-bin",
	"btrfs-progs", "busybox-static", "cryptsetup-bin", "dash", "dmsetup", "dosfstools", "e2fsprogs", "efibootmgr", "fdisk",
	"gdisk", "lvm2", "mdadm", "mount", "mtools", "thin-provisioning-tools", "util-linux", "xfsprogs",
	"libaio1", "libargon2-1", "libblkid1", "libbsd0", "libc6", "libcap2", "libcom-err2", "libcryptsetup12", "libdevmapper-event1.02.1",
	"libdevmapper1.02.1", "libedit2", "libefiboot1", "libefivar1", "libexpat1", "libext2fs2", "libfdisk1", "libgcc-s1", "libgcrypt20",
	"libgpg-error0", "libinih1", "libjson-c5",
	"liblz4-1", "liblzma5", "liblzo2-2", "libmd0", "libmount1", "libncurses6", "libncursesw6", "libpcre2-8-0", "libpopt0", "libreadline8",
	"libselinux1", "libsmartcols1", "libss2", "libssl3", "libstdc++6", "libsystemd0", "libtinfo6", "libudev1", "liburcu8",
	"libuuid1", "libzstd1", "zlib1g",
}

// programs by their names; those after a colon are other names of the first.
var programs = []string{
	"busybox", "dash:sh", "dmsetup", "mount", "umount",
	"lvm:pvs vgs lvs pvcreate vgcreate lvcreate lvremove lvchange lvconvert lvextend vgchange vgcfgrestore vgimportclone vgscan pvscan pvresize",
	"pdata_tools:thin_check thin_repair",
	"btrfs", "btrfstune", "cryptsetup", "mke2fs:mkfs.ext4", "e2fsck", "resize2fs", "tune2fs", "swaplabel", "mtools:mcopy mdel mlabel mmd", "mkfs.xfs", "xfs_db", "xfs_repair", "mkfs.fat:mkfs.vfat", "fsck.fat:fsck.vfat",
	"mdadm", "sgdisk", "sfdisk", "fdisk", "efibootmgr", "mkswap", "blkid", "blkdiscard", "blockdev", "findmnt", "losetup", "lsblk", "wipefs",
}

// initramfs returns the initial file system, packed, and how many modules are in it.
func initramfs(tree, release, program string) ([]byte, int, error) {
	b := ramfs.New(tree)
	b.Layout()
	for _, dir := range []string{"applets", "dev", "mnt", "proc", "root", "run", "sys", "tmp", "var/lib"} {
		b.Dir(dir)
	}
	for _, f := range [][2]string{
		{"init", "init"},
		{"inittab", "etc/inittab"},
		{"profile", "etc/profile"},
		{"lvm.conf", "etc/lvm/lvm.conf"},
		{"start", "etc/rescue/start"},
		{"console", "etc/rescue/console"},
		{"network", "etc/rescue/network"},
		{"lease", "etc/rescue/lease"},
	} {
		body, err := scripts.ReadFile("files/" + f[0])
		if err != nil {
			return nil, 0, err
		}
		b.Text(f[1], 0o755, body)
	}
	b.Text("etc/passwd", 0o644, []byte("root:x:0:0::/root:/bin/sh\n"))
	b.Text("etc/group", 0o644, []byte("root:x:0:\n"))
	for _, p := range programs {
		if err := b.Program(p); err != nil {
			return nil, 0, err
		}
	}
	if err := b.File("sbin/platter", program, 0o755); err != nil {
		return nil, 0, err
	}
	// What this machine trusts, the medium trusts.
	const certificates = "etc/ssl/certs/ca-certificates.crt"
	if err := b.File(certificates, "/"+certificates, 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	n, err := addModules(b, tree, release)
	if err != nil {
		return nil, 0, err
	}
	var packed bytes.Buffer
	// One goroutine: then the same files make the same bytes.
	z, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return nil, 0, err
	}
	if err := cpio.Write(z, b.Entries); err != nil {
		return nil, 0, err
	}
	if err := z.Close(); err != nil {
		return nil, 0, err
	}
	return packed.Bytes(), n, nil
}

// addModules adds drivers, and of the firmware that they ask for what this
// machine has.
func addModules(b *ramfs.Builder, tree, release string) (int, error) {
	dir := filepath.Join(tree, "lib/modules", release)
	modules, err := readModules(dir)
	if err != nil {
		return 0, err
	}
	place := "lib/modules/" + release + "/"
	for _, m := range modules {
		b.Text(place+"kernel/"+m.path, 0o644, m.body)
		for _, name := range m.firmware {
			if err := addFirmware(b, filepath.Join("lib/firmware", filepath.Clean("/"+name))); err != nil {
				return 0, err
			}
		}
	}
	deps, aliases := index(modules)
	b.Text(place+"modules.dep", 0o644, deps)
	b.Text(place+"modules.alias", 0o644, aliases)
	return len(modules), nil
}

// addFirmware adds a file of firmware that this machine has, packed or not.
func addFirmware(b *ramfs.Builder, name string) error {
	for _, ext := range []string{"", ".xz", ".zst"} {
		err := b.File(name+ext, "/"+name+ext, 0o644)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// kernelOf returns the newest kernel of a tree and its release.
func kernelOf(tree string) (image, release string, err error) {
	all, _ := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*")) // in order
	for i := len(all) - 1; i >= 0; i-- {
		release := strings.TrimPrefix(filepath.Base(all[i]), "vmlinuz-")
		if _, err := os.Stat(filepath.Join(tree, "lib/modules", release)); err == nil {
			return all[i], release, nil
		}
	}
	return "", "", fmt.Errorf("no kernel with its modules in %s: want boot/vmlinuz-RELEASE and lib/modules/RELEASE", tree)
}
