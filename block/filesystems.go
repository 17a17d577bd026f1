package block

import (
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Filesystem is mounted from a device, from a part of it, or from something
// that is built upon it.
type Filesystem struct {
	Device   string // that it is mounted from
	Point    string // where, the first of its mount points
	Type     string
	Writable bool
}

// Stacked is what stands on a device: the filesystems that write to it, those
// first that lie in others, and the extents of the device that are swap.
type Stacked struct {
	Filesystems []Filesystem
	Swap        []Extent
}

// StackedOn returns what stands on a block device and its partitions, on the
// volumes and arrays built upon them, and in disk images that lie in their
// filesystems. Mounts of other namespaces it does not see.
func StackedOn(path string) (Stacked, error) { return host().stackedOn(path) }

func (s system) stackedOn(path string) (Stacked, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Stacked{}, fmt.Errorf("stat %s: %w", path, err)
	}
	n, err := s.node(st.Rdev)
	if err != nil {
		return Stacked{}, fmt.Errorf("look up %s in sysfs: %w", path, err)
	}
	t, err := s.tally()
	if err != nil {
		return Stacked{}, err
	}
	k := stacker{tally: t, seen: map[uint64]bool{}, filesystems: map[uint64]bool{}}
	for _, part := range append(t.partitions(n), n) {
		k.device(part, 0)
		k.swaps(n, part)
	}
	return k.found, nil
}

type stacker struct {
	*tally
	seen        map[uint64]bool // devices
	filesystems map[uint64]bool
	found       Stacked
}

// device adds what stands on n, the farthest first.
func (k *stacker) device(n node, depth int) {
	if depth > maxStack || k.seen[n.dev] {
		return
	}
	k.seen[n.dev] = true
	above := k.holders(n)
	for _, l := range k.loops {
		if l.rdev != 0 && l.rdev == n.dev {
			above = append(above, l.node)
		}
	}
	for _, h := range above {
		for _, p := range append(k.partitions(h), h) {
			k.device(p, depth+1)
		}
	}
	for _, m := range k.mounts {
		if k.on(m, n.dev) || slices.ContainsFunc(k.spanned(n), func(s node) bool { return k.on(m, s.dev) }) {
			k.mounted(n, m, depth)
		}
	}
}

// mounted adds a filesystem, after those in disk images that lie in it.
func (k *stacker) mounted(n node, m mount, depth int) {
	if k.filesystems[m.dev] {
		return
	}
	k.filesystems[m.dev] = true
	for _, l := range k.loops {
		if l.rdev == 0 && l.dev == m.dev {
			for _, p := range append(k.partitions(l.node), l.node) {
				k.device(p, depth+1)
			}
		}
	}
	k.found.Filesystems = append(k.found.Filesystems, Filesystem{k.path(n), m.point, m.fstype, m.writable()})
}

// swaps adds the extent of disk that a part of it is swap.
func (k *stacker) swaps(disk, part node) {
	for _, path := range k.tally.swaps {
		if dev, ok := k.rdev(path); ok && dev == part.dev {
			e := Extent{Length: part.size()}
			if part.dev != disk.dev {
				sectors, _ := strconv.ParseInt(part.attr("start"), 10, 64)
				e.Offset = sectors * 512
			}
			k.found.Swap = append(k.found.Swap, e)
		}
	}
}
