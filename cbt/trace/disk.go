package trace

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"platter/block"
)

// A place is a device on its disk: all of it, or a partition.
type place struct {
	disk
	block.Extent // of the disk, bytes
}

// A disk is a whole disk as sysfs shows it at one moment.
type disk struct {
	key     uint32 // the kernel's device number
	name    string
	dir     string // in sysfs
	sectors uint64 // of 512 bytes
	seq     uint64 // another one for each medium or file behind the same number
	bios    bool   // its driver takes bios, not requests
	zone    uint64 // bytes of a zone, 0 where it has none
	counts  bool   // the kernel counts what is in flight
}

// lookUp finds a block device and its disk.
func lookUp(path string) (place, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return place{}, fmt.Errorf("look up %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return place{}, fmt.Errorf("look up %s: not a block device: the tracer watches disks", path)
	}
	link := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return place{}, fmt.Errorf("look up %s: %w", path, err)
	}
	e := block.Extent{Offset: int64(number(dir, "start")) * 512, Length: int64(number(dir, "size")) * 512}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	} else {
		e.Offset = 0
	}
	d, err := readDisk(dir)
	return place{d, e}, err
}

func readDisk(dir string) (disk, error) {
	d := disk{name: filepath.Base(dir), dir: dir, sectors: number(dir, "size"), seq: number(dir, "diskseq")}
	major, minor, ok := strings.Cut(attribute(dir, "dev"), ":")
	a, err1 := strconv.ParseUint(major, 10, 12)
	b, err2 := strconv.ParseUint(minor, 10, 20)
	if !ok || err1 != nil || err2 != nil {
		return d, fmt.Errorf("read %s/dev: not a device number", dir)
	}
	d.key = uint32(a<<20 | b)
	_, err := os.Stat(filepath.Join(dir, "mq"))
	d.bios = os.IsNotExist(err)
	d.counts = attribute(dir, "queue/iostats") == "1"
	if zoned := attribute(dir, "queue/zoned"); zoned != "" && zoned != "none" {
		d.zone = number(dir, "queue/chunk_sectors") * 512
	}
	return d, nil
}

// keyText is a disk's number as people know it.
func keyText(key uint32) string { return fmt.Sprintf("%d:%d", key>>20, key&(1<<20-1)) }

// written returns how many sectors the kernel says were written or discarded.
func (d disk) written() uint64 {
	f := strings.Fields(attribute(d.dir, "stat"))
	var n uint64
	for _, i := range []int{6, 13} {
		if i < len(f) {
			v, _ := strconv.ParseUint(f[i], 10, 64)
			n += v
		}
	}
	return n
}

func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func number(dir, name string) uint64 {
	n, _ := strconv.ParseUint(attribute(dir, name), 10, 64)
	return n
}
