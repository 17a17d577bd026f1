package block

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// identify fills in kind, name and identity of a block device.
func (s system) identify(n node, info *Info) {
	disk := s.disk(n)
	s.identifyDisk(disk, info)
	part := n.partition()
	if part == 0 {
		return
	}
	info.Kind = KindPartition
	id := first(s.udev(n, "ID_PART_ENTRY_UUID"), uevent(n, "PARTUUID"), s.tableID(disk, part))
	if info.Name == "" && id != "" {
		info.Name = "partition-" + blankless(id)
	} else if info.Name != "" {
		info.Name = fmt.Sprintf("%s/p%d", info.Name, part)
	}
	switch {
	case id != "":
		info.Identity = "partuuid:" + id
	case info.Identity != "":
		info.Identity = fmt.Sprintf("%s/p%d", info.Identity, part)
	}
}

// tableID asks a disk's own table for the ID of a partition, where neither
// udev nor the kernel has noted it.
func (s system) tableID(disk node, number int) string {
	h, err := openHandle(s.path(disk), os.O_RDONLY|unix.O_NONBLOCK|unix.O_DIRECT, 0)
	if err != nil {
		return ""
	}
	defer h.Close()
	src := &source{direct: h}
	if src.info, err = describe(s.path(disk), h); err != nil {
		return ""
	}
	table, _ := Probe(readerAt{src}, src.info.Size, src.info.LogicalSector)
	if table == nil {
		return ""
	}
	for _, p := range table.Partitions {
		if p.Number == number {
			return strings.ToLower(p.ID)
		}
	}
	return ""
}

// identifyDisk handles what is not a partition. It leaves the name empty when
// nothing but the kernel's own name, which another device may have tomorrow,
// tells the device apart.
func (s system) identifyDisk(n node, info *Info) {
	switch {
	case n.attr("loop/backing_file") != "":
		info.Kind = KindLoop
		info.Name = loopName(n)
	case n.attr("dm/uuid") != "" || n.attr("dm/name") != "":
		s.identifyMapped(n, info)
	case zvolName(s.path(n)) != "":
		info.Kind = KindZvol
		info.Name = escape(zvolName(s.path(n)))
	case n.attr("md/level") != "":
		info.Kind = KindOther
		id := first(n.attr("md/uuid"), s.udev(n, "MD_UUID"))
		info.Name, info.Identity = prefixed("md-", blankless(first(s.udev(n, "MD_NAME"), id))), prefixed("md:", id)
	default:
		s.identifyHardware(n, info)
	}
}

// loopName is the path of what a loop device shows. A device that shows only
// a part of a file says so.
func loopName(n node) string {
	name := fileName(n.attr("loop/backing_file"))
	if offset := n.attr("loop/offset"); offset != "" && offset != "0" {
		name += "/at" + offset
	}
	return name
}

func (s system) identifyMapped(n node, info *Info) {
	name, uuid := n.attr("dm/name"), n.attr("dm/uuid")
	if strings.HasPrefix(uuid, "LVM-") {
		info.Kind = KindLVM
		info.Name = escape(volumeName(name))
	} else {
		info.Name = "dm/" + escape(name)
	}
	info.Identity = uuid
}

// identifyHardware asks sysfs, and what udev has written down, for the serial
// number and the like. Where each kind of disk keeps them differs.
func (s system) identifyHardware(n node, info *Info) {
	info.Kind = KindDisk
	info.Model = first(n.attr("device/model"), s.udev(n, "ID_MODEL"))
	info.Serial = first(n.attr("serial"), n.attr("device/serial"), s.udev(n, "ID_SERIAL_SHORT"), vitalSerial(n))
	info.WWN = first(n.attr("wwid"), n.attr("device/wwid"), s.udev(n, "ID_WWN_WITH_EXTENSION"), s.udev(n, "ID_WWN"))
	switch {
	case info.Serial != "":
		// Serial numbers are unique per maker at best.
		info.Name = blankless(strings.TrimSpace(info.Model + " " + info.Serial))
		info.Identity = "serial:" + strings.TrimSpace(info.Model+" "+info.Serial)
	case info.WWN != "":
		info.Name, info.Identity = blankless(info.WWN), "wwn:"+info.WWN
	}
	if info.WWN != "" {
		info.Identity = "wwn:" + info.WWN
	}
}

// vitalSerial reads the serial number page of a SCSI disk: 4 bytes of header,
// the last being the length, then text.
func vitalSerial(n node) string {
	b, err := os.ReadFile(filepath.Join(n.dir, "device/vpd_pg80"))
	if err != nil || len(b) < 5 {
		return ""
	}
	return strings.TrimSpace(string(bytes.Trim(b[4:], "\x00")))
}

// udev returns a property from udev's database; the file is absent where udev
// does not run.
func (s system) udev(n node, key string) string {
	path := filepath.Join(s.run, fmt.Sprintf("udev/data/b%d:%d", unix.Major(n.dev), unix.Minor(n.dev)))
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return property(string(b), "E:"+key+"=")
}

func uevent(n node, key string) string { return property(n.attr("uevent"), key+"=") }

func property(text, prefix string) string {
	for _, line := range strings.Split(text, "\n") {
		if v, ok := strings.CutPrefix(line, prefix); ok {
			return v
		}
	}
	return ""
}

// Zvol returns the name that ZFS has for a volume or a snapshot of one, by the
// path of its device: POOL/NAME, POOL/NAME@SNAPSHOT. It is empty for other devices,
// and for partitions.
func Zvol(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil || strings.Contains(filepath.Base(real), "p") {
		return ""
	}
	return zvolName(real)
}

// zvolName asks the ZFS driver for the dataset behind a device (BLKZNAME).
func zvolName(path string) string {
	if !strings.HasPrefix(filepath.Base(path), "zd") {
		return ""
	}
	h, err := openHandle(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer h.Close()
	const blkzname = 0x8100127d // _IOR(0x12, 125, char[256])
	var name [256]byte
	if h.ioctl(blkzname, unsafe.Pointer(&name)) != nil {
		return ""
	}
	return unix.ByteSliceToString(name[:])
}

// examine fills in what the device holds, and a name for it where the
// hardware gave none.
func (s *source) examine() error {
	sector := 0
	if s.info.Kind != KindFile {
		sector = s.info.LogicalSector
	}
	s.info.examine(readerAt{s}, sector)
	if s.info.Name == "" && s.info.Table != nil {
		s.info.Name = "disk-" + blankless(s.info.Table.ID)
		s.info.Identity = first(s.info.Identity, s.info.Table.Type+":"+s.info.Table.ID)
	}
	if s.info.Name == "" {
		s.info.Name = busName(s.node)
	}
	return nil
}

// Examine fills in what a device holds: its table, its content and what it boots
// by. All that it reads is taken as hostile, as by Probe.
func Examine(r io.ReaderAt, info *Info) { info.examine(r, info.LogicalSector) }

func (i *Info) examine(r io.ReaderAt, sector int) {
	var start []byte
	i.Table, i.Content, start = probe(r, i.Size, sector)
	i.Firmware = firmware(i.Table, start)
}

// busName is where a device is plugged in: pci-0000/00/02.0-virtio1. It is the
// last resort, for a disk without a number and without a table.
func busName(n node) string {
	dir, ok := strings.CutPrefix(n.dir[strings.Index(n.dir, "/devices/")+1:], "devices/")
	dir, _, found := strings.Cut(dir, "/block/")
	if !ok || !found || strings.HasPrefix(dir, "virtual") {
		return blankless(n.name)
	}
	name := "bus-" + blankless(strings.ReplaceAll(dir, "/", "-"))
	if p := n.partition(); p > 0 {
		name += fmt.Sprintf("/p%d", p)
	}
	return name
}

// readerAt reads a source for the prober.
type readerAt struct{ src Source }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.src.ReadAt(context.Background(), p, off)
}

// fileName turns the absolute path of a file into a device's name.
func fileName(abs string) string { return escape(strings.TrimPrefix(abs, "/")) }

// plain reports whether a name may have c.
func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._/-", c) >= 0
}

// escape writes every byte that a name may not have as +XX, in hex, and the
// plus sign too, so that two paths never become one name.
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "+%02x", c)
		}
	}
	return b.String()
}

// blankless writes a model or serial number as a name, as udev does: what a
// name may not have, and slashes, become underscores.
func blankless(s string) string {
	b := []byte(strings.Join(strings.Fields(s), "_"))
	for i, c := range b {
		if !plain(c) || c == '/' {
			b[i] = '_'
		}
	}
	return string(b)
}

// first returns the first string that is not empty.
func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}
