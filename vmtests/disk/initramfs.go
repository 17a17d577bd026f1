package disk

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"path/filepath"

	"platter/internal/export/rescue/cpio"
	"platter/vmtests/debian"
)

// bootModules are what the small system needs to find its disk and to mount
// its file systems.
var bootModules = []string{"virtio_pci", "virtio_blk", "nvme", "ext4", "xfs", "btrfs", "vfat", "nls_cp437", "nls_ascii"}

// initScript loads the modules in the order of their names, mounts the root
// file system by its label, so that any disk it lies on will do, and goes there.
const initScript = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for m in /modules/*; do /bin/busybox insmod $m; done
n=0
until root=$(/bin/busybox findfs LABEL=root) || [ $n = 100 ]; do n=$((n+1)); /bin/busybox usleep 100000; done
/bin/busybox mount -t ext4 -o ro "$root" /root || { echo "no root file system"; /bin/busybox poweroff -f; }
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
`

// initramfs returns the small system's initial file system, gzipped.
func initramfs(k *debian.Kernel, busybox string) ([]byte, error) {
	entries := []cpio.Entry{
		{Name: "init", Mode: cpio.File | 0o755, Body: []byte(initScript)},
	}
	for _, dir := range []string{"bin", "dev", "modules", "proc", "root", "sys"} {
		entries = append(entries, cpio.Entry{Name: dir, Mode: cpio.Dir | 0o755})
	}
	files := append([]string{busybox}, k.Order(bootModules...)...)
	for i, path := range files {
		name := "bin/busybox"
		if i > 0 {
			name = fmt.Sprintf("modules/%03d-%s", i, filepath.Base(path))
		}
		e, err := cpio.FromFile(name, path, 0o755)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if err := cpio.Write(z, entries); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
