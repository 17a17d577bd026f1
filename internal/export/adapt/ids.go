package adapt

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"platter/block"
	"platter/block/command"
)

// A renewer gives a filesystem in a file or device a new identity.
type renewer struct {
	tool, pkg string
	settled   bool // the kernel has to mount it before, and bring its journal to an end
	run       func(a *adapter, path string) error
}

func renewers(content string) (renewer, bool) {
	tool := func(name string, args ...string) func(*adapter, string) error {
		return func(a *adapter, path string) error {
			_, err := command.Run(a.ctx, name, append(args, path)...)
			return err
		}
	}
	switch content {
	case "ext2", "ext3", "ext4":
		return renewer{"tune2fs", "e2fsprogs", false, func(a *adapter, path string) error {
			// Checksums of all metadata are made from the UUID: it wants a sound
			// filesystem. 1 and 2 mean that what was found is mended.
			_, err := command.Run(a.ctx, "e2fsck", "-f", "-p", path)
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() <= 2 {
				err = nil
			}
			if err == nil {
				_, err = command.Run(a.ctx, "tune2fs", "-U", "random", path)
			}
			return err
		}}, true
	case "xfs":
		return renewer{"xfs_db", "xfsprogs", true, tool("xfs_db", "-x", "-f", "-c", "uuid generate")}, true
	case "btrfs":
		return renewer{"btrfstune", "btrfs-progs", true, tool("btrfstune", "-m")}, true
	case "swap":
		return renewer{"swaplabel", "util-linux", false, func(a *adapter, path string) error {
			_, err := command.Run(a.ctx, "swaplabel", "-U", randomUUID(), path)
			return err
		}}, true
	case "vfat":
		return renewer{"mlabel", "mtools", false, func(a *adapter, path string) error {
			b := make([]byte, 4)
			_, _ = rand.Read(b) // never fails
			_, err := command.Run(a.ctx, "mlabel", "-N", fmt.Sprintf("%x", b), "-i", path, "::")
			return err
		}}, true
	}
	return renewer{}, false
}

func randomUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newIDs gives the disk, its partitions and its filesystems new identities.
// Whatever cannot have one keeps it, and that is said.
func (a *adapter) newIDs() error {
	for _, v := range a.volumes {
		if err := a.canRenew(v); err != nil {
			return err
		}
	}
	groups, err := a.findGroups()
	if err != nil {
		return err
	}
	if len(groups) > 0 && a.startsBy() {
		// What a BIOS starts finds its files by the identity of their group.
		defer func() { a.reinstall = true }()
	}
	before := map[int64]*volume{}
	for _, v := range a.volumes {
		before[v.begin()] = v
	}
	changes, err := block.NewIDs(a.raw())
	if err != nil {
		return refuse(err.Error(), "restore it without --new-ids")
	}
	for _, v := range a.volumes {
		if err := a.renew(v); err != nil {
			return fmt.Errorf("new identity of %s: %w", v.name, err)
		}
	}
	if err := a.renewGroups(groups); err != nil {
		return err
	}
	a.look()
	for _, v := range a.volumes {
		old := before[v.begin()]
		if old == nil {
			return fmt.Errorf("new identity of %s: it was not there before", v.name)
		}
		if _, ok := renewers(v.content); ok && v.uuid == old.uuid {
			return fmt.Errorf("new identity of %s: its %s has the old one still, %s", v.name, v.content, v.uuid)
		}
		if v.uuid != old.uuid && old.uuid != "" {
			a.renamed[old.uuid] = v.uuid
			changes = append(changes, block.IDChange{Partition: v.number, Old: old.uuid, New: v.uuid})
		}
		if v.partUUID != old.partUUID && old.partUUID != "" {
			a.renamed[old.partUUID] = v.partUUID
		}
	}
	a.report.IDs = append(changes, a.report.IDs...)
	for _, c := range changes {
		what := "the disk"
		if c.Partition > 0 {
			what = fmt.Sprintf("partition %d", c.Partition)
		}
		a.changed("%s: %s is %s", what, c.Old, c.New)
	}
	return nil
}

// canRenew refuses what would be ambiguous beside the original, before
// anything is done.
func (a *adapter) canRenew(v *volume) error {
	if r, ok := renewers(v.content); ok {
		return needs(r.tool, r.pkg, "a new identity for the "+v.content+" of "+v.name)
	}
	switch v.content {
	case "LVM2_member":
		return needs("lvm", "lvm2", "a new identity for the volume group of "+v.name)
	case "linux_raid_member", "zfs_member":
		return refuse(v.name+" is "+v.content+", whose array or pool would keep its identity", "restore it without --new-ids, and do not attach the original to the same machine")
	case "", "iso9660", "squashfs":
	default:
		a.left("%s is %s, and keeps its identity", v.name, v.content)
	}
	return nil
}

// renew gives what a volume holds a new identity.
func (a *adapter) renew(v *volume) error {
	r, ok := renewers(v.content)
	if !ok {
		return nil
	}
	if r.settled {
		if err := errors.Join(a.mount(v), v.unmount()); err != nil {
			return err
		}
	}
	return a.asFile(v, func(path string) error { return r.run(a, path) })
}

// searchOld looks where identities are known to be named for those that are no
// more.
func (a *adapter) searchOld() {
	for old := range a.renamed {
		for _, s := range a.systems {
			for _, p := range a.places(s) {
				text, _ := read(p.fs, p.path, maxText)
				if !bytes.Equal(replaceID(text, old, strings.Repeat("-", len(old))), text) {
					a.left("%s names %s, which is no more", p, old)
				}
			}
		}
		for _, v := range a.volumes {
			if v.content != "vfat" {
				continue
			}
			// GRUB that is not signed has it built in.
			for _, name := range glob(v.fs, "/EFI/*/*.efi") {
				if program, _ := read(v.fs, name, maxLoader); bytes.Contains(program, []byte(old)) {
					a.left("%s on %s names %s, which is no more: install the boot loader again before it is needed", name, v.name, old)
				}
			}
		}
	}
}
