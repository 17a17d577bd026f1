// Package volumes makes logical volumes for tests that run in a guest, and
// runs the suite of trackers on them.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
	"platter/block/snapshot"
	"platter/block/snapshot/lvm"
	"platter/block/snapshot/zfs"
	"platter/cbt"
	"platter/cbt/cbttest"
	"platter/vmtests/guest"
)

// A Group is a volume group. Its extents are small, so that small volumes are
// as large as they should be.
type Group struct {
	Name string
	t    testing.TB
	next atomic.Int64
}

// Extent is what sizes of volumes are rounded to, in bytes.
const Extent = 128 << 10

// NewGroup makes a volume group on disks of the guest. It ends with the test.
func NewGroup(t testing.TB, name string, disks ...string) *Group {
	t.Helper()
	guest.Only(t)
	g := &Group{Name: name, t: t}
	g.Run("vgcreate", append([]string{"--yes", "--physicalextentsize", fmt.Sprint(Extent) + "b", name}, disks...)...)
	t.Cleanup(func() { g.Run("vgremove", "--yes", "--force", name) })
	return g
}

// Run runs a tool that must succeed and returns what it printed.
func (g *Group) Run(name string, args ...string) string {
	g.t.Helper()
	out, err := command.Run(context.WithoutCancel(g.t.Context()), name, args...)
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// Pool makes a thin pool of size bytes with blocks of 64 KiB.
func (g *Group) Pool(name string, size int64) {
	g.t.Helper()
	g.Run("lvcreate", "--yes", "--type", "thin-pool", "--zero", "n", "--size", sizeArg(size),
		"--poolmetadatasize", "4m", "--chunksize", "64k", "--name", name, g.Name)
}

// Thin makes a thin volume in a pool and returns its path.
func (g *Group) Thin(pool, name string, size int64) string {
	g.t.Helper()
	g.Run("lvcreate", "--yes", "--virtualsize", sizeArg(size), "--thinpool", pool, "--name", name, g.Name)
	return "/dev/" + g.Name + "/" + name
}

// Thick makes a volume outside pools and returns its path.
func (g *Group) Thick(name string, size int64) string {
	g.t.Helper()
	g.Run("lvcreate", "--yes", "--wipesignatures", "n", "--size", sizeArg(size), "--name", name, g.Name)
	return "/dev/" + g.Name + "/" + name
}

// Remove removes a volume with its snapshots.
func (g *Group) Remove(path string) {
	g.Run("lvremove", "--yes", "--force", strings.TrimPrefix(path, "/dev/"))
}

// Resize makes a volume another size, in whole extents.
func (g *Group) Resize(path string, size int64) error {
	_, err := command.Run(g.t.Context(), "lvresize", "--yes", "--force", "--size", sizeArg(size), strings.TrimPrefix(path, "/dev/"))
	if err != nil && strings.Contains(err.Error(), "matches existing size") {
		return nil
	}
	return err
}

// sizeArg is a size for LVM's tools, which round it up to extents.
func sizeArg(n int64) string { return fmt.Sprintf("%db", max(n, 1)) }

// A Maker is what volumes are in.
type Maker interface {
	unused() string // a name
	Remove(path string)
	Resize(path string, size int64) error
}

func (g *Group) unused() string { return fmt.Sprintf("lv%d", g.next.Add(1)) }

// Suite runs the suite of cbttest on volumes that create makes of a name and
// size, with the snapshots of a provider and the trackers of an opener.
func Suite(t *testing.T, g Maker, p snapshot.Provider, o cbt.Opener, create func(name string, size int64) string) {
	cbttest.Run(t, func(t testing.TB, size int64) cbttest.Fixture {
		return newFixture(t, g, p, o, create, size, nil)
	})
}

// CatchFlaws breaks the trackers that Suite is run with, each in its turn.
func CatchFlaws(t *testing.T, g Maker, p snapshot.Provider, o cbt.Opener, create func(name string, size int64) string) {
	cbttest.CatchFlaws(t, func(t testing.TB, size int64, wrap func(cbt.Tracker) cbt.Tracker) cbttest.Fixture {
		return newFixture(t, g, p, o, create, size, wrap)
	})
}

func newFixture(t testing.TB, g Maker, p snapshot.Provider, o cbt.Opener, create func(name string, size int64) string, size int64, wrap func(cbt.Tracker) cbt.Tracker) cbttest.Fixture {
	f := &fixture{t: t, group: g, provider: p, opener: o, wrap: wrap}
	f.path = create(g.unused(), size)
	t.Cleanup(func() {
		if err := f.crash(); err != nil {
			t.Error(err)
		}
		g.Remove(f.path)
	})
	return cbttest.Fixture{
		Device: f.device(),
		Open:   f.open, Crash: f.crash, Grain: 64 << 10,
	}
}

// A fixture is a volume whose runs are all of one process, which can die.
type fixture struct {
	t        testing.TB
	group    Maker
	provider snapshot.Provider
	opener   cbt.Opener
	wrap     func(cbt.Tracker) cbt.Tracker // breaks the tracker; nil for one that is right
	path     string
	views    []snapshot.View // those not closed
}

// dead is the name of a process of another boot: nobody waits for it.
const dead = "00000000-1-1"

func (f *fixture) open(ctx context.Context, consumer string) (cbt.Tracker, error) {
	d, err := block.Look(f.path)
	if err != nil {
		return nil, err
	}
	c := snapshot.Consumer{Repository: consumer, Volume: f.path}
	v, err := f.provider.Take(ctx, d, snapshot.Options{Consumer: c, Run: dead})
	if err != nil {
		return nil, err
	}
	f.views = append(f.views, v)
	tracker, err := f.opener.Open(ctx, v, c)
	if err != nil {
		return nil, err
	}
	if f.wrap != nil {
		tracker = f.wrap(tracker)
	}
	return &run{tracker, f, v}, nil
}

// device opens the volume. The kernel does not write what is in its cache beyond
// a new end, and shows it again when the volume grows back, whatever the disk
// holds: the cache is emptied whenever the size changes.
func (f *fixture) device() cbttest.Device {
	var d cbttest.Device
	d = cbttest.BlockDevice(f.t, f.path, func(size int64) error {
		fd := int(d.(interface{ Fd() uintptr }).Fd())
		if err := unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0); err != nil {
			return err
		}
		err := f.group.Resize(f.path, size)
		if err != nil && strings.Contains(err.Error(), "napshot origin") {
			return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		return errors.Join(err, unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0))
	})
	return coherent{d, f.path}
}

// A coherent device empties the page cache after what the device cannot do:
// before it refuses, the kernel makes zeros in the cache that never reach the
// disk.
type coherent struct {
	cbttest.Device
	path string
}

func (c coherent) Zero(e block.Extent) error { return c.flush(c.Device.Zero(e)) }

func (c coherent) Discard(e block.Extent) error {
	err := c.flush(c.Device.Discard(e))
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	f, err := os.OpenFile(c.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(Discard(f, e), f.Close())
}

func (c coherent) flush(err error) error {
	if err == nil {
		return nil
	}
	fd := int(c.Device.(interface{ Fd() uintptr }).Fd())
	return errors.Join(err, unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0))
}

// crash closes what a dying process had open, and leaves all else behind.
func (f *fixture) crash() error {
	var errs []error
	for _, v := range f.views {
		if w, ok := lvm.Of(v); ok {
			errs = append(errs, w.Source.Close())
		}
		if w, ok := zfs.Of(v); ok {
			errs = append(errs, w.Source.Close())
		}
	}
	f.views = nil
	return errors.Join(errs...)
}

// A run closes its view with its tracker, as runs do.
type run struct {
	cbt.Tracker
	fixture *fixture
	view    snapshot.View
}

func (r *run) Close() error {
	for i, v := range r.fixture.views {
		if v == r.view {
			r.fixture.views = append(r.fixture.views[:i], r.fixture.views[i+1:]...)
			return errors.Join(r.Tracker.Close(), r.view.Close())
		}
	}
	return errors.Join(r.Tracker.Close(), os.ErrClosed)
}
