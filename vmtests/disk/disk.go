// Package disk builds small disks that boot, from Debian's packages: a GPT
// with an EFI system partition, an ext4 root, a data partition and swap. One
// disk starts on a BIOS (GRUB) and on UEFI (systemd-boot), and ends at a login
// prompt on the first serial port, a few seconds later.
//
// Building needs neither root nor loop devices; changing a data partition
// does. Kernel, boot loaders and busybox are unpacked from Debian's packages, not
// installed; the tools that lay them out are.
package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"platter/internal/export/rescue/apt"
	"platter/vmtests/debian"
)

const (
	mib        = 1 << 20
	sectorSize = 512
)

// A Part is a partition of a disk. Sizes are bytes.
type Part struct {
	Number      int
	Name        string // in the partition table
	Content     string // vfat, ext4, xfs, btrfs, swap; empty for boot code
	Start, Size int64
	kind        string // as sgdisk calls it
}

// A Disk is a disk in a raw, sparse file.
type Disk struct {
	Path  string
	Size  int64 // bytes
	Parts []Part
}

// Part returns the partition of a name.
func (d *Disk) Part(name string) Part {
	for _, p := range d.Parts {
		if p.Name == name {
			return p
		}
	}
	panic("disk: no partition " + name)
}

// Names of the partitions.
const (
	BootCode = "boot code"
	ESP      = "ESP"
	Root     = "root"
	Data     = "data"
	Swap     = "swap"
)

// A Spec says what to build.
type Spec struct {
	Path  string // of the file, replaced
	Cache string // folder for what is downloaded
	Data  string // file system of the data partition: xfs or btrfs
	// Files go to the data partition: paths below its root, and contents. The
	// guest proves them when it starts.
	Files map[string][]byte
}

// layout returns the partitions of a disk and its size.
func layout(data string) ([]Part, int64) {
	parts := []Part{
		{Name: BootCode, Size: 1 * mib, kind: "EF02"},
		{Name: ESP, Content: "vfat", Size: 64 * mib, kind: "EF00"},
		{Name: Root, Content: "ext4", Size: 192 * mib, kind: "8304"},
		// 300 MiB is the smallest XFS that mkfs.xfs makes.
		{Name: Data, Content: data, Size: 304 * mib, kind: "8300"},
		{Name: Swap, Content: "swap", Size: 16 * mib, kind: "8200"},
	}
	at := int64(mib)
	for i := range parts {
		parts[i].Number, parts[i].Start = i+1, at
		at += parts[i].Size
	}
	return parts, at + mib // the backup table
}

// Build makes the disk of a spec. What it downloads it keeps in the cache, so
// that the second build takes seconds and no network.
func Build(ctx context.Context, s Spec) (*Disk, error) {
	d, err := build(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("build disk %s: %w", s.Path, err)
	}
	return d, nil
}

func build(ctx context.Context, s Spec) (*Disk, error) {
	work, err := os.MkdirTemp(filepath.Dir(s.Path), "build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	b := builder{Disk: &Disk{Path: s.Path}, work: work, initramfs: filepath.Join(work, "initramfs")}
	b.Parts, b.Size = layout(s.Data)
	if err := b.fetch(ctx, s.Cache); err != nil {
		return nil, err
	}
	ramfs, err := initramfs(b.kernel, b.busybox)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(b.initramfs, ramfs, 0o644); err != nil {
		return nil, err
	}
	return b.Disk, b.build(ctx, s.Files)
}

// A builder makes one disk. work is a folder that is removed afterwards.
type builder struct {
	*Disk
	work      string
	kernel    *debian.Kernel
	initramfs string
	busybox   string // statically linked
	efiLoader string // systemd-boot
	grub      string // folder of GRUB's parts for a BIOS
}

// fetch gets the ready-made parts of the disk.
func (b *builder) fetch(ctx context.Context, cache string) (err error) {
	if b.kernel, err = debian.FetchKernel(ctx, cache); err != nil {
		return err
	}
	for _, part := range []struct {
		to            *string
		pkg, location string
	}{
		{&b.busybox, "busybox-static", "bin/busybox"},
		{&b.efiLoader, "systemd-boot-efi", "usr/lib/systemd/boot/efi/systemd-bootx64.efi"},
		{&b.grub, "grub-pc-bin", "usr/lib/grub/i386-pc"},
	} {
		tree, err := apt.Unpack(ctx, cache, part.pkg, []string{part.pkg}, nil)
		if err != nil {
			return err
		}
		*part.to = filepath.Join(tree, part.location)
	}
	return nil
}

func (b *builder) build(ctx context.Context, files map[string][]byte) error {
	if err := b.partition(ctx); err != nil {
		return err
	}
	for _, p := range b.Parts {
		if p.Content == "" {
			continue
		}
		path := filepath.Join(b.work, p.Name+".part")
		if err := sparse(path, p.Size); err != nil {
			return err
		}
		if err := b.format(ctx, p, path, files); err != nil {
			return fmt.Errorf("partition %s: %w", p.Name, err)
		}
		if err := b.place(p, path); err != nil {
			return err
		}
	}
	return b.installGRUB(ctx)
}

func (b *builder) partition(ctx context.Context) error {
	if err := os.RemoveAll(b.Path); err != nil {
		return err
	}
	if err := sparse(b.Path, b.Size); err != nil {
		return err
	}
	args := []string{"-o"}
	for _, p := range b.Parts {
		n := strconv.Itoa(p.Number)
		args = append(args,
			"-n", fmt.Sprintf("%s:%d:%d", n, p.Start/sectorSize, (p.Start+p.Size)/sectorSize-1),
			"-t", n+":"+p.kind, "-c", n+":"+p.Name)
	}
	return run(ctx, "sgdisk", append(args, b.Path)...)
}

func (b *builder) format(ctx context.Context, p Part, path string, files map[string][]byte) error {
	switch p.Name {
	case ESP:
		return b.formatESP(ctx, path)
	case Root:
		tree := filepath.Join(b.work, "root")
		if err := b.rootTree(tree, files); err != nil {
			return err
		}
		return run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", tree, path)
	case Data:
		tree := filepath.Join(b.work, "data")
		if err := writeTree(tree, files); err != nil {
			return err
		}
		return formatData(ctx, p.Content, path, tree)
	default:
		return run(ctx, "mkswap", "-q", "-L", "swap", path)
	}
}

// formatData fills a file system without mounting it.
func formatData(ctx context.Context, content, path, tree string) error {
	switch content {
	case "xfs":
		proto := path + ".proto"
		if err := writeProto(proto, tree); err != nil {
			return err
		}
		return run(ctx, "mkfs.xfs", "-q", "-f", "-L", "data", "-p", proto, path)
	case "btrfs":
		return run(ctx, "mkfs.btrfs", "-q", "-f", "-L", "data", "--rootdir", tree, path)
	default:
		return fmt.Errorf("file system %q: want xfs or btrfs", content)
	}
}

// place copies a partition into the disk.
func (b *builder) place(p Part, path string) error {
	return copySparse(b.Path, p.Start, path, 0, p.Size)
}

// copySparse copies length bytes between files or devices, leaving out zeros:
// the target must hold zeros there, as a fresh file does.
func copySparse(to string, toOffset int64, from string, fromOffset, length int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	buf := make([]byte, 64<<10)
	for off := int64(0); off < length; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), length-off)]
		if _, err := in.ReadAt(b, fromOffset+off); err != nil {
			return err
		}
		if allZero(b) {
			continue
		}
		if _, err := out.WriteAt(b, toOffset+off); err != nil {
			return err
		}
	}
	return nil
}

// allZero reports whether b holds zeros only: then it equals itself moved by
// one byte.
func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

func sparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func run(ctx context.Context, name string, args ...string) error {
	// The administration tools are outside a normal user's path.
	cmd := exec.CommandContext(ctx, tool(name), args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// tool returns the path of a program, looking in the administrator's folders
// too; where there is none, its name, whose start will fail and say so.
func tool(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); isFile(path) {
			return path
		}
	}
	return name
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
