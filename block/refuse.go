package block

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// checkPlace refuses a target that carries what the restore needs, or that
// anyone uses.
func (p *TargetPlan) checkPlace() error {
	t, err := p.system.tally()
	if err != nil {
		return fmt.Errorf("plan restore to %s: %w", p.Info.Path, err)
	}
	needs := []struct{ what, dir string }{{"repository", p.opts.Repository}, {"catalog", p.opts.Catalog}}
	for _, need := range needs {
		if need.dir == "" {
			continue
		}
		if err := p.checkCarries(t, need.what, need.dir); err != nil {
			return err
		}
	}
	if p.Create {
		return nil
	}
	used, err := p.system.inUse(p.path)
	if err != nil {
		return fmt.Errorf("plan restore to %s: %w", p.Info.Path, err)
	}
	return p.refuseUsed(used)
}

// byWeight orders usages by what people want to be told of: of the loop device
// that a file is attached to last, as more may be done with that.
func byWeight(a, b Usage) int { return a.weight() - b.weight() }

func (u Usage) weight() int {
	switch {
	case u.Kind == UsedLoop:
		return 0
	case !u.Writes:
		return 1
	}
	return 2
}

func (p *TargetPlan) checkCarries(t *tally, what, dir string) error {
	dir, err := existing(dir)
	if err != nil {
		return fmt.Errorf("plan restore to %s: find the %s: %w", p.Info.Path, what, err)
	}
	if p.File && within(p.path, dir) {
		return refuse(p.Info.Path, fmt.Sprintf("lies inside the %s %s", what, dir), "choose a file elsewhere")
	}
	under := false
	if !p.Create {
		under = t.carries(p.stat, dir)
	}
	if under {
		return refuse(p.Info.Path, fmt.Sprintf("carries the %s %s", what, dir),
			"choose another target, or copy the "+what+" to another disk first")
	}
	return nil
}

// Carries reports whether the device or file at path is, or is a part of, what
// the directory dir stands on. The directory need not exist yet.
func Carries(path, dir string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", path, err)
	}
	dir, err := existing(dir)
	if err != nil {
		return false, fmt.Errorf("find %s: %w", dir, err)
	}
	t, err := host().tally()
	if err != nil {
		return false, err
	}
	return t.carries(st, dir), nil
}

// carries is Carries for a path that was looked up.
func (t *tally) carries(st unix.Stat_t, dir string) bool {
	g := ground{tally: t}
	g.path(dir, 0)
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return g.devs[st.Rdev]
	}
	return g.files[[2]uint64{st.Dev, st.Ino}]
}

// existing returns dir, or the nearest folder above it that exists, without
// links.
func existing(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		real, err := filepath.EvalSymlinks(d)
		if err == nil {
			rel, err := filepath.Rel(d, dir)
			return filepath.Join(real, rel), err
		}
		if d == filepath.Dir(d) {
			return "", err
		}
	}
}

// A ground is all that a directory stands on: the devices of its filesystem,
// the disks below those, and the files that loop devices make disks of.
type ground struct {
	*tally
	devs  map[uint64]bool
	files map[[2]uint64]bool // filesystem and inode
}

// path adds what the file or directory at path lies on.
func (g *ground) path(path string, depth int) {
	if g.devs == nil {
		g.devs, g.files = map[uint64]bool{}, map[[2]uint64]bool{}
	}
	for d := path; depth <= maxStack; d = filepath.Dir(d) {
		var st unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, d, 0, unix.STATX_BASIC_STATS|statxMountID, &st) == nil {
			g.mount(unix.Mkdev(st.Dev_major, st.Dev_minor), int(st.Mnt_id), depth)
			return
		}
		if d == filepath.Dir(d) {
			return
		}
	}
}

const statxMountID = 0x1000 // STATX_MNT_ID, since Linux 5.8

// mount adds the devices below a filesystem, found by its number or, where
// that is anonymous, by the mount's source.
func (g *ground) mount(dev uint64, id, depth int) {
	g.device(dev, depth)
	for _, m := range g.mounts {
		if m.dev != dev && m.id != id {
			continue
		}
		if source, ok := g.rdev(m.source); ok {
			g.device(source, depth)
		}
		for _, opt := range m.super {
			if dir, ok := strings.CutPrefix(opt, "upperdir="); ok {
				g.path(unescape(dir), depth+1)
			}
		}
	}
}

// device adds a device and all that it is built upon.
func (g *ground) device(dev uint64, depth int) {
	if depth > maxStack || g.devs[dev] {
		return
	}
	n, err := g.node(dev)
	if err != nil {
		return // anonymous: tmpfs, a network filesystem
	}
	g.devs[dev] = true
	for _, m := range g.spanned(n) {
		g.device(m.dev, depth+1)
	}
	for _, m := range g.slaves(n) {
		g.device(m.dev, depth+1)
	}
	if d := g.disk(n); d.dev != dev {
		g.device(d.dev, depth+1)
	}
	for _, l := range g.loops {
		if l.node.dev != dev {
			continue
		}
		if l.rdev != 0 {
			g.device(l.rdev, depth+1)
		} else {
			g.files[[2]uint64{l.dev, l.ino}] = true
			g.mount(l.dev, 0, depth+1)
		}
	}
}

// checkHeld looks for usages of a device that we hold open for ourselves, so
// that the kernel's claim is our own.
func (p *TargetPlan) checkHeld() error {
	t, err := p.system.tally()
	if err != nil {
		return fmt.Errorf("plan restore to %s: %w", p.Info.Path, err)
	}
	return p.refuseUsed(t.device(p.node))
}

func (p *TargetPlan) refuseUsed(used []Usage) error {
	if len(used) == 0 {
		return nil
	}
	u := slices.MaxFunc(used, byWeight)
	return refuse(p.Info.Path, "is in use: "+u.String(), u.release()+" first")
}
