package guest

import (
	"bytes"
	"debug/elf"
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"platter/vmtests/cpio"
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
	"raid1", "loop", "nbd", "xfs", "btrfs", "vfat", "nls_cp437", "nls_ascii",
}

// packages hold the programs, and the libraries that these are linked with.
var packages = []string{
	"busybox-static", "dash", "dmsetup", "e2fsprogs", "gdisk", "lvm2", "mdadm", "mount",
	"thin-provisioning-tools", "util-linux", "xfsprogs",
	"libaio1", "libblkid1", "libc6", "libcap2", "libcom-err2", "libdevmapper-event1.02.1", "libdevmapper1.02.1",
	"libedit2", "libbsd0", "libexpat1", "libext2fs2", "libgcc-s1", "libgcrypt20", "libgpg-error0", "libinih1",
	"liblz4-1", "liblzma5", "libmd0", "libmount1", "libncurses6", "libpcre2-8-0", "libpopt0", "libreadline8", "libselinux1",
	"libsmartcols1", "libss2", "libstdc++6", "libsystemd0", "libtinfo6", "libudev1", "liburcu8", "libuuid1", "libzstd1",
}

// programs by their names; those after a colon are other names of the first.
var programs = []string{
	"busybox", "dash:sh", "dmsetup",
	"lvm:pvs vgs lvs pvcreate vgcreate lvcreate lvremove lvchange lvconvert lvextend lvreduce lvresize lvrename vgchange vgremove vgrename vgck pvresize pvremove",
	"pdata_tools:thin_check thin_delta thin_dump thin_ls thin_repair era_check era_dump era_invalidate era_restore",
	"mke2fs:mkfs.ext4", "e2fsck", "dumpe2fs", "mkfs.xfs", "xfs_repair", "mdadm", "sgdisk",
	"blkdiscard", "blockdev", "blkid", "findmnt", "fsfreeze", "fstrim", "losetup", "lsblk", "partx", "fallocate",
}

// base returns the entries of the initial file system that all guests share.
func base(k *debian.Kernel, tree string) ([]cpio.Entry, error) {
	b := &baseBuilder{tree: tree, placed: map[string]bool{}}
	for _, dir := range []string{"etc", "etc/lvm", "lib", "lib/x86_64-linux-gnu", "lib64", "modules", "sbin", "test", "usr"} {
		b.add(cpio.Entry{Name: dir, Mode: cpio.Dir | 0o755})
	}
	for _, link := range [][2]string{{"bin", "sbin"}, {"usr/bin", "../sbin"}, {"usr/sbin", "../sbin"}} {
		b.add(cpio.Entry{Name: link[0], Mode: cpio.Link | 0o777, Body: []byte(link[1])})
	}
	b.add(cpio.Entry{Name: "init", Mode: cpio.File | 0o755, Body: initScript})
	b.add(cpio.Entry{Name: "etc/lvm/lvm.conf", Mode: cpio.File | 0o644, Body: []byte(lvmConfig)})
	b.add(cpio.Entry{Name: "etc/passwd", Mode: cpio.File | 0o644, Body: []byte("root:x:0:0::/root:/bin/sh\n")})
	for _, p := range programs {
		if err := b.program(p); err != nil {
			return nil, err
		}
	}
	err := b.modules("order", k.Order(modules...))
	return b.entries, err
}

type baseBuilder struct {
	tree    string // of the unpacked packages
	entries []cpio.Entry
	placed  map[string]bool
}

func (b *baseBuilder) add(e cpio.Entry) {
	if !b.placed[e.Name] {
		b.placed[e.Name] = true
		b.entries = append(b.entries, e)
	}
}

func (b *baseBuilder) file(name, path string, perm uint32) error {
	if b.placed[name] {
		return nil
	}
	e, err := cpio.FromFile(name, path, perm)
	b.add(e)
	return err
}

// program adds a program under all its names, and the libraries it needs.
func (b *baseBuilder) program(names string) error {
	name, others, _ := strings.Cut(names, ":")
	path, err := find(b.tree, name, "sbin", "bin", "usr/sbin", "usr/bin")
	if err != nil {
		return err
	}
	if err := b.file("sbin/"+name, path, 0o755); err != nil {
		return err
	}
	for other := range strings.FieldsSeq(others) {
		b.add(cpio.Entry{Name: "sbin/" + other, Mode: cpio.Link | 0o777, Body: []byte(name)})
	}
	return b.libraries(path)
}

// modules adds modules, and a list of the order in which they are loaded.
func (b *baseBuilder) modules(list string, order []string) error {
	var names bytes.Buffer
	for _, path := range order {
		fmt.Fprintln(&names, filepath.Base(path))
		if err := b.file("modules/"+filepath.Base(path), path, 0o644); err != nil {
			return err
		}
	}
	b.add(cpio.Entry{Name: "modules/" + list, Mode: cpio.File | 0o644, Body: names.Bytes()})
	return nil
}

// libraries adds what the dynamic linker will look for.
func (b *baseBuilder) libraries(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil || len(names) == 0 {
		return err
	}
	const linker = "ld-linux-x86-64.so.2"
	for _, name := range append(names, linker) {
		dir := "lib/x86_64-linux-gnu/"
		if name == linker {
			dir = "lib64/"
		}
		if b.placed[dir+name] {
			continue
		}
		lib, err := find(b.tree, name, "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
		if err != nil {
			return fmt.Errorf("%s needs a library: %w", filepath.Base(path), err)
		}
		if err := b.file(dir+name, lib, 0o755); err != nil {
			return err
		}
		if err := b.libraries(lib); err != nil {
			return err
		}
	}
	return nil
}

// find returns the file of a name in the first of the folders that has it.
func find(tree, name string, dirs ...string) (string, error) {
	i := slices.IndexFunc(dirs, func(dir string) bool {
		info, err := os.Stat(filepath.Join(tree, dir, name))
		return err == nil && info.Mode().IsRegular()
	})
	if i < 0 {
		return "", fmt.Errorf("find %s in the unpacked packages: %w", name, fs.ErrNotExist)
	}
	return filepath.Join(tree, dirs[i], name), nil
}
