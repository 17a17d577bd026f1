package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"platter/internal/export/rescue/grub"
)

// commandLine starts the small system with its console on the serial port.
const commandLine = "root=LABEL=root rw console=ttyS0 quiet mitigations=off random.trust_cpu=on net.ifnames=0"

// formatESP makes the EFI system partition: systemd-boot under the name that
// firmware tries by itself, and kernel and initramfs beside it.
func (b *builder) formatESP(ctx context.Context, path string) error {
	if err := run(ctx, "mkfs.vfat", "-F", "32", "-n", "ESP", path); err != nil {
		return err
	}
	loader, entry := filepath.Join(b.work, "loader.conf"), filepath.Join(b.work, "debian.conf")
	err := errors.Join(
		os.WriteFile(loader, []byte("timeout 0\ndefault debian.conf\n"), 0o644),
		os.WriteFile(entry, []byte("title Debian\nlinux /vmlinuz\ninitrd /initrd.img\noptions "+commandLine+"\n"), 0o644))
	if err != nil {
		return err
	}
	if err := run(ctx, "mmd", "-i", path, "::EFI", "::EFI/BOOT", "::loader", "::loader/entries"); err != nil {
		return err
	}
	for _, file := range [][2]string{
		{b.efiLoader, "EFI/BOOT/BOOTX64.EFI"},
		{loader, "loader/loader.conf"},
		{entry, "loader/entries/debian.conf"},
		{b.kernel.Image, "vmlinuz"},
		{b.initramfs, "initrd.img"},
	} {
		if err := run(ctx, "mcopy", "-i", path, file[0], "::"+file[1]); err != nil {
			return err
		}
	}
	return nil
}

// grubConfig is built into the core image, so that nothing else is looked for.
const grubConfig = `search.fs_label root root
linux /boot/vmlinuz ` + commandLine + `
initrd /boot/initrd.img
boot
`

// installGRUB puts the core image into the boot code partition and the boot
// sector in front of the partition table, as grub-bios-setup would, which
// needs a device and root.
func (b *builder) installGRUB(ctx context.Context) (err error) {
	config, corePath := filepath.Join(b.work, "grub.cfg"), filepath.Join(b.work, "core.img")
	if err := os.WriteFile(config, []byte(grubConfig), 0o644); err != nil {
		return err
	}
	err = run(ctx, "grub-mkimage", "-O", "i386-pc", "-d", b.grub, "-o", corePath, "-p", "/boot/grub", "-c", config,
		"biosdisk", "part_gpt", "ext2", "search_label", "linux", "boot")
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
	f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
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
