package adapt

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A system is a Linux that is on the disk: its root, and what its fstab mounts
// below it of this disk.
type system struct {
	name   string // for people
	root   *volume
	rootFS *kernelFS
	mounts []mounted // longest path first; the root last
}

// A mounted filesystem is one at a place of a system.
type mounted struct {
	at string
	v  *volume
	fs filesystem
	in string // folder of the volume that is the place's root
}

// open mounts what can be mounted, and finds the systems.
func (a *adapter) open() error {
	for _, v := range a.volumes {
		switch {
		case v.content == "vfat":
			v.fs = &fatFS{a, v}
		case mountable(v.content):
			if err := a.mount(v); err != nil {
				a.left("%s is not looked into: %v", v.name, err)
				continue
			}
			if err := a.findSystem(v); err != nil {
				return err
			}
		case v.content == "crypto_LUKS", v.content == "linux_raid_member", v.content == "zfs_member", v.content == "bcachefs":
			a.left("%s is not looked into: it is %s", v.name, v.content)
		}
	}
	for _, s := range a.systems {
		if err := a.findMounts(s); err != nil {
			return err
		}
	}
	return nil
}

// folders in which a root may be: of btrfs, installers make subvolumes.
func roots(content string) []string {
	if content == "btrfs" {
		return []string{"@rootfs", "@", "root", "/"}
	}
	return []string{"/"}
}

// findSystem looks for a root in a volume.
func (a *adapter) findSystem(v *volume) error {
	for _, dir := range roots(v.content) {
		fs, err := v.fs.(*kernelFS).below(dir)
		if err != nil {
			continue
		}
		if !isRoot(fs) {
			unix.Close(fs.folder)
			continue
		}
		s := &system{name: "the system on " + v.name, root: v, rootFS: fs}
		s.mounts = []mounted{{"/", v, fs, path.Clean("/" + dir)}}
		a.systems = append(a.systems, s)
		return nil
	}
	return nil
}

// isRoot reports whether a folder looks like a system's.
func isRoot(fs filesystem) bool {
	if _, err := fs.list("/etc"); err != nil {
		return false
	}
	for _, dir := range []string{"/lib/modules", "/usr/lib/modules"} {
		if _, err := fs.list(dir); err == nil {
			return true
		}
	}
	return exists(fs, "/etc/fstab") || exists(fs, "/sbin/init")
}

func (s *system) close() {
	for _, m := range s.mounts {
		if k, ok := m.fs.(*kernelFS); ok && k != m.v.fs {
			unix.Close(k.folder)
		}
	}
	s.mounts = nil
}

// mountPoints are the places that matter here.
var mountPoints = []string{"/boot", "/boot/efi", "/boot/EFI", "/efi", "/usr"}

// findMounts finds what fstab mounts.
func (a *adapter) findMounts(s *system) error {
	table, err := read(s.rootFS, "/etc/fstab", maxText)
	if missing(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0][0] == '#' || !slices.Contains(mountPoints, f[1]) {
			continue
		}
		v := a.volumeOf(f[0])
		if v == nil || v.fs == nil {
			a.left("%s: %s at %s is on no volume of this image that is looked into", s.name, f[0], f[1])
			continue
		}
		m := mounted{f[1], v, v.fs, "/"}
		if sub := subvolume(f[3]); sub != "" && v.content == "btrfs" {
			fs, err := v.fs.(*kernelFS).below(sub)
			if err != nil {
				a.left("%s: %s at %s: %v", s.name, f[0], f[1], err)
				continue
			}
			m.fs, m.in = fs, path.Clean("/"+sub)
		}
		s.mounts = append(s.mounts, m)
	}
	slices.SortStableFunc(s.mounts, func(x, y mounted) int { return cmp.Compare(len(y.at), len(x.at)) })
	return nil
}

func subvolume(options string) string {
	for o := range strings.SplitSeq(options, ",") {
		if sub, ok := strings.CutPrefix(o, "subvol="); ok {
			return sub
		}
	}
	return ""
}

// at returns where a path of the system is.
func (s *system) at(name string) (mounted, string) {
	for _, m := range s.mounts {
		if rest, ok := strings.CutPrefix(name, strings.TrimSuffix(m.at, "/")); ok && (rest == "" || rest[0] == '/') {
			return m, cmp.Or(rest, "/")
		}
	}
	panic("adapt: a system without a root")
}

// names of what udev calls disks of one kind each.
var (
	plainNode = regexp.MustCompile(`^/dev/((?:sd|vd|xvd|hd)[a-z]+)([0-9]{1,3})$`)
	splitNode = regexp.MustCompile(`^/dev/((?:nvme[0-9]+n|mmcblk)[0-9]+)p([0-9]{1,3})$`)
	linkNode  = regexp.MustCompile(`^/dev/(disk/by-(?:id|path)/[A-Za-z0-9._:+-]+)-part([0-9]{1,3})$`)
)

// splitName splits the name of a partition that goes by the disk it is on.
func splitName(name string) (disk string, number int) {
	for _, p := range []*regexp.Regexp{plainNode, splitNode, linkNode} {
		if m := p.FindStringSubmatch(name); m != nil {
			fmt.Sscan(m[2], &number)
			return m[1], number
		}
	}
	return "", 0
}

// volumeOf finds what fstab and kernels' command lines name.
func (a *adapter) volumeOf(name string) *volume {
	name = strings.Trim(name, `"'`)
	for tag, folder := range map[string]string{"UUID=": "uuid", "LABEL=": "label", "PARTUUID=": "partuuid", "PARTLABEL=": "partlabel"} {
		if v, ok := strings.CutPrefix(name, "/dev/disk/by-"+folder+"/"); ok {
			name = tag + v
		}
	}
	for _, v := range a.volumes {
		if group, lv, ok := strings.Cut(v.lv, "/"); ok {
			if name == "/dev/"+v.lv || name == "/dev/mapper/"+mapperName(group, lv) {
				return v
			}
		}
	}
	tag, value, tagged := strings.Cut(name, "=")
	if !tagged {
		disk, number := splitName(name)
		if number == 0 || !a.ours(disk) {
			return nil
		}
		return a.partition(number)
	}
	value = strings.Trim(value, `"'`)
	for old, now := range a.renamed {
		if strings.EqualFold(value, old) {
			value = now
		}
	}
	for _, v := range a.volumes {
		is := map[string]string{"UUID": v.uuid, "LABEL": v.label, "PARTUUID": v.partUUID, "PARTLABEL": v.partLabel}[tag]
		if is != "" && (is == value || tag != "LABEL" && tag != "PARTLABEL" && strings.EqualFold(is, value)) {
			return v
		}
	}
	return nil
}

func (a *adapter) partition(number int) *volume {
	for _, v := range a.volumes {
		if v.number == number {
			return v
		}
	}
	return nil
}

// ours reports whether a disk's name is the imaged one's: by that name the
// root was found, or the machine called it so, or its serial number is in it.
func (a *adapter) ours(disk string) bool {
	if a.opts.Serial != "" && strings.HasPrefix(disk, "disk/by-id/") && strings.Contains(disk, strings.ReplaceAll(a.opts.Serial, " ", "_")) {
		return true
	}
	if a.rootDisk == nil {
		a.rootDisk = map[string]bool{}
		for _, s := range a.systems {
			for _, disk := range s.rootNames() {
				a.rootDisk[disk] = true
			}
		}
		if len(a.rootDisk) == 0 && a.opts.Disk != "" {
			a.rootDisk[a.opts.Disk] = true
		}
	}
	return a.rootDisk[disk]
}

var rootArgument = regexp.MustCompile(`(?m)^[^#\n]*[\s"']root=(/dev/[A-Za-z0-9/._:+-]+)`)

// rootNames are the names of disks by which a system names its root.
func (s *system) rootNames() (disks []string) {
	add := func(name string) {
		if disk, number := splitName(name); number == s.root.number && number > 0 {
			disks = append(disks, disk)
		}
	}
	table, _ := read(s.rootFS, "/etc/fstab", maxText)
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "/" {
			add(f[0])
		}
	}
	for _, name := range []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/etc/default/grub", "/etc/kernel/cmdline"} {
		text, _ := read(s.rootFS, name, maxText)
		for _, m := range rootArgument.FindAllStringSubmatch(" "+string(text), -1) {
			add(m[1])
		}
	}
	return disks
}
