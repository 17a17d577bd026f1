package rescue

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A module of the kernel, as it says itself in its section .modinfo.
type module struct {
	name     string
	path     string // below the folder of modules
	body     []byte // unpacked
	depends  []string
	before   []string // soft dependencies, by name or alias
	aliases  []string
	firmware []string
}

// folders hold the drivers that a bare machine may need to get at its disks and
// at a network, and filesystems. What these depend on is added.
var folders = []string{
	"arch/x86/crypto", "crypto", "lib",
	"drivers/ata", "drivers/block", "drivers/firewire", "drivers/hv", "drivers/md", "drivers/message", "drivers/mmc",
	"drivers/nvdimm", "drivers/nvme", "drivers/pci", "drivers/scsi", "drivers/ufs", "drivers/usb/common", "drivers/usb/core",
	"drivers/usb/host", "drivers/usb/storage", "drivers/virtio", "drivers/xen",
	"drivers/hid/hid.ko", "drivers/hid/hid-generic.ko", "drivers/hid/usbhid", "drivers/hid/hid-hyperv.ko", "drivers/input/serio",
	"drivers/net/ethernet", "drivers/net/hyperv", "drivers/net/mdio", "drivers/net/phy", "drivers/net/usb", "drivers/net/vmxnet3",
	"drivers/net/virtio_net.ko", "drivers/net/xen-netfront.ko", "drivers/net/net_failover.ko",
	"fs/btrfs", "fs/efivarfs", "fs/exfat", "fs/ext4", "fs/fat", "fs/fuse", "fs/isofs", "fs/nls", "fs/ntfs3", "fs/squashfs", "fs/xfs",
	"net/packet", "net/ipv6",
}

// leftOut are parts of folders that are large and not for this.
var leftOut = []string{
	"drivers/scsi/scsi_debug", "lib/test_", "lib/kunit", "crypto/tcrypt", "drivers/net/ethernet/mellanox/mlxsw",
	"drivers/block/drbd", "drivers/block/null_blk", "drivers/md/persistent-data/test",
}

// readModules returns the modules for a medium out of the folder of a kernel's
// modules, by name in order.
func readModules(dir string) ([]*module, error) {
	all := map[string]*module{}
	wanted := []string{}
	kernel := filepath.Join(dir, "kernel")
	err := filepath.WalkDir(kernel, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(filepath.Base(path), ".ko") {
			return err
		}
		rel, err := filepath.Rel(kernel, path)
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(filepath.Base(rel), ".")
		name = strings.ReplaceAll(name, "-", "_")
		all[name] = &module{name: name, path: rel}
		if below(rel, folders) && !begins(rel, leftOut) {
			wanted = append(wanted, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	taken := map[string]*module{}
	for len(wanted) > 0 {
		m := all[wanted[0]]
		wanted = wanted[1:]
		if m == nil || taken[m.name] != nil {
			continue
		}
		if err := m.read(filepath.Join(kernel, m.path)); err != nil {
			return nil, fmt.Errorf("module %s: %w", m.path, err)
		}
		taken[m.name] = m
		wanted = append(append(wanted, m.depends...), m.before...)
	}
	var list []*module
	for _, name := range slices.Sorted(maps.Keys(taken)) {
		list = append(list, taken[name])
	}
	return list, nil
}

// below reports whether a path is one of those, or in one.
func below(path string, places []string) bool {
	return slices.ContainsFunc(places, func(p string) bool {
		rest, ok := strings.CutPrefix(path, p)
		return ok && (rest == "" || rest[0] == '/')
	})
}

func begins(path string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(path, p) })
}

// read reads a module as it lies there, signature and all.
func (m *module) read(path string) (err error) {
	switch {
	case strings.HasSuffix(path, ".xz"):
		m.body, err = exec.Command("xz", "-dc", path).Output()
	case strings.HasSuffix(path, ".zst"):
		m.body, err = exec.Command("zstd", "-dcq", path).Output()
	default:
		m.body, err = os.ReadFile(path)
	}
	if err != nil {
		return err
	}
	m.path, _, _ = strings.Cut(m.path, ".ko")
	m.path += ".ko"
	f, err := elf.NewFile(bytes.NewReader(m.body))
	if err != nil {
		return err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return fmt.Errorf("says nothing of itself: no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return err
	}
	for fact := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(fact, "=")
		switch key {
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					m.depends = append(m.depends, strings.ReplaceAll(name, "-", "_"))
				}
			}
		case "softdep":
			if names, ok := strings.CutPrefix(value, "pre: "); ok {
				names, _, _ = strings.Cut(names, "post:")
				m.before = append(m.before, strings.Fields(names)...)
			}
		case "alias":
			m.aliases = append(m.aliases, value)
		case "firmware":
			m.firmware = append(m.firmware, value)
		}
	}
	return nil
}

// index returns what modprobe reads: modules.dep, where each line has a module
// and all that it needs, those to be loaded last first, and modules.alias.
func index(modules []*module) (deps, aliases []byte) {
	byName := map[string]*module{}
	for _, m := range modules {
		byName[m.name] = m
	}
	var d, a bytes.Buffer
	for _, m := range modules {
		var order []string
		seen := map[string]bool{m.name: true}
		var add func(m *module)
		add = func(m *module) {
			for _, name := range append(slices.Clone(m.depends), m.before...) {
				if n := byName[name]; n != nil && !seen[name] {
					seen[name] = true
					add(n)
					order = append(order, "kernel/"+n.path)
				}
			}
		}
		add(m)
		slices.Reverse(order)
		fmt.Fprintf(&d, "%s: %s\n", "kernel/"+m.path, strings.Join(order, " "))
		for _, alias := range m.aliases {
			fmt.Fprintf(&a, "alias %s %s\n", alias, m.name)
		}
	}
	return d.Bytes(), a.Bytes()
}
