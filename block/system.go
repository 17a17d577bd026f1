package block

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A system is where the kernel tells of its devices and mounts. Tests point it
// at made-up trees.
type system struct {
	proc, sys, dev, run string
	// rdev returns the device number of a block device's node.
	rdev func(path string) (dev uint64, ok bool)
}

func host() system {
	return system{proc: "/proc", sys: "/sys", dev: "/dev", run: "/run", rdev: nodeNumber}
}

func nodeNumber(path string) (uint64, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return st.Rdev, true
}

// A node is a block device as sysfs shows it.
type node struct {
	dev  uint64
	name string // of the kernel: sda1, dm-0
	dir  string // its directory, links resolved
	seq  string // grows whenever another medium or file takes the name
}

// attr returns an attribute without surrounding blanks, "" if there is none.
func (n node) attr(name string) string {
	b, err := os.ReadFile(filepath.Join(n.dir, name))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(bytes.TrimRight(b, "\x00\n")))
}

// partition returns the number of a partition, 0 for any other device.
func (n node) partition() int {
	i, _ := strconv.Atoi(n.attr("partition"))
	return i
}

// size returns the size in bytes; sysfs counts in 512 whatever the sector.
func (n node) size() int64 {
	sectors, _ := strconv.ParseInt(n.attr("size"), 10, 64)
	return sectors * 512
}

func (s system) node(dev uint64) (node, error) {
	number := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	return s.nodeAt(filepath.Join(s.sys, "dev/block", number))
}

// named returns the device of a kernel name.
func (s system) named(name string) (node, error) {
	return s.nodeAt(filepath.Join(s.sys, "class/block", name))
}

func (s system) nodeAt(path string) (node, error) {
	dir, err := filepath.EvalSymlinks(path)
	if err != nil {
		return node{}, err
	}
	n := node{name: filepath.Base(dir), dir: dir}
	dev, ok := parseNumber(n.attr("dev"))
	if !ok {
		return node{}, fmt.Errorf("read %s: not a device number", filepath.Join(dir, "dev"))
	}
	n.dev = dev
	if n.seq = n.attr("diskseq"); n.seq == "" {
		n.seq = n.attr("../diskseq") // a partition's is its disk's
	}
	return n, nil
}

// parseNumber reads MAJOR:MINOR.
func parseNumber(s string) (uint64, bool) {
	major, minor, ok := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, false
	}
	return unix.Mkdev(uint32(a), uint32(b)), true
}

// disks returns all block devices but partitions, in order of name.
func (s system) disks() ([]node, error) {
	entries, err := os.ReadDir(filepath.Join(s.sys, "block"))
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	var nodes []node
	for _, e := range entries {
		if n, err := s.named(e.Name()); err == nil {
			nodes = append(nodes, n)
		}
	}
	return nodes, nil
}

// partitions returns the partitions of a disk in order of number.
func (s system) partitions(n node) []node {
	entries, err := os.ReadDir(n.dir)
	if err != nil {
		return nil
	}
	var parts []node
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(n.dir, e.Name(), "partition")); err != nil {
			continue
		}
		if p, err := s.nodeAt(filepath.Join(n.dir, e.Name())); err == nil {
			parts = append(parts, p)
		}
	}
	slices.SortFunc(parts, func(a, b node) int { return a.partition() - b.partition() })
	return parts
}

// disk returns the disk that a partition is on, and n itself for others.
func (s system) disk(n node) node {
	if n.partition() == 0 {
		return n
	}
	d, err := s.nodeAt(filepath.Dir(n.dir))
	if err != nil {
		return n
	}
	return d
}

// holders returns the devices built upon n, slaves those it is built upon.
func (s system) holders(n node) []node { return s.linked(n, "holders") }
func (s system) slaves(n node) []node  { return s.linked(n, "slaves") }

func (s system) linked(n node, kind string) []node {
	entries, err := os.ReadDir(filepath.Join(n.dir, kind))
	if err != nil {
		return nil
	}
	var nodes []node
	for _, e := range entries {
		if h, err := s.named(e.Name()); err == nil {
			nodes = append(nodes, h)
		}
	}
	return nodes
}

// path returns where people find a device: below /dev by the kernel's name.
func (s system) path(n node) string {
	return filepath.Join(s.dev, strings.ReplaceAll(n.name, "!", "/"))
}

// A loop is a loop device that is attached to something.
type loop struct {
	node
	backing string // path, as it was when attached
	dev     uint64 // of the filesystem that holds the backing file
	ino     uint64
	rdev    uint64 // of the backing device, 0 for files
}

func (s system) loops() []loop {
	dirs, _ := filepath.Glob(filepath.Join(s.sys, "block/loop*"))
	var loops []loop
	for _, dir := range dirs {
		n, err := s.named(filepath.Base(dir))
		if err != nil || n.attr("loop/backing_file") == "" {
			continue
		}
		loops = append(loops, s.loop(n))
	}
	return loops
}

func (s system) loop(n node) loop {
	l := loop{node: n, backing: n.attr("loop/backing_file")}
	// The kernel knows the file even when it was renamed or removed.
	if info, err := loopInfo(s.path(n)); err == nil {
		l.dev, l.ino, l.rdev = info.Device, info.Inode, info.Rdevice
		return l
	}
	var st unix.Stat_t
	if unix.Stat(l.backing, &st) == nil {
		l.dev, l.ino = st.Dev, st.Ino
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			l.rdev = st.Rdev
		}
	}
	return l
}

func loopInfo(path string) (*unix.LoopInfo64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return unix.IoctlLoopGetStatus64(fd)
}
