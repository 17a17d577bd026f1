// Package disk builds small disks that boot, from Debian's packages: a GPT with
// what a BIOS or UEFI starts, and a root that lies on a partition, a logical
// volume or an encrypted one. They end at a login prompt on the first serial port,
// a few seconds later.
//
// Building needs neither root nor loop devices; changing a data partition
// does. Kernel, boot loaders and busybox are unpacked from Debian's packages, not
// installed; the tools that lay them out are. Volumes are made in a guest.
package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"platter/internal/export/rescue/apt"
	"platter/internal/export/rescue/cpio"
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
	Content     string // vfat, ext4, xfs, btrfs, swap, LVM2_member; empty for boot code
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
	Boot     = "boot" // kernel and initramfs, where GRUB cannot read the root
	Root     = "root"
	Data     = "data"
	Swap     = "swap"
)

// A Loader is what the firmware starts.
type Loader string

// The loaders.
const (
	GRUBForBIOS Loader = "GRUB by a BIOS"
	GRUBForUEFI Loader = "GRUB by UEFI" // signed for Secure Boot, as is the kernel
	SystemdBoot Loader = "systemd-boot by UEFI"
)

// A Stack is what the root file system lies on.
type Stack string

// The stacks.
const (
	Plain Stack = ""            // the partition itself
	LVM   Stack = "LVM"         // a logical volume
	LUKS  Stack = "LUKS on LVM" // an encrypted one, opened by Passphrase
)

// Passphrase opens what is encrypted. The disk asks for it on the serial port:
// "Enter passphrase".
const Passphrase = "correct horse"

// A Spec says what to build.
type Spec struct {
	Path  string // of the file, replaced
	Cache string // folder for what is downloaded
	// Loaders start it; GRUBForBIOS and SystemdBoot if nil, of which each firmware
	// finds its own.
	Loaders []Loader
	Root    string // file system of the root: ext4 if empty, xfs or btrfs
	Stack   Stack
	// Data is the file system of a data partition, behind which there is swap: xfs
	// or btrfs. Empty means neither of them.
	Data string
	// Files go to the data partition, or to the folder srv of the root: paths below,
	// and contents. The guest proves them when it starts.
	Files map[string][]byte
	// Added are more files of the root. Scripts in etc/start.d are run before there
	// is a login prompt.
	Added   []cpio.Entry
	Modules []string // of the kernel, beside those that it takes to start
	// Hardware takes Debian's kernel for real machines, which has AHCI, instead of
	// that for virtual ones.
	Hardware bool
	Unused   int64 // bytes that no partition has, at the end
	// Kept keeps what is built in Cache, so that it is built once.
	Kept bool
}

func (s *Spec) has(l Loader) bool { return slices.Contains(s.Loaders, l) }

// apart reports whether the kernel lies on a partition of its own.
func (s *Spec) apart() bool { return s.Stack == LUKS && (s.has(GRUBForBIOS) || s.has(GRUBForUEFI)) }

// rootSize is the size of a root file system in bytes. XFS has at least 300 MiB.
func rootSize(kind string) int64 {
	if kind == "xfs" {
		return 304 * mib
	}
	return 192 * mib
}

// layout returns the partitions of a disk and its size.
func layout(s *Spec) ([]Part, int64) {
	var parts []Part
	add := func(wanted bool, p Part) {
		if wanted {
			parts = append(parts, p)
		}
	}
	root := Part{Name: Root, Content: s.Root, Size: rootSize(s.Root), kind: "8304"}
	if s.Stack != Plain {
		root.Content, root.Size, root.kind = "LVM2_member", root.Size+stackRoom, "8E00"
	}
	add(s.has(GRUBForBIOS), Part{Name: BootCode, Size: 1 * mib, kind: "EF02"})
	add(s.has(GRUBForUEFI) || s.has(SystemdBoot), Part{Name: ESP, Content: "vfat", Size: 64 * mib, kind: "EF00"})
	add(s.apart(), Part{Name: Boot, Content: "ext4", Size: 64 * mib, kind: "8300"})
	add(true, root)
	add(s.Data != "", Part{Name: Data, Content: s.Data, Size: 304 * mib, kind: "8300"})
	add(s.Data != "", Part{Name: Swap, Content: "swap", Size: 16 * mib, kind: "8200"})
	at := int64(mib)
	for i := range parts {
		parts[i].Number, parts[i].Start = i+1, at
		at += parts[i].Size
	}
	return parts, at + s.Unused + mib // the backup table
}

// Build makes the disk of a spec. What it downloads it keeps in the cache, so
// that the second build takes seconds and no network.
func Build(ctx context.Context, s Spec) (*Disk, error) {
	if s.Loaders == nil {
		s.Loaders = []Loader{GRUBForBIOS, SystemdBoot}
	}
	if s.Root == "" {
		s.Root = "ext4"
	}
	d, err := build(ctx, &s)
	if err != nil {
		return nil, fmt.Errorf("build disk %s: %w", s.Path, err)
	}
	return d, nil
}

func build(ctx context.Context, s *Spec) (*Disk, error) {
	work, err := os.MkdirTemp(filepath.Dir(s.Path), "build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	b := builder{Spec: s, Disk: &Disk{Path: s.Path}, work: work}
	b.Parts, b.Size = layout(s)
	if err := b.fetch(ctx); err != nil {
		return nil, err
	}
	if err := b.lay(); err != nil {
		return nil, err
	}
	if s.Kept {
		return b.Disk, b.buildOnce(ctx)
	}
	return b.Disk, b.build(ctx)
}

// A builder makes one disk. work is a folder that is removed afterwards; in it
// is a folder for each partition with files, of its name.
type builder struct {
	*Spec
	*Disk
	work      string
	kernel    *debian.Kernel
	image     []byte // the kernel
	initramfs []byte
	busybox   string // statically linked
	sdboot    string // systemd-boot
	grub      string // folder of GRUB's parts for a BIOS
	signed    string // folder of the packages of shim and GRUB for UEFI
	volumes   string // folder of the packages of LVM and cryptsetup
}

// fetch gets the ready-made parts of the disk.
func (b *builder) fetch(ctx context.Context) (err error) {
	kernel := debian.FetchKernel
	if b.Hardware {
		kernel = debian.FetchHardwareKernel
	}
	if b.kernel, err = kernel(ctx, b.Cache); err != nil {
		return err
	}
	if b.image, err = os.ReadFile(b.kernel.Image); err != nil {
		return err
	}
	for _, part := range []struct {
		wanted         bool
		to             *string
		name, location string
		packages       []string
	}{
		{true, &b.busybox, "busybox-static", "bin/busybox", nil},
		{b.has(SystemdBoot), &b.sdboot, "systemd-boot-efi", "usr/lib/systemd/boot/efi/systemd-bootx64.efi", nil},
		{b.has(GRUBForBIOS), &b.grub, "grub-pc-bin", "usr/lib/grub/i386-pc", nil},
		{b.has(GRUBForUEFI), &b.signed, "signed-loaders", "", []string{"shim-signed", "grub-efi-amd64-signed"}},
		{b.Stack != Plain, &b.volumes, "volumes", "", volumePackages},
	} {
		if !part.wanted {
			continue
		}
		if part.packages == nil {
			part.packages = []string{part.name}
		}
		tree, err := apt.Unpack(ctx, b.Cache, part.name, part.packages, nil)
		if err != nil {
			return err
		}
		*part.to = filepath.Join(tree, part.location)
	}
	b.initramfs, err = b.initialFiles()
	return err
}

// lay lays out the files of each partition.
func (b *builder) lay() error {
	for _, p := range b.Parts {
		var err error
		switch dir := b.folder(p); p.Name {
		case ESP:
			err = b.espTree(dir)
		case Boot:
			err = writeTree(dir, b.kernelFiles())
		case Root:
			err = b.rootTree(dir)
		case Data:
			err = writeTree(dir, b.Files)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) folder(p Part) string { return filepath.Join(b.work, p.Name) }

// kernelFiles are what a boot loader looks for.
func (b *builder) kernelFiles() map[string][]byte {
	return map[string][]byte{"vmlinuz": b.image, "initrd.img": b.initramfs}
}

func (b *builder) build(ctx context.Context) error {
	if err := b.partition(ctx); err != nil {
		return err
	}
	for _, p := range b.Parts {
		if p.Content == "" {
			continue
		}
		path := filepath.Join(b.work, p.Name+".part")
		if err := b.format(ctx, p, path); err != nil {
			return fmt.Errorf("partition %s: %w", p.Name, err)
		}
		if p.Name == Root && b.Stack != Plain {
			if err := b.stack(ctx, p, path); err != nil {
				return fmt.Errorf("partition %s: %w", p.Name, err)
			}
			continue
		}
		if err := b.place(p, path); err != nil {
			return err
		}
	}
	if b.has(GRUBForBIOS) {
		return b.installGRUB(ctx)
	}
	return nil
}

func (b *builder) partition(ctx context.Context) error {
	if err := os.RemoveAll(b.Disk.Path); err != nil {
		return err
	}
	if err := sparse(b.Disk.Path, b.Size); err != nil {
		return err
	}
	args := []string{"-o"}
	for _, p := range b.Parts {
		n := strconv.Itoa(p.Number)
		args = append(args,
			"-n", fmt.Sprintf("%s:%d:%d", n, p.Start/sectorSize, (p.Start+p.Size)/sectorSize-1),
			"-t", n+":"+p.kind, "-c", n+":"+p.Name)
	}
	return run(ctx, "sgdisk", append(args, b.Disk.Path)...)
}

// format makes a file with what a partition, or the volume in it, holds.
func (b *builder) format(ctx context.Context, p Part, path string) error {
	kind, size, tree := p.Content, p.Size, b.folder(p)
	if p.Name == Root {
		kind, size = b.Root, rootSize(b.Root)
	}
	if err := sparse(path, size); err != nil {
		return err
	}
	switch kind {
	case "vfat":
		return formatFAT(ctx, path, tree)
	case "ext4":
		return run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", p.Name, "-d", tree, path)
	case "xfs":
		proto := path + ".proto"
		if err := writeProto(proto, tree); err != nil {
			return err
		}
		return run(ctx, "mkfs.xfs", "-q", "-f", "-L", p.Name, "-p", proto, path)
	case "btrfs":
		return run(ctx, "mkfs.btrfs", "-q", "-f", "-L", p.Name, "--rootdir", tree, path)
	case "swap":
		return run(ctx, "mkswap", "-q", "-L", p.Name, path)
	}
	return fmt.Errorf("file system %q: want ext4, xfs or btrfs", kind)
}

// place copies a partition into the disk.
func (b *builder) place(p Part, path string) error {
	return copySparse(b.Disk.Path, p.Start, path, 0, p.Size)
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
