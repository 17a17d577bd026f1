package debian

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"platter/internal/export/rescue/apt"
)

// narrowHook has a system make itself an initramfs with the drivers of virtio
// alone.
const narrowHook = `mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/driver-policy" && printf 'virtio_pci\nvirtio_blk\next4\n' >"$1/etc/initramfs-tools/modules"`

const narrowPackages = "systemd,systemd-sysv,udev,dbus,kmod,initramfs-tools,zstd,e2fsprogs,linux-image-amd64"

// Narrow returns an archive with the files of a Debian that has a kernel and an
// initramfs with no more drivers than a virtual machine needs. It is kept in
// cache; the first time that takes minutes.
func Narrow(ctx context.Context, cache string) (string, error) {
	key := sha256.Sum256([]byte(release + narrowPackages + narrowHook))
	kept := filepath.Join(cache, "guest", fmt.Sprintf("narrow-%x.tar", key[:6]))
	if _, err := os.Stat(kept); err == nil {
		return kept, nil
	}
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(filepath.Dir(kept), "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	whole := filepath.Join(work, "debian.tar")
	err = apt.Run(ctx, "mmdebstrap", "--quiet", "--variant=minbase", "--include="+narrowPackages, "--essential-hook="+narrowHook, release, whole)
	if err != nil {
		return "", err
	}
	return kept, os.Rename(whole, kept)
}
