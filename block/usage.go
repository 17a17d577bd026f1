package block

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of Usage.
const (
	UsedMounted = "mounted"
	UsedSwap    = "swap"
	UsedLVM     = "lvm"
	UsedMD      = "md"
	UsedDM      = "dm"
	UsedLoop    = "loop"
	UsedBtrfs   = "btrfs"
	UsedVM      = "vm"
	UsedOther   = "other" // the kernel has it open for something that leaves no other trace
)

// A Usage is one way in which a device, or a part of it, is in use.
type Usage struct {
	Device string `json:"device"` // what is used: the device or one of its partitions
	Kind   string `json:"kind"`
	By     string `json:"by"`     // mount point, logical volume, array, loop device
	Writes bool   `json:"writes"` // the content may change at any moment
}

// String says who uses what: `/dev/vdb1 is mounted at /srv`.
func (u Usage) String() string {
	switch u.Kind {
	case UsedMounted:
		if u.Writes {
			return fmt.Sprintf("%s is mounted at %s", u.Device, u.By)
		}
		return fmt.Sprintf("%s is mounted read-only at %s", u.Device, u.By)
	case UsedSwap:
		return fmt.Sprintf("%s is swap", u.Device)
	case UsedLVM:
		return fmt.Sprintf("%s is part of LVM, under %s", u.Device, u.By)
	case UsedMD:
		return fmt.Sprintf("%s is a member of the array %s", u.Device, u.By)
	case UsedDM:
		return fmt.Sprintf("%s is used by the device-mapper device %s", u.Device, u.By)
	case UsedLoop:
		return fmt.Sprintf("%s is attached to %s", u.Device, u.By)
	case UsedVM:
		return fmt.Sprintf("%s is a disk of %s", u.Device, u.By)
	case UsedBtrfs:
		return fmt.Sprintf("%s is part of the btrfs mounted at %s", u.Device, u.By)
	}
	return fmt.Sprintf("%s is held by %s", u.Device, u.By)
}

// release says how the device comes out of use.
func (u Usage) release() string {
	switch u.Kind {
	case UsedMounted, UsedBtrfs:
		return "umount " + u.By
	case UsedSwap:
		return "swapoff " + u.Device
	case UsedLVM:
		return "lvchange -an " + u.By
	case UsedMD:
		return "mdadm --stop " + u.By
	case UsedDM:
		return "dmsetup remove " + u.By
	case UsedLoop:
		return "losetup -d " + u.By
	case UsedVM:
		return "shut the virtual machine down"
	}
	return "stop what holds it (zpool export, multipath, another namespace's mount)"
}

// InUse returns how a block device or file is in use: the device itself, its
// partitions, and for a partition also the whole disk below it. It is empty
// when nobody uses it.
func InUse(path string) ([]Usage, error) { return host().inUse(path) }

func (s system) inUse(path string) ([]Usage, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	t, err := s.tally()
	if err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return append(t.file(path, st), virtual(path)...), nil
	}
	n, err := s.node(st.Rdev)
	if err != nil {
		return nil, fmt.Errorf("look up %s in sysfs: %w", path, err)
	}
	used := append(t.device(n), virtual(path)...)
	if len(used) == 0 && claimed(path) {
		used = append(used, Usage{Device: path, Kind: UsedOther, By: "another program or the kernel", Writes: true})
	}
	return used, nil
}

// claimed reports whether someone has a device open for himself: a filesystem
// mounted in another namespace, a pool of ZFS, a running restore.
func claimed(path string) bool {
	// Who else asks the same question claims the device for a moment.
	for try := 0; ; try++ {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, unix.EBUSY) || try == 3 {
			return errors.Is(err, unix.EBUSY)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A tally is what the kernel said of mounts, swaps and loops at one moment.
type tally struct {
	system
	mounts []mount
	swaps  []string
	loops  []loop
}

func (s system) tally() (*tally, error) {
	mounts, err := s.mounts()
	if err != nil {
		return nil, err
	}
	swaps, err := s.swaps()
	if err != nil {
		return nil, err
	}
	return &tally{s, mounts, swaps, s.loops()}, nil
}

// device returns the usages of n, of its partitions, and of its disk.
func (t *tally) device(n node) []Usage {
	used := t.uses(n, 0)
	for _, p := range t.partitions(n) {
		used = append(used, t.uses(p, 0)...)
	}
	d := t.disk(n)
	if d.dev != n.dev {
		used = append(used, t.uses(d, 0)...)
	}
	return append(used, t.twins(d)...)
}

// twins returns what is done with other loop devices on the file of loop
// device n.
func (t *tally) twins(n node) []Usage {
	i := slices.IndexFunc(t.loops, func(l loop) bool { return l.node.dev == n.dev })
	if i < 0 {
		return nil
	}
	var used []Usage
	for _, l := range t.loops {
		if l.node.dev != n.dev && l.dev == t.loops[i].dev && l.ino == t.loops[i].ino {
			used = append(used, t.looped(t.loops[i].backing, l, 0)...)
		}
	}
	return used
}

// maxStack bounds how far devices built upon devices are followed: trees of
// links are data of others.
const maxStack = 16

// uses returns the usages of one device without its partitions.
func (t *tally) uses(n node, depth int) []Usage {
	if depth > maxStack {
		return nil
	}
	used := t.mounted(n)
	for _, path := range t.swaps {
		if dev, ok := t.rdev(path); ok && dev == n.dev {
			used = append(used, Usage{t.path(n), UsedSwap, path, true})
		}
	}
	for _, h := range t.holders(n) {
		used = append(used, t.held(n, h))
	}
	for _, l := range t.loops {
		if l.rdev != 0 && l.rdev == n.dev {
			used = append(used, t.looped(t.path(n), l, depth)...)
		}
	}
	return used
}

func (t *tally) mounted(n node) []Usage {
	var used []Usage
	for _, m := range t.mounts {
		if t.on(m, n.dev) {
			used = append(used, Usage{t.path(n), UsedMounted, m.point, m.writable()})
		}
	}
	if len(used) > 0 {
		return used
	}
	for _, sibling := range t.spanned(n) {
		for _, m := range t.mounts {
			if t.on(m, sibling.dev) {
				return []Usage{{t.path(n), UsedBtrfs, m.point, m.writable()}}
			}
		}
	}
	return nil
}

// held describes a device built upon n. It counts as writing even when nobody
// seems to use it: an active volume may be written to at any moment.
func (t *tally) held(n, holder node) Usage {
	u := Usage{t.path(n), UsedOther, t.path(holder), true}
	name, uuid := holder.attr("dm/name"), holder.attr("dm/uuid")
	switch {
	case strings.HasPrefix(uuid, "LVM-"):
		u.Kind, u.By = UsedLVM, volumeName(name)
	case name != "":
		u.Kind, u.By = UsedDM, name
	case holder.attr("md/level") != "" || strings.HasPrefix(holder.name, "md"):
		u.Kind = UsedMD
	}
	return u
}

// volumeName turns the device-mapper's name of a logical volume into VG/LV.
// A hyphen within a name is doubled there.
func volumeName(dm string) string {
	for i := 0; i < len(dm); i++ {
		if dm[i] != '-' {
			continue
		}
		if i+1 < len(dm) && dm[i+1] == '-' {
			i++
			continue
		}
		plain := func(s string) string { return strings.ReplaceAll(s, "--", "-") }
		return plain(dm[:i]) + "/" + plain(dm[i+1:])
	}
	return dm
}

// looped returns what is done with a loop device attached to path, and that it
// is attached.
func (t *tally) looped(path string, l loop, depth int) []Usage {
	used := []Usage{{path, UsedLoop, t.path(l.node), false}}
	used = append(used, t.uses(l.node, depth+1)...)
	for _, p := range t.partitions(l.node) {
		used = append(used, t.uses(p, depth+1)...)
	}
	return used
}

// file returns the usages of a regular file: loop devices it is attached to
// with all that is done with them, and swap.
func (t *tally) file(path string, st unix.Stat_t) []Usage {
	var used []Usage
	for _, l := range t.loops {
		if l.rdev == 0 && l.dev == st.Dev && l.ino == st.Ino {
			used = append(used, t.looped(path, l, 0)...)
		}
	}
	for _, swap := range t.swaps {
		var other unix.Stat_t
		if unix.Stat(swap, &other) == nil && other.Dev == st.Dev && other.Ino == st.Ino {
			used = append(used, Usage{path, UsedSwap, swap, true})
		}
	}
	return used
}

// written returns those usages that may change the content.
func written(used []Usage) []Usage {
	return slices.DeleteFunc(slices.Clone(used), func(u Usage) bool { return !u.Writes })
}

// refuseLive is the error for a source whose content may change while it is
// read.
func refuseLive(path string, used []Usage) error {
	u := used[0]
	more := ""
	if len(used) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(used)-1)
	}
	return fmt.Errorf("open %s: %w: %s%s; %s first, image a snapshot of it, or use --live for an image marked fuzzy",
		path, ErrInUse, u, more, u.release())
}

// within reports whether path is dir or below it. Both are absolute and clean.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
