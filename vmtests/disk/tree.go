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

	"platter/internal/export/rescue/cpio"
)

// startScript runs in the guest before the login prompt. It mounts everything
// and proves the files that /etc/proof lists.
func (b *builder) startScript() string {
	lines := []string{"#!/bin/sh", "mount -t proc proc /proc", "mount -t sysfs sys /sys", "mount -t tmpfs run /run", "mount -o remount,rw /", "hostname -F /etc/hostname"}
	for _, p := range b.Parts {
		switch p.Name {
		case ESP:
			lines = append(lines, `mount LABEL=ESP /boot/efi && echo "mounted: ESP"`)
		case Data:
			lines = append(lines, `mount LABEL=data /data && echo "mounted: data"`)
		case Swap:
			lines = append(lines, `swapon LABEL=swap && echo "swap: on"`)
		}
	}
	return strings.Join(append(lines,
		`if busybox sha256sum -s -c /etc/proof; then echo "proof: $(busybox wc -l < /etc/proof) files as they should be"`,
		`else echo "proof: FAILED"; fi`,
		`for s in /etc/start.d/*; do [ ! -e "$s" ] || . "$s"; done`, ""), "\n")
}

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
// kernel and, on a disk with a data partition, the kernel's modules, which are
// there to be real data.
func (b *builder) rootTree(tree string) error {
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
	files := map[string][]byte{
		"etc/passwd":   []byte("root::0:0:root:/root:/bin/sh\n"),
		"etc/hostname": []byte(HostName + "\n"),
		"etc/issue":    []byte("Restored by Platter\n"),
		"etc/inittab":  []byte("::sysinit:/bin/sh /etc/start\nttyS0::respawn:/sbin/getty -L ttyS0 115200 vt100\n"),
		"etc/start":    []byte(b.startScript()),
		Proof:          ProofOf(within("/data", b.Files)),
	}
	if b.Data == "" {
		files[Proof] = ProofOf(within("/srv", b.Files))
		for path, body := range b.Files {
			files["srv/"+path] = body
		}
	}
	if !b.apart() {
		for path, body := range b.kernelFiles() {
			files["boot/"+path] = body
		}
	}
	errs := []error{writeTree(tree, files), copyFile(filepath.Join(tree, "bin/busybox"), b.busybox, 0o755)}
	if b.Data != "" {
		errs = append(errs, os.CopyFS(filepath.Join(tree, "usr/lib/modules"), os.DirFS(b.kernel.Modules)))
	}
	for _, e := range b.Added {
		errs = append(errs, add(tree, e))
	}
	return errors.Join(errs...)
}

// add puts one more file into a tree.
func add(tree string, e cpio.Entry) error {
	path := filepath.Join(tree, e.Name)
	switch e.Mode &^ 0o777 {
	case cpio.Dir:
		return os.MkdirAll(path, 0o755)
	case cpio.Link:
		return os.Symlink(string(e.Body), path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, e.Body, fs.FileMode(e.Mode&0o777))
}

func copyFile(to, from string, perm fs.FileMode) error {
	body, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, body, perm)
}

// within returns files by their paths in the guest, which has them in dir.
func within(dir string, files map[string][]byte) map[string][]byte {
	at := make(map[string][]byte, len(files))
	for path, body := range files {
		at[dir+"/"+path] = body
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
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case mode&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(b, "%s l--777 0 0 %s\n", e.Name(), to)
			continue
		case !mode.IsDir():
			fmt.Fprintf(b, "%s ---%03o 0 0 %s\n", e.Name(), mode.Perm(), path)
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
