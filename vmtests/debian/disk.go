package debian

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"platter/internal/export/rescue/apt"
)

// release is the Debian on disks.
const release = "bookworm"

// system are the packages of a disk, beside those that Debian cannot do
// without.
const system = "systemd,systemd-sysv,udev,dbus,kmod,mount,e2fsprogs,lvm2,thin-provisioning-tools"

// Lacking names what is missing to make a Disk; empty if nothing is.
func Lacking() string {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return "the package mmdebstrap"
	}
	if os.Getuid() != 0 {
		return "the rights of root"
	}
	return ""
}

// Disk makes a file that holds, without a partition table, an ext4 with a
// Debian that starts by itself: systemd, udev, LVM, and the modules of the
// kernel that FetchKernel gives. What it is made of is kept in cache; the first
// time that takes minutes.
func Disk(ctx context.Context, cache, path string) error {
	k, err := FetchKernel(ctx, cache)
	if err != nil {
		return err
	}
	archive, err := bootstrap(ctx, cache)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(path), "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	modules := filepath.Join(work, "usr/lib/modules", k.Release)
	return errors.Join(
		os.MkdirAll(modules, 0o755),
		apt.Run(ctx, "tar", "-C", work, "--numeric-owner", "-xf", archive),
		os.CopyFS(modules, os.DirFS(k.Modules)),
		os.WriteFile(filepath.Join(work, "etc/hostname"), []byte("guest\n"), 0o644),
		os.WriteFile(filepath.Join(work, "etc/hosts"), []byte("127.0.0.1 localhost\n127.0.1.1 guest\n"), 0o644),
		os.WriteFile(filepath.Join(work, "etc/machine-id"), []byte("00112233445566778899aabbccddeeff\n"), 0o444),
		apt.Run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-d", work, path, "2G"))
}

// bootstrap returns the archive with all files of the system.
func bootstrap(ctx context.Context, cache string) (string, error) {
	key := sha256.Sum256([]byte(release + system))
	kept := filepath.Join(cache, "guest", fmt.Sprintf("debian-%x.tar", key[:6]))
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
	if err := apt.Run(ctx, "mmdebstrap", "--quiet", "--variant=minbase", "--include="+system, release, whole); err != nil {
		return "", err
	}
	return kept, os.Rename(whole, kept)
}
