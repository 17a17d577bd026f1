package block

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A mount is one line of mountinfo.
type mount struct {
	id     int
	dev    uint64 // anonymous for filesystems that span devices
	point  string
	source string
	fstype string
	super  []string // options of the filesystem, not of this mount point
}

// writable reports whether the filesystem may write to its device. The option
// of the mount point does not matter: another one of the same filesystem may
// be writable.
func (m mount) writable() bool { return !slices.Contains(m.super, "ro") }

func (s system) mounts() ([]mount, error) {
	path := filepath.Join(s.proc, "self/mountinfo")
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	var mounts []mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlay mounts list all their layers
	for lines.Scan() {
		if m, ok := parseMount(lines.Text()); ok {
			mounts = append(mounts, m)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return mounts, nil
}

func parseMount(line string) (mount, bool) {
	head, tail, ok := strings.Cut(line, " - ")
	h, t := strings.Fields(head), strings.Split(tail, " ")
	if !ok || len(h) < 6 || len(t) < 3 {
		return mount{}, false
	}
	id, err := strconv.Atoi(h[0])
	dev, ok := parseNumber(h[2])
	if err != nil || !ok {
		return mount{}, false
	}
	return mount{
		id: id, dev: dev, point: unescape(h[4]),
		fstype: t[0], source: unescape(t[1]), super: strings.Split(t[2], ","),
	}, true
}

// unescape undoes the kernel's \ooo for blanks, newlines and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// on reports whether the filesystem lies on the device. Filesystems that may
// span devices have a number of their own, so the source decides as well.
func (s system) on(m mount, dev uint64) bool {
	if m.dev == dev {
		return true
	}
	if !strings.HasPrefix(m.source, "/") {
		return false
	}
	source, ok := s.rdev(m.source)
	return ok && source == dev
}

// swaps returns the paths of swap devices and files.
func (s system) swaps() ([]string, error) {
	b, err := os.ReadFile(filepath.Join(s.proc, "swaps"))
	if os.IsNotExist(err) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, fmt.Errorf("read swaps: %w", err)
	}
	var paths []string
	for _, line := range strings.Split(string(b), "\n") {
		if path, _, _ := strings.Cut(line, " "); strings.HasPrefix(path, "/") {
			paths = append(paths, unescape(strings.TrimSpace(path)))
		}
	}
	return paths, nil
}

// spanned returns the devices of the mounted btrfs that n is part of, n
// included; mountinfo names only one of them.
func (s system) spanned(n node) []node {
	dirs, _ := filepath.Glob(filepath.Join(s.sys, "fs/btrfs/*/devices", n.name))
	var nodes []node
	for _, dir := range dirs {
		entries, _ := os.ReadDir(filepath.Dir(dir))
		for _, e := range entries {
			if m, err := s.named(e.Name()); err == nil {
				nodes = append(nodes, m)
			}
		}
	}
	return nodes
}
