package block

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Ways to image a device.
const (
	// Still: nothing writes to the device, its image is of one moment.
	Still = "still"
	// Live: something may write to it; the image is marked fuzzy.
	Live = "live"
	// Unreadable: it cannot be opened.
	Unreadable = "unreadable"
)

// A Device is a block device of this machine.
type Device struct {
	Info
	Disk  string  `json:"disk,omitempty"`  // path of the disk that a partition is on
	Usage []Usage `json:"usage,omitempty"` // by whom it, or a part of it, is used
	How   string  `json:"how"`             // Still, Live or Unreadable
	Why   string  `json:"why"`             // for people
}

// Devices returns the block devices of this machine that hold anything: disks
// by name, each followed by its partitions, then arrays and volumes. Loop
// devices without a file, RAM disks and empty drives are left out.
func Devices() ([]Device, error) { return host().devices() }

func (s system) devices() ([]Device, error) {
	disks, err := s.disks()
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, d := range disks {
		if !imageable(d) {
			continue
		}
		devices = append(devices, s.device(d, ""))
		for _, p := range s.partitions(d) {
			devices = append(devices, s.device(p, s.path(d)))
		}
	}
	return devices, nil
}

// Look describes one block device or regular file, whether or not it can be
// read just now.
func Look(path string) (Device, error) { return host().look(path) }

func (s system) look(path string) (Device, error) {
	st, err := statDevice(path)
	if err != nil {
		return Device{}, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return s.inspect(Device{Info: Info{Path: path, Kind: KindFile, Size: st.Size, LogicalSector: 512, PhysicalSector: 512}}), nil
	}
	n, err := s.node(st.Rdev)
	if err != nil {
		return Device{}, fmt.Errorf("look up %s in sysfs: %w", path, err)
	}
	disk := ""
	if d := s.disk(n); d.dev != n.dev {
		disk = s.path(d)
	}
	d := s.device(n, disk)
	d.Path = path
	return d, nil
}

func imageable(n node) bool {
	return n.size() > 0 && n.attr("hidden") != "1" &&
		!strings.HasPrefix(n.name, "ram") && !strings.HasPrefix(n.name, "zram")
}

func (s system) device(n node, disk string) Device {
	return s.inspect(Device{Disk: disk, Info: s.sketch(n)})
}

// inspect opens a device and completes what is known of it.
func (s system) inspect(d Device) Device {
	src, err := s.open(d.Path, OpenOptions{Live: true})
	if err != nil {
		d.How, d.Why = Unreadable, err.Error()
		d.Usage, _ = s.inUse(d.Path) // the reason given is why it cannot be opened
		return d
	}
	defer src.Close()
	d.Info, d.Usage = src.info, src.usage
	d.How, d.Why = how(src.usage)
	return d
}

// sketch is what sysfs alone tells of a device.
func (s system) sketch(n node) Info {
	info := Info{Path: s.path(n), Kind: KindOther, Size: n.size()}
	queue := filepath.Join(s.disk(n).dir, "queue")
	q := node{dir: queue}
	info.LogicalSector, _ = strconv.Atoi(q.attr("logical_block_size"))
	info.PhysicalSector, _ = strconv.Atoi(q.attr("physical_block_size"))
	s.identify(n, &info)
	return info
}

// how says in which way a device would be imaged, and why.
func how(used []Usage) (how, why string) {
	w := written(used)
	switch {
	case len(used) == 0:
		return Still, "nobody uses it"
	case len(w) == 0:
		return Still, used[0].String() + ": nobody writes to it"
	}
	return Live, fmt.Sprintf("%s: use --live, or %s first", w[0], w[0].release())
}
