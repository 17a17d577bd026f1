package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"platter/internal/export/rescue/grub"
)

// commandLine starts the small system with its console on the serial port.
func (b *builder) commandLine() string {
	root := map[Stack]string{Plain: "LABEL=root", LVM: "/dev/mapper/" + group + "-root", LUKS: "/dev/mapper/root"}[b.Stack]
	return "root=" + root + " rw console=ttyS0 quiet mitigations=off tsc=reliable no_timer_check random.trust_cpu=on net.ifnames=0"
}

// grubConfig leads GRUB to the kernel, and to nothing else.
func (b *builder) grubConfig() string {
	label, dir := Root, "/boot/"
	if b.apart() {
		label, dir = Boot, "/"
	}
	return fmt.Sprintf("search.fs_label %s root\nlinux %svmlinuz %s\ninitrd %[2]sinitrd.img\nboot\n", label, dir, b.commandLine())
}

// espTree lays out the EFI system partition: a boot loader under the name that
// firmware tries by itself, and what it looks for.
func (b *builder) espTree(dir string) error {
	const loader = "EFI/BOOT/BOOTX64.EFI"
	files, copies := map[string][]byte{}, map[string]string{}
	if b.has(GRUBForUEFI) {
		copies[loader] = filepath.Join(b.signed, "usr/lib/shim/shimx64.efi.signed")
		copies["EFI/BOOT/grubx64.efi"] = filepath.Join(b.signed, "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed")
		files["EFI/debian/grub.cfg"] = []byte(b.grubConfig())
	}
	if b.has(SystemdBoot) {
		copies[loader] = b.sdboot
		files = b.kernelFiles()
		files["loader/loader.conf"] = []byte("timeout 0\ndefault debian.conf\n")
		files["loader/entries/debian.conf"] = []byte("title Debian\nlinux /vmlinuz\ninitrd /initrd.img\noptions " + b.commandLine() + "\n")
	}
	for to, from := range copies {
		body, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		files[to] = body
	}
	return writeTree(dir, files)
}

// formatFAT makes a FAT with the files of a folder.
func formatFAT(ctx context.Context, path, tree string) error {
	if err := run(ctx, "mkfs.vfat", "-F", "32", "-n", ESP, path); err != nil {
		return err
	}
	top, err := os.ReadDir(tree)
	if err != nil {
		return err
	}
	args := []string{"-s", "-i", path}
	for _, e := range top {
		args = append(args, filepath.Join(tree, e.Name()))
	}
	return run(ctx, "mcopy", append(args, "::")...)
}

// installGRUB puts the core image into the boot code partition and the boot
// sector in front of the partition table, as grub-bios-setup would, which
// needs a device and root.
func (b *builder) installGRUB(ctx context.Context) (err error) {
	config, corePath := filepath.Join(b.work, "grub.cfg"), filepath.Join(b.work, "core.img")
	if err := os.WriteFile(config, []byte(b.grubConfig()), 0o644); err != nil {
		return err
	}
	modules := []string{"biosdisk", "part_gpt", "search_label", "linux", "boot"}
	switch kind := b.Root; {
	case b.apart() || kind == "ext4":
		modules = append(modules, "ext2")
	default:
		modules = append(modules, kind)
	}
	if b.Stack == LVM {
		modules = append(modules, "lvm")
	}
	err = run(ctx, "grub-mkimage", append([]string{"-O", "i386-pc", "-d", b.grub, "-o", corePath, "-p", "/boot/grub", "-c", config}, modules...)...)
	if err != nil {
		return err
	}
	core, err := os.ReadFile(corePath)
	if err != nil {
		return err
	}
	boot, err := os.ReadFile(filepath.Join(b.grub, "boot.img"))
	if err != nil {
		return err
	}
	at := b.Part(BootCode)
	code, err := grub.Place(boot, core, at.Start/sectorSize, at.Size/sectorSize)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(b.Disk.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sector := make([]byte, sectorSize)
	if _, err := f.ReadAt(sector, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(code.Sector(sector), 0); err != nil {
		return err
	}
	_, err = f.WriteAt(code.Core, at.Start)
	return err
}
