package disk

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"platter/internal/export/rescue/cpio"
	"platter/internal/export/rescue/ramfs"
)

// bootModules are what the small system needs to find its disk.
var bootModules = []string{"virtio_pci", "virtio_blk", "nvme", "ahci", "sd_mod"}

// filesystemModules are what it mounts its file systems by. They ask for checksums
// by themselves.
func (b *builder) filesystemModules() []string {
	names := []string{"crc32c_generic"}
	for _, p := range b.Parts {
		if slices.Contains([]string{"ext4", "xfs", "btrfs", "vfat"}, p.Content) {
			names = append(names, p.Content)
		}
	}
	return append(names, b.Root, "nls_cp437", "nls_ascii")
}

// initScript loads the modules in the order of their names, mounts the root
// file system and goes there. FIND prints the device that it is on, if it is there:
// known by its label or its volume group, so that any disk it lies on will do.
const initScript = `#!/bin/busybox sh
export PATH=/bin:/sbin DM_DISABLE_UDEV=1
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for m in /modules/*; do /bin/busybox insmod $m; done
find() { FIND; }
n=0
until root=$(find) || [ $n = 100 ]; do n=$((n+1)); /bin/busybox usleep 100000; done
OPEN
/bin/busybox mount -t KIND -o ro "$root" /root || { echo "no root file system"; /bin/busybox poweroff -f; }
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
`

// initialFiles returns the small system's initial file system, gzipped.
func (b *builder) initialFiles() ([]byte, error) {
	r := ramfs.New(b.volumes)
	for _, dir := range []string{"bin", "dev", "modules", "proc", "root", "run/lock/lvm", "sys", "tmp"} {
		r.Dir(dir)
	}
	if err := r.File("bin/busybox", b.busybox, 0o755); err != nil {
		return nil, err
	}
	names := slices.Concat(bootModules, b.filesystemModules(), b.Modules)
	find, open := "/bin/busybox findfs LABEL=root", ""
	if b.Stack != Plain {
		names = append(names, volumeModules...)
		find = "lvm vgchange -q -ay " + group + " >/dev/null 2>&1; [ -b /dev/mapper/" + group + "-root ] && echo /dev/mapper/" + group + "-root"
		r.Text("etc/lvm/lvm.conf", 0o644, []byte(lvmConfig))
		if err := r.Program("lvm"); err != nil {
			return nil, err
		}
	}
	if b.Stack == LUKS {
		// What is typed before cryptsetup asks would be lost, and emulated typists are
		// fast.
		open = `for try in 1 2 3; do
	printf "Enter passphrase: " && read -r -s pass && echo
	printf %s "$pass" | cryptsetup open --key-file - "$root" root && root=/dev/mapper/root && break
done`
		if err := r.Program("cryptsetup"); err != nil {
			return nil, err
		}
		// Threads that are cancelled look for it, and are linked with nothing.
		if err := r.Library("libgcc_s.so.1"); err != nil {
			return nil, err
		}
	}
	for i, path := range b.kernel.Order(names...) {
		if err := r.File(fmt.Sprintf("modules/%03d-%s", i, filepath.Base(path)), path, 0o644); err != nil {
			return nil, err
		}
	}
	r.Text("init", 0o755, []byte(strings.NewReplacer("FIND", find, "OPEN", open, "KIND", b.Root).Replace(initScript)))
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if err := cpio.Write(z, r.Entries); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}
