package guest

import (
	"bytes"
	_ "embed"
	"fmt"
	"path/filepath"

	"platter/internal/export/rescue/cpio"
	"platter/internal/export/rescue/ramfs"
	"platter/vmtests/debian"
)

//go:embed init.sh
var initScript []byte

//go:embed system.sh
var systemScript []byte

// lvmConfig is for a machine without udev, whose devices come and go by LVM
// itself.
const lvmConfig = `devices {
	use_devicesfile = 0
	obtain_device_list_from_udev = 0
	external_device_info_source = "none"
	scan_lvs = 0
	filter = ["a|^/dev/vd|", "a|^/dev/md|", "r|.*|"]
}
global {
	use_lvmlockd = 0
	use_lvmpolld = 0
	thin_check_executable = "/sbin/thin_check"
}
activation {
	udev_sync = 0
	udev_rules = 0
	monitoring = 0
	reserved_memory = 64
	use_mlockall = 0
}
backup {
	backup = 0
	archive = 0
}
`

// modules are what guests have beside what is built into the kernel.
var modules = []string{
	"virtio_pci", "virtio_blk", "virtio_net",
	"dm-mod", "dm-snapshot", "dm-thin-pool", "dm-era", "dm-delay", "dm-flakey", "dm-log-writes",
	"dm-crypt", "ecb", "xts", "raid1", "loop", "nbd", "xfs", "btrfs", "vfat", "nls_cp437", "nls_ascii",
}

// packages hold the programs, and the libraries that these are linked with.
var packages = []string{
	"busybox-static", "cryptsetup-bin", "dash", "dmsetup", "e2fsprogs", "gdisk", "lvm2", "mdadm", "mount",
	"thin-provisioning-tools", "util-linux", "xfsprogs",
	"libaio1", "libargon2-1", "libblkid1", "libc6", "libcap2", "libcom-err2", "libcryptsetup12", "libdevmapper-event1.02.1", "libdevmapper1.02.1",
	"libedit2", "libbsd0", "libexpat1", "libext2fs2", "libgcc-s1", "libgcrypt20", "libgpg-error0", "libinih1",
	"libjson-c5", "liblz4-1", "liblzma5", "libmd0", "libmount1", "libncurses6", "libpcre2-8-0", "libpopt0", "libreadline8", "libselinux1",
	"libsmartcols1", "libss2", "libssl3", "libstdc++6", "libsystemd0", "libtinfo6", "libudev1", "liburcu8", "libuuid1", "libzstd1",
}

// programs by their names; those after a colon are other names of the first.
var programs = []string{
	"busybox", "cryptsetup", "dash:sh", "dmsetup",
	"lvm:pvs vgs lvs pvcreate vgcreate lvcreate lvremove lvchange lvconvert lvextend lvreduce lvresize lvrename vgchange vgremove vgrename vgck pvresize pvremove",
	"pdata_tools:thin_check thin_delta thin_dump thin_ls thin_repair era_check era_dump era_invalidate era_restore",
	"mke2fs:mkfs.ext4", "e2fsck", "dumpe2fs", "mkfs.xfs", "xfs_repair", "mdadm", "sgdisk",
	"blkdiscard", "blockdev", "blkid", "findmnt", "fsfreeze", "fstrim", "losetup", "lsblk", "partx", "fallocate",
}

// base returns the entries of the initial file system that all guests share.
func base(k *debian.Kernel, tree string) ([]cpio.Entry, error) {
	b := ramfs.New(tree)
	b.Layout()
	for _, dir := range []string{"etc", "modules", "test"} {
		b.Dir(dir)
	}
	b.Text("init", 0o755, initScript)
	b.Text("etc/lvm/lvm.conf", 0o644, []byte(lvmConfig))
	b.Text("etc/passwd", 0o644, []byte("root:x:0:0::/root:/bin/sh\n"))
	for _, p := range programs {
		if err := b.Program(p); err != nil {
			return nil, err
		}
	}
	err := addModules(b, "order", k.Order(modules...))
	return b.Entries, err
}

// addModules adds modules, and a file that lists them in the order in which they
// are loaded.
func addModules(b *ramfs.Builder, list string, files []string) error {
	var order bytes.Buffer
	for _, path := range files {
		fmt.Fprintln(&order, filepath.Base(path))
		if err := b.File("modules/"+filepath.Base(path), path, 0o644); err != nil {
			return err
		}
	}
	b.Text("modules/"+list, 0o644, order.Bytes())
	return nil
}
