package adapt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"platter/internal/export/rescue/cpio"
)

// drivers are folders and files below a kernel's modules, of all that a system
// may find its disk behind. What these depend on is added.
var drivers = []string{
	"kernel/drivers/ata", "kernel/drivers/nvme/host", "kernel/drivers/scsi", "kernel/drivers/message", "kernel/drivers/mmc",
	"kernel/drivers/virtio", "kernel/drivers/block/virtio_blk", "kernel/drivers/block/xen-blkfront", "kernel/drivers/ufs",
	"kernel/drivers/hv/hv_vmbus", "kernel/drivers/pci/controller", "kernel/drivers/usb/host", "kernel/drivers/usb/storage",
}

// leftOut are parts of them that no system starts from.
var leftOut = []string{"scsi_debug", "osst", "st", "ch", "ses", "scsi_transport_srp", "iscsi_boot_sysfs"}

// indexes of a kernel's modules, by which they are found.
var indexes = []string{"modules.dep", "modules.alias", "modules.symbols", "modules.softdep", "modules.order", "modules.devname", "modules.builtin", "modules.builtin.alias", "modules.builtin.modinfo"}

var (
	ramfsName = regexp.MustCompile(`^(initrd|initramfs)`)
	notRamfs  = regexp.MustCompile(`(\.old|\.bak|\.dpkg-bak|\.new|kdump\.img|\.cfg|\.conf|\.sig)$`)
)

// ramfsDepth is how deep below a place initial file systems are looked for.
const ramfsDepth = 3

// initramfs gives each initial file system of a system all drivers of storage,
// and has what it names lead to this disk.
func (a *adapter) initramfs(s *system) error {
	boot, rest := s.at("/boot")
	list := a.findRamfs(boot.v, boot.fs, rest, ramfsDepth)
	for _, v := range a.volumes {
		if v.content == "vfat" && v != boot.v {
			list = append(list, a.findRamfs(v, v.fs, "/", ramfsDepth)...)
		}
	}
	if len(list) == 0 {
		a.left("%s has no initramfs in /boot: nothing is known of the drivers that it starts with", s.name)
	}
	for _, p := range list {
		if a.seen[p.String()] {
			continue
		}
		if err := a.adaptRamfs(s, p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		a.seen[p.String()] = true
	}
	return nil
}

func (a *adapter) findRamfs(v *volume, f filesystem, dir string, depth int) (list []place) {
	names, _ := f.list(dir)
	for _, e := range names {
		name := path.Join(dir, e.name)
		switch {
		case e.kind == unix.S_IFDIR && depth > 0:
			list = append(list, a.findRamfs(v, f, name, depth-1)...)
		case e.kind == unix.S_IFREG && e.size > 0 && ramfsName.MatchString(e.name) && !notRamfs.MatchString(e.name):
			list = append(list, place{v, f, name})
		}
	}
	return list
}

// adaptRamfs puts behind the archives of an initial file system another, with
// what they lack. Nothing of the image has to be run for it.
func (a *adapter) adaptRamfs(s *system, p place) error {
	from, size, err := p.fs.open(p.path)
	if err != nil {
		return err
	}
	defer from.Close()
	ram, err := readRamfs(a.ctx, io.NewSectionReader(from, 0, size))
	if err != nil {
		if a.ctx.Err() != nil || isRefused(err) {
			return err
		}
		a.left("%s is not looked into: %v", p, err)
		return nil
	}
	var added []cpio.Entry
	var said []string
	for _, e := range ram.texts {
		text, words := a.rewritten(e.Name+" in "+p.String(), path.Base(e.Name), e.Body)
		if !bytes.Equal(text, e.Body) {
			e.Body = text
			added = append(added, e)
			said = append(said, fmt.Sprintf("%s: %s", e.Name, strings.Join(words, ", ")))
		}
	}
	if a.opts.Hardware {
		n, entries, err := a.drivers(s, p, ram)
		if err != nil {
			return err
		}
		if n > 0 {
			said = append(said, fmt.Sprintf("%d drivers that it lacked", n))
		}
		added = append(added, entries...)
	}
	a.leftInRamfs(p, ram, added)
	if len(added) == 0 {
		return nil
	}
	packed, err := packing(append(ram.folders(added), added...), a.unpacksGzip(s, ram.release))
	if err != nil {
		return err
	}
	packed = append(make([]byte, pad(size)), packed...)
	if err := p.fs.appendTo(p.path, packed); err != nil {
		if errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "Disk full") {
			return refuse(fmt.Sprintf("there is no room on %s for %d MiB of drivers", p.v.name, len(packed)>>20+1), "remove old kernels from the machine and image it again, or restore it without --adapt")
		}
		return err
	}
	a.changed("%s: %s", p, strings.Join(said, "; "))
	return nil
}

// unpacksGzip reports whether a kernel can unpack gzip.
func (a *adapter) unpacksGzip(s *system, release string) bool {
	m, rest := s.at("/boot/config-" + release)
	config, err := read(m.fs, rest, maxText)
	return err != nil || bytes.Contains(config, []byte("CONFIG_RD_GZIP=y"))
}

// A moduleIndex is modules.dep.
type moduleIndex struct {
	path  map[string]string   // by name
	needs map[string][]string // by path, paths
	soft  map[string][]string // by name, names that are loaded before
}

// moduleName is what a module in a file is called.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

func readIndex(f filesystem, dir string) (*moduleIndex, error) {
	deps, err := read(f, dir+"/modules.dep", 64<<20)
	if err != nil {
		return nil, err
	}
	x := &moduleIndex{map[string]string{}, map[string][]string{}, map[string][]string{}}
	for line := range strings.Lines(string(deps)) {
		file, rest, ok := strings.Cut(line, ":")
		if !ok || !strings.Contains(file, ".ko") || path.IsAbs(file) || strings.HasPrefix(path.Clean(file), "..") {
			continue
		}
		x.path[moduleName(file)], x.needs[file] = file, strings.Fields(rest)
	}
	soft, _ := read(f, dir+"/modules.softdep", maxText)
	for line := range strings.Lines(string(soft)) {
		words := strings.Fields(line)
		if len(words) < 4 || words[0] != "softdep" || words[2] != "pre:" {
			continue
		}
		of := strings.ReplaceAll(words[1], "-", "_")
		for _, w := range words[3:] {
			if w == "post:" {
				break
			}
			x.soft[of] = append(x.soft[of], strings.ReplaceAll(w, "-", "_"))
		}
	}
	return x, nil
}

// wants reports whether a module is one of the drivers.
func wants(file string) bool {
	if slices.Contains(leftOut, moduleName(file)) {
		return false
	}
	return slices.ContainsFunc(drivers, func(d string) bool {
		rest, ok := strings.CutPrefix(file, d)
		return ok && (rest == "" || rest[0] == '/' || rest[0] == '.')
	})
}

// lacking are the files of modules that an initial file system lacks, in order,
// and how many drivers are among them. What it has by another name, packed or
// not, counts as lacking: the index knows one name.
func (x *moduleIndex) lacking(ram *ramfs) (files []string, count int) {
	has := func(file string) bool { _, ok := ram.names[ram.modules+"/"+file]; return ok }
	present := map[string]bool{}
	for name := range ram.names {
		if strings.HasPrefix(name, ram.modules+"/") && strings.Contains(name, ".ko") {
			present[moduleName(name)] = true
		}
	}
	wanted := map[string]bool{}
	var add func(file string)
	add = func(file string) {
		if wanted[file] || x.needs[file] == nil && x.path[moduleName(file)] != file {
			return
		}
		wanted[file] = true
		for _, need := range x.needs[file] {
			add(need)
		}
		for _, name := range x.soft[moduleName(file)] {
			add(x.path[name])
		}
	}
	for file := range x.needs {
		if wants(file) {
			add(file)
			if !present[moduleName(file)] {
				count++
			}
		}
	}
	if count == 0 {
		return nil, 0
	}
	for name := range present {
		add(x.path[name])
	}
	for file := range maps.Keys(wanted) {
		if !has(file) {
			files = append(files, file)
		}
	}
	slices.Sort(files)
	return files, count
}

// maxModule is how large a module can be, in bytes; maxModules, all of them.
const (
	maxModule  = 64 << 20
	maxModules = 512 << 20
)

// drivers returns the modules that an initial file system lacks, with the
// indexes by which they are found.
func (a *adapter) drivers(s *system, p place, ram *ramfs) (count int, entries []cpio.Entry, err error) {
	if ram.release == "" {
		a.left("%s has no modules: its kernel starts with the drivers that are built into it", p)
		return 0, nil, nil
	}
	m, dir := s.at("/lib/modules/" + ram.release)
	index, err := readIndex(m.fs, dir)
	if missing(err) {
		m, dir = s.at("/usr/lib/modules/" + ram.release)
		index, err = readIndex(m.fs, dir)
	}
	if missing(err) {
		a.left("%s is for kernel %s, whose modules are not there", p, ram.release)
		return 0, nil, nil
	} else if err != nil {
		return 0, nil, err
	}
	files, count := index.lacking(ram)
	if count == 0 {
		return 0, nil, nil
	}
	total := 0
	take := func(name string, must bool) error {
		body, err := read(m.fs, path.Join(dir, name), maxModule)
		if missing(err) && !must {
			return nil
		} else if err != nil {
			return err
		}
		if total += len(body); total > maxModules {
			return fmt.Errorf("modules of more than %d bytes: %w", maxModules, fs.ErrInvalid)
		}
		entries = append(entries, cpio.Entry{Name: ram.modules + "/" + name, Mode: cpio.File | 0o644, Body: body})
		return nil
	}
	for _, name := range files {
		if err := take(name, true); err != nil {
			return 0, nil, err
		}
	}
	for _, name := range indexes {
		for _, ext := range []string{"", ".bin"} {
			if err := take(name+ext, false); err != nil {
				return 0, nil, err
			}
		}
	}
	return count, entries, nil
}

// keepDrivers has the next initramfs that the system makes itself have all
// drivers, too.
func (a *adapter) keepDrivers(s *system) error {
	if config, err := read(s.rootFS, "/etc/initramfs-tools/initramfs.conf", maxText); err == nil {
		all := string(config)
		for _, name := range glob(s.rootFS, "/etc/initramfs-tools/conf.d/*") {
			more, _ := read(s.rootFS, name, maxText)
			all += "\n" + string(more)
		}
		if set := lastSetting(all, "MODULES"); set != "" && set != "most" {
			const name = "/etc/initramfs-tools/conf.d/zz-platter"
			if err := s.rootFS.write(name, []byte("# This disk was restored to other hardware.\nMODULES=most\n")); err != nil {
				return err
			}
			a.changed("%s on %s: MODULES is most, instead of %s", name, s.root.name, set)
		}
	}
	const name = "/etc/dracut.conf.d/zz-platter.conf"
	if _, err := s.rootFS.list("/etc/dracut.conf.d"); err == nil && !exists(s.rootFS, name) {
		if err := s.rootFS.write(name, []byte("# This disk was restored to other hardware.\nhostonly=\"no\"\n")); err != nil {
			return err
		}
		a.changed("%s on %s: hostonly is no", name, s.root.name)
	}
	return nil
}

// lastSetting is what a shell would have set a variable to at the end.
func lastSetting(text, name string) (value string) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			value = strings.Trim(v, `"'`)
		}
	}
	return value
}

// leftInRamfs notes what names an identity that is no more, beside texts that
// were changed.
func (a *adapter) leftInRamfs(p place, ram *ramfs, changed []cpio.Entry) {
	done := map[string]bool{}
	for _, e := range changed {
		done[e.Name] = true
	}
	for old := range a.renamed {
		for _, name := range ram.search(old) {
			if !done[name] {
				a.left("%s in %s names %s, which is no more", name, p, old)
			}
		}
	}
}

// search returns what of an initial file system names something.
func (r *ramfs) search(what string) (files []string) {
	for _, form := range spellings(what) {
		for name := range r.names {
			if strings.Contains(name, form) {
				files = append(files, name)
			}
		}
		for _, e := range r.texts {
			if bytes.Contains(e.Body, []byte(form)) {
				files = append(files, e.Name)
			}
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}
