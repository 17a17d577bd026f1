package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// startScript runs in the guest before the login prompt. It mounts everything
// and proves the files that /etc/proof lists.
const startScript = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -o remount,rw /
hostname -F /etc/hostname
mount LABEL=data /data && echo "mounted: data"
mount LABEL=ESP /boot/efi && echo "mounted: ESP"
swapon LABEL=swap && echo "swap: on"
if busybox sha256sum -s -c /etc/proof; then echo "proof: $(busybox wc -l < /etc/proof) files as they should be"
else echo "proof: FAILED"; fi
`

// Proof is the path, below the root file system, of the list of files that the
// guest checks when it starts, in the form of sha256sum.
const Proof = "etc/proof"

// HostName is what the small system calls itself at its prompt.
const HostName = "platter-mini"

// applets are the commands of the small system.
var applets = []string{
	"cat", "echo", "hostname", "ls", "login", "mount", "poweroff", "reboot", "sh", "swapon", "sync", "umount",
}

// rootTree lays out the root file system: busybox, its configuration, the
// kernel and the kernel's modules, which are there to be real data.
func (b *builder) rootTree(tree string, data map[string][]byte) error {
	for _, dir := range []string{"bin", "boot/efi", "data", "dev", "etc", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr/lib", "var/log"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", a)); err != nil {
			return err
		}
	}
	for _, a := range []string{"init", "getty"} {
		if err := os.Symlink("../bin/busybox", filepath.Join(tree, "sbin", a)); err != nil {
			return err
		}
	}
	for path, body := range map[string]string{
		"etc/passwd":   "root::0:0:root:/root:/bin/sh\n",
		"etc/hostname": HostName + "\n",
		"etc/issue":    "Restored by Platter\n",
		"etc/inittab":  "::sysinit:/bin/sh /etc/start\nttyS0::respawn:/sbin/getty -L ttyS0 115200 vt100\n",
		"etc/start":    startScript,
		Proof:          string(ProofOf(inData(data))),
	} {
		if err := os.WriteFile(filepath.Join(tree, path), []byte(body), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(
		copyFile(filepath.Join(tree, "bin/busybox"), b.busybox, 0o755),
		copyFile(filepath.Join(tree, "boot/vmlinuz"), b.kernel.Image, 0o644),
		copyFile(filepath.Join(tree, "boot/initrd.img"), b.initramfs, 0o644),
		copyModules(filepath.Join(tree, "usr/lib/modules"), b.kernel.Modules))
}

func copyFile(to, from string, perm fs.FileMode) error {
	body, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, body, perm)
}

func copyModules(to, from string) error { return os.CopyFS(to, os.DirFS(from)) }

// inData returns files of the data partition by their paths in the guest.
func inData(files map[string][]byte) map[string][]byte {
	at := make(map[string][]byte, len(files))
	for path, body := range files {
		at["/data/"+path] = body
	}
	return at
}

// ProofOf lists files as Proof wants them: paths in the running guest, and
// contents.
func ProofOf(files map[string][]byte) []byte {
	var lines []string
	for path, body := range files {
		lines = append(lines, fmt.Sprintf("%x  %s\n", sha256.Sum256(body), path))
	}
	slices.Sort(lines)
	return []byte(strings.Join(lines, ""))
}

func writeTree(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for path, body := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeProto describes a tree in the form that mkfs.xfs reads: one line a
// file, "$" at the end of a folder. Names must not hold white space.
func writeProto(path, tree string) error {
	var b strings.Builder
	b.WriteString("/\n0 0\nd--755 0 0\n")
	if err := protoFolder(&b, tree); err != nil {
		return err
	}
	b.WriteString("$\n")
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

func protoFolder(b *strings.Builder, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.IsDir() {
			fmt.Fprintf(b, "%s ---644 0 0 %s\n", e.Name(), path)
			continue
		}
		fmt.Fprintf(b, "%s d--755 0 0\n", e.Name())
		if err := protoFolder(b, path); err != nil {
			return err
		}
		b.WriteString("$\n")
	}
	return nil
}
