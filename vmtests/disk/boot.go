package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// GRUB on a BIOS: the boot sector loads the first sector of the core image,
// which loads the rest by a list of block runs in itself.
const (
	coreListAt    = 0x1f4 // in the core's first sector: start (8), sectors (2), segment (2)
	coreSegment   = 0x820 // where the rest of the core is loaded
	kernelStartAt = 0x5c  // in the boot sector: the core's first sector (8)
	driveCheckAt  = 0x66  // in the boot sector: a jump that GRUB's installer removes
)

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
	if core, err = placeCore(core, at); err != nil {
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
	if _, err := f.WriteAt(placeBoot(boot, sector, at), 0); err != nil {
		return err
	}
	_, err = f.WriteAt(core, at.Start)
	return err
}

// placeCore pads the core image and tells it where the rest of it lies.
func placeCore(core []byte, at Part) ([]byte, error) {
	for len(core)%sectorSize != 0 {
		core = append(core, 0)
	}
	if int64(len(core)) > at.Size {
		return nil, fmt.Errorf("GRUB's core of %d bytes does not fit into %d", len(core), at.Size)
	}
	binary.LittleEndian.PutUint64(core[coreListAt:], uint64(at.Start/sectorSize+1))
	binary.LittleEndian.PutUint16(core[coreListAt+8:], uint16(len(core)/sectorSize-1))
	binary.LittleEndian.PutUint16(core[coreListAt+10:], coreSegment)
	return core, nil
}

// placeBoot returns GRUB's boot sector with the disk's parameter block, disk
// signature and protective partition table kept.
func placeBoot(boot, old []byte, core Part) []byte {
	b := append([]byte(nil), boot[:sectorSize]...)
	copy(b[0x03:0x5a], old[0x03:0x5a])
	copy(b[0x1b8:0x200], old[0x1b8:0x200])
	binary.LittleEndian.PutUint64(b[kernelStartAt:], uint64(core.Start/sectorSize))
	b[driveCheckAt], b[driveCheckAt+1] = 0x90, 0x90
	return b
}
