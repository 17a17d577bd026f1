package adapt

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"platter/block"
	"platter/block/command"
	"platter/internal/export/rescue/grub"
)

// Types of the partitions that firmware looks at.
const (
	typeESP     = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeBIOS    = "21686148-6449-6E6F-744E-656564454649"
	typeESPMBR  = "ef"
	fallback    = "/EFI/BOOT/BOOTX64.EFI"
	mediumFiles = "/run/medium" // of the rescue medium
)

// boot sees to it that the other machine's firmware finds a boot loader.
func (a *adapter) boot() error {
	now := a.startsBy()
	want := a.opts.Firmware
	esps := a.esps()
	for _, v := range esps {
		if err := a.makeFallback(v); err != nil {
			return err
		}
	}
	switch {
	case want == "uefi" && !slices.ContainsFunc(esps, func(v *volume) bool { return exists(v.fs, fallback) }):
		return a.toUEFI(esps)
	case want == "bios" && !now:
		return a.toBIOS()
	}
	return nil
}

// startsBy reports whether a BIOS finds code on the disk, and a place that it
// leads to.
func (a *adapter) startsBy() (bios bool) {
	first := make([]byte, 512)
	if _, err := a.raw().ReadAt(first, 0); err != nil || bytes.Equal(first[:440], make([]byte, 440)) {
		return false
	}
	if a.opts.Table == nil || a.opts.Table.Type != "gpt" {
		return true
	}
	code := a.bootCode()
	if code == nil {
		return slices.ContainsFunc(a.opts.Table.Partitions, func(p block.Partition) bool { return p.Active })
	}
	head := make([]byte, 512)
	_, err := a.raw().ReadAt(head, code.extent.Offset)
	return err == nil && !bytes.Equal(head, make([]byte, 512))
}

func (a *adapter) bootCode() *volume {
	for _, v := range a.volumes {
		if v.kind == typeBIOS {
			return v
		}
	}
	return nil
}

// esps are the EFI system partitions.
func (a *adapter) esps() (list []*volume) {
	for _, v := range a.volumes {
		if v.content == "vfat" && (strings.EqualFold(v.kind, typeESP) || v.kind == typeESPMBR) {
			list = append(list, v)
		}
	}
	return list
}

// makeFallback puts the boot loader that is there where firmware finds it that
// has never heard of it.
func (a *adapter) makeFallback(v *volume) error {
	if exists(v.fs, fallback) {
		return nil
	}
	for _, loader := range []string{"shimx64.efi", "grubx64.efi", "systemd-bootx64.efi"} {
		found := glob(v.fs, "/EFI/*/"+loader)
		if len(found) == 0 {
			continue
		}
		from := found[0]
		if err := copyFile(v.fs, from, fallback); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		// The shim starts what lies beside it.
		if loader == "shimx64.efi" {
			for _, name := range []string{"grubx64.efi", "mmx64.efi"} {
				err := copyFile(v.fs, path.Join(path.Dir(from), name), path.Join(path.Dir(fallback), name))
				if err != nil && !missing(err) {
					return fmt.Errorf("%s: %w", v.name, err)
				}
			}
		}
		a.changed("%s on %s: the boot loader %s, where firmware finds it that does not know this disk", fallback, v.name, from)
		return nil
	}
	return nil
}

// maxLoader is how large a boot loader can be, in bytes.
const maxLoader = 64 << 20

func copyFile(f filesystem, from, to string) error {
	body, err := read(f, from, maxLoader)
	if err != nil {
		return err
	}
	return f.write(to, body)
}

// grubFolder is where a system has GRUB's config, and what a GRUB without one
// is told to find it.
func (a *adapter) grubFolder() (m mounted, dir, config string, err error) {
	for _, s := range a.systems {
		for _, name := range []string{"/boot/grub", "/boot/grub2"} {
			m, rest := s.at(name)
			if !exists(m.fs, rest+"/grub.cfg") || m.v.uuid == "" {
				continue
			}
			config := fmt.Sprintf("search.fs_uuid %s root\nset prefix=($root)'%s'\nconfigfile $prefix/grub.cfg\n", m.v.uuid, path.Join(m.in, rest))
			return m, rest, config, nil
		}
	}
	return m, "", "", refuse("its boot loader has to be another, and it has no /boot/grub/grub.cfg that GRUB could be told of", "restore it without --firmware or --new-ids, to a machine that starts as the old one did")
}

// toUEFI gives a disk that only a BIOS started GRUB for UEFI, as Debian signs
// it.
func (a *adapter) toUEFI(esps []*volume) error {
	if len(esps) == 0 {
		return refuse("it has no EFI system partition, and UEFI starts from nothing else", "restore it to a machine that starts by BIOS, or whose UEFI can do as one (CSM)")
	}
	_, _, config, err := a.grubFolder()
	if err != nil {
		return err
	}
	loaders, err := a.signedGRUB()
	if err != nil {
		return err
	}
	esp := esps[0]
	for name, body := range loaders {
		if err := esp.fs.write(path.Join(path.Dir(fallback), name), body); err != nil {
			return fmt.Errorf("%s: %w", esp.name, err)
		}
	}
	// Debian's looks here, wherever it lies itself.
	const stub = "/EFI/debian/grub.cfg"
	if err := esp.fs.write(stub, []byte(config)); err != nil {
		return fmt.Errorf("%s: %w", esp.name, err)
	}
	a.changed("%s on %s: Debian's signed GRUB for UEFI, and %s, which leads to the system's own", fallback, esp.name, stub)
	return nil
}

// A source is where a file of boot loaders may be.
type source func(name string) ([]byte, error)

// sources are the systems of the image and this machine, in this order: what was
// on the old machine fits it best.
func (a *adapter) sources() (list []source) {
	for _, s := range a.systems {
		list = append(list, func(name string) ([]byte, error) {
			m, rest := s.at(name)
			return read(m.fs, rest, maxLoader)
		})
	}
	return append(list, func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(a.opts.Tree, name)) })
}

// signedGRUB returns shim and GRUB by the names that they have beside each
// other.
func (a *adapter) signedGRUB() (map[string][]byte, error) {
	packaged := map[string]string{
		"BOOTX64.EFI": "/usr/lib/shim/shimx64.efi.signed", "grubx64.efi": "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "mmx64.efi": "/usr/lib/shim/mmx64.efi.signed",
	}
	// The rescue medium has them, too, where it is mounted.
	medium := map[string]string{"BOOTX64.EFI": mediumFiles + fallback, "grubx64.efi": mediumFiles + "/EFI/BOOT/GRUBX64.EFI", "mmx64.efi": mediumFiles + "/EFI/BOOT/MMX64.EFI"}
	for _, from := range a.sources() {
		for _, names := range []map[string]string{packaged, medium} {
			found := map[string][]byte{}
			for to, name := range names {
				if body, err := from(name); err == nil {
					found[to] = body
				}
			}
			// Where Secure Boot is off, GRUB starts without the shim.
			if found["BOOTX64.EFI"] == nil && found["grubx64.efi"] != nil {
				found["BOOTX64.EFI"] = found["grubx64.efi"]
			}
			if found["grubx64.efi"] != nil {
				return found, nil
			}
		}
	}
	return nil, refuse("it has no boot loader for UEFI, and neither it nor this machine has one to put there", "install Debian's packages grub-efi-amd64-signed and shim-signed on this machine, or start it from the rescue medium")
}

// coreModules are built into GRUB for a BIOS: what it finds its config with, and
// what configs use.
var coreModules = []string{
	"biosdisk", "part_gpt", "part_msdos", "lvm", "ext2", "xfs", "btrfs", "fat", "search_fs_uuid", "search_label", "configfile", "normal",
	"linux", "boot", "gzio", "echo", "test", "minicmd", "loadenv", "sleep", "serial", "terminal",
}

// toBIOS gives a disk that only UEFI started GRUB for a BIOS.
func (a *adapter) toBIOS() error {
	start, sectors := int64(1), int64(0)
	if t := a.opts.Table; t == nil || a.opts.Sector != 512 {
		return refuse("a BIOS does not start from such a disk: it has no partition table, or sectors of another size than 512 bytes", "restore it to a machine that starts by UEFI")
	} else if t.Type == "gpt" {
		code := a.bootCode()
		if code == nil {
			return refuse("it has no BIOS boot partition, where GRUB would lie for a BIOS to start", "restore it to a machine that starts by UEFI")
		}
		start, sectors = code.extent.Offset/512, code.extent.Length/512
	} else {
		first := int64(2048)
		for _, p := range t.Partitions {
			first = min(first, p.Offset/512)
		}
		sectors = first - start
	}
	m, dir, config, err := a.grubFolder()
	if err != nil {
		return err
	}
	code, modules, err := a.biosGRUB(config, start, sectors)
	if err != nil {
		return err
	}
	old := make([]byte, 512)
	if _, err := a.raw().ReadAt(old, 0); err != nil {
		return err
	}
	if _, err := a.raw().WriteAt(code.Core, start*512); err != nil {
		return err
	}
	if _, err := a.raw().WriteAt(code.Sector(old), 0); err != nil {
		return err
	}
	for name, body := range modules {
		if err := m.fs.write(path.Join(dir, "i386-pc", name), body); err != nil {
			return fmt.Errorf("%s: %w", m.v.name, err)
		}
	}
	a.changed("GRUB for a BIOS in the first sectors of the disk, and its modules in %s/i386-pc on %s", dir, m.v.name)
	return nil
}

// biosGRUB makes GRUB for a BIOS of the parts that the image or this machine
// has, by this machine's own tool.
func (a *adapter) biosGRUB(config string, start, sectors int64) (*grub.Code, map[string][]byte, error) {
	if err := needs("grub-mkimage", "grub-common", "GRUB for a BIOS"); err != nil {
		return nil, nil, err
	}
	parts := filepath.Join(a.opts.Tree, "usr/lib/grub/i386-pc")
	if _, err := os.Stat(parts + "/boot.img"); err != nil {
		return nil, nil, refuse("it has no boot loader for a BIOS, and this machine has none to put there", "install Debian's package grub-pc-bin on this machine")
	}
	file, core := filepath.Join(a.dir, "grub.cfg"), filepath.Join(a.dir, "core.img")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, nil, err
	}
	if err := mkimage(a.ctx, parts, file, core); err != nil {
		return nil, nil, err
	}
	image, err := os.ReadFile(core)
	if err != nil {
		return nil, nil, err
	}
	boot, err := os.ReadFile(parts + "/boot.img")
	if err != nil {
		return nil, nil, err
	}
	code, err := grub.Place(boot, image, start, sectors)
	if err != nil {
		return nil, nil, refuse(err.Error(), "restore it to a machine that starts by UEFI")
	}
	modules := map[string][]byte{}
	for _, pattern := range []string{"*.mod", "*.lst"} {
		list, _ := filepath.Glob(filepath.Join(parts, pattern))
		for _, name := range list {
			body, err := os.ReadFile(name)
			if err != nil {
				return nil, nil, err
			}
			modules[filepath.Base(name)] = body
		}
	}
	return code, modules, nil
}

func mkimage(ctx context.Context, parts, config, core string) error {
	_, err := command.Run(ctx, "grub-mkimage", append([]string{"-O", "i386-pc", "-d", parts, "-o", core, "-p", "/boot/grub", "-c", config}, coreModules...)...)
	return err
}

// resetMachineID has a system make itself an identity when it starts.
func (a *adapter) resetMachineID(s *system) error {
	for _, name := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		old, err := read(s.rootFS, name, 4096)
		if missing(err) || err == nil && len(bytes.TrimSpace(old)) == 0 {
			continue
		} else if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := s.rootFS.write(name, nil); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		a.changed("%s on %s is empty: the system makes itself a new one", name, s.root.name)
	}
	return nil
}

// bindings are lines of network settings that are for one card only.
var bindings = []string{"HWADDR=", "MACADDR=", "mac-address=", "cloned-mac-address=", "hwaddress ", "hwaddr "}

// resetNetwork takes away what binds names and settings to cards by their
// addresses.
func (a *adapter) resetNetwork(s *system) error {
	for _, pattern := range []string{"/etc/udev/rules.d/*persistent-net.rules", "/etc/systemd/network/*.link"} {
		for _, name := range glob(s.rootFS, pattern) {
			text, err := read(s.rootFS, name, maxText)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if lower := bytes.ToLower(text); path.Ext(name) == ".link" && !bytes.Contains(lower, []byte("macaddress=")) {
				continue
			}
			if err := s.rootFS.remove(name); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			a.changed("%s on %s is gone: it named network cards by their addresses", name, s.root.name)
		}
	}
	for _, pattern := range []string{"/etc/sysconfig/network-scripts/ifcfg-*", "/etc/NetworkManager/system-connections/*", "/etc/network/interfaces", "/etc/network/interfaces.d/*"} {
		for _, name := range glob(s.rootFS, pattern) {
			text, err := read(s.rootFS, name, maxText)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			var kept bytes.Buffer
			for line := range bytes.Lines(text) {
				if !slices.ContainsFunc(bindings, func(b string) bool { return bytes.HasPrefix(bytes.TrimSpace(line), []byte(b)) }) {
					kept.Write(line)
				}
			}
			if kept.Len() == len(text) {
				continue
			}
			if err := s.rootFS.write(name, kept.Bytes()); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			a.changed("%s on %s: for any network card, not for one by its address", name, s.root.name)
		}
	}
	for _, name := range glob(s.rootFS, "/etc/netplan/*") {
		if text, _ := read(s.rootFS, name, maxText); bytes.Contains(text, []byte("macaddress")) {
			a.left("%s on %s binds settings to a network card by its address", name, s.root.name)
		}
	}
	return nil
}
