package adapt

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// texts are the files that name disks and filesystems, as far as systems that
// start are known to look there.
var texts = []string{
	"/etc/fstab", "/etc/crypttab", "/etc/default/grub", "/etc/default/grub.d/*", "/etc/kernel/cmdline", "/etc/kernel/cmdline.d/*",
	"/etc/initramfs-tools/initramfs.conf", "/etc/initramfs-tools/conf.d/*", "/etc/cmdline.d/*", "/etc/dracut.conf", "/etc/dracut.conf.d/*",
	"/etc/mdadm.conf", "/etc/mdadm/mdadm.conf", "/etc/uswsusp.conf", "/etc/lilo.conf",
	"/etc/systemd/system/*.mount", "/etc/systemd/system/*.swap",
	"/boot/grub/*.cfg", "/boot/grub/grubenv", "/boot/grub2/*.cfg", "/boot/grub2/grubenv", "/boot/loader/entries/*.conf",
	"/boot/extlinux/*.conf", "/boot/syslinux/*.cfg",
}

// loaderTexts are those of boot loaders on an EFI system partition.
var loaderTexts = []string{"/EFI/*/*.cfg", "/EFI/*/grubenv", "/loader/entries/*.conf", "/loader/*.conf", "/grub/*.cfg", "/grub2/*.cfg", "/extlinux/*.conf"}

// A place is one file of a volume.
type place struct {
	v    *volume
	fs   filesystem
	path string
}

func (p place) String() string { return fmt.Sprintf("%s on %s", p.path, p.v.name) }

// places are the texts of a system that are there, and those of boot loaders.
func (a *adapter) places(s *system) (list []place) {
	for _, pattern := range texts {
		m, rest := s.at(pattern)
		for _, name := range glob(m.fs, rest) {
			list = append(list, place{m.v, m.fs, name})
		}
	}
	for _, v := range a.volumes {
		if v.content != "vfat" {
			continue
		}
		for _, pattern := range loaderTexts {
			for _, name := range glob(v.fs, pattern) {
				list = append(list, place{v, v.fs, name})
			}
		}
	}
	return list
}

// rewrite has the texts of a system name what is on the disk by identities that
// it has wherever it is, and by its new ones.
func (a *adapter) rewrite(s *system) error {
	done := map[string]bool{}
	for _, p := range a.places(s) {
		if done[p.String()] {
			continue
		}
		done[p.String()] = true
		old, err := read(p.fs, p.path, maxText)
		if err != nil {
			a.left("%s is not looked into: %v", p, err)
			continue
		}
		text, said := a.rewritten(p.String(), path.Base(p.path), old)
		if bytes.Equal(text, old) {
			continue
		}
		if err := p.fs.write(p.path, text); err != nil {
			return fmt.Errorf("change %s: %w", p, err)
		}
		a.changed("%s: %s", p, strings.Join(said, ", "))
	}
	return nil
}

// rewritten is a text with names that lead to the same wherever the disk is,
// and what was changed of it. where is for people.
func (a *adapter) rewritten(where, base string, text []byte) (_ []byte, said []string) {
	if a.opts.Hardware && isText(text) && base != "grubenv" { // whose length is fixed
		text, said = a.withoutDeviceNames(where, text)
	}
	for _, old := range slices.Sorted(maps.Keys(a.renamed)) {
		if now := replaceID(text, old, a.renamed[old]); !bytes.Equal(now, text) {
			text = now
			said = append(said, old+" is "+a.renamed[old])
		}
	}
	return text, said
}

// deviceName is a name of a partition by its disk's, in a text, as it would
// begin.
var deviceName = regexp.MustCompile(`(?:/dev/(?:sd|vd|xvd|hd)[a-z]+[0-9]+|/dev/(?:nvme[0-9]+n|mmcblk)[0-9]+p[0-9]+|/dev/disk/by-(?:id|path)/[A-Za-z0-9._:+-]+-part[0-9]+)`)

// withoutDeviceNames replaces names of partitions by their filesystems' UUIDs,
// where the disk is the imaged one.
func (a *adapter) withoutDeviceNames(where string, text []byte) (_ []byte, said []string) {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		if t := bytes.TrimSpace(line); len(t) > 0 && t[0] == '#' {
			out.Write(line)
			continue
		}
		at := 0
		for _, m := range deviceName.FindAllIndex(line, -1) {
			name := string(line[m[0]:m[1]])
			if m[0] < at || !endsName(line, m[0], m[1]) {
				continue
			}
			by := ""
			if v := a.volumeOf(name); v != nil {
				by = v.identity()
			}
			if by == "" {
				a.left("%s names %s: whether that is there on other hardware cannot be known", where, name)
				continue
			}
			out.Write(line[at:m[0]])
			out.WriteString(by)
			at = m[1]
			if word := name + " is " + by; !slices.Contains(said, word) {
				said = append(said, word)
			}
		}
		out.Write(line[at:])
	}
	return out.Bytes(), said
}

// endsName reports whether a name in a line is a word of its own.
func endsName(line []byte, from, to int) bool {
	return (from == 0 || bytes.ContainsRune([]byte(" \t=\"',:"), rune(line[from-1]))) &&
		(to == len(line) || bytes.ContainsRune([]byte(" \t\r\n\"',:)"), rune(line[to])))
}

// identity is a name of a volume by what is on it.
func (v *volume) identity() string {
	switch {
	case v.uuid != "":
		return "UUID=" + v.uuid
	case v.partUUID != "":
		return "PARTUUID=" + v.partUUID
	}
	return ""
}

// spellings are the ways in which texts have an identity: as it is, in capitals
// or small letters, and as systemd has it in names of units.
func spellings(id string) []string {
	list := []string{id, strings.ToLower(id), strings.ToUpper(id)}
	for _, s := range list[:3] {
		list = append(list, strings.ReplaceAll(s, "-", `\x2d`))
	}
	return list
}

// replaceID replaces an identity where it stands as a word.
func replaceID(text []byte, old, now string) []byte {
	to := spellings(now)
	for i, from := range spellings(old) {
		if !bytes.Contains(text, []byte(from)) {
			continue
		}
		var out bytes.Buffer
		rest := text
		for {
			at := bytes.Index(rest, []byte(from))
			if at < 0 {
				break
			}
			end := at + len(from)
			if at > 0 && wordByte(rest[at-1], len(old)) || end < len(rest) && wordByte(rest[end], len(old)) {
				out.Write(rest[:end])
			} else {
				out.Write(rest[:at])
				out.WriteString(to[i])
			}
			rest = rest[end:]
		}
		out.Write(rest)
		text = append([]byte(nil), out.Bytes()...)
	}
	return text
}

// wordByte reports whether a byte beside an identity makes it a part of another
// word. A short one may be a part of a UUID.
func wordByte(b byte, length int) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b == '-' && length < 36
}
