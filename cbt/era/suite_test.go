package era_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/snapshot"
	"platter/cbt"
	"platter/cbt/cbttest"
	"platter/cbt/era"
	"platter/cbt/trace"
	"platter/vmtests/guest"
	"platter/vmtests/volumes"
)

// D12, D13, D14: on dm-era devices upon volumes.
func TestEraPassesTheSuite(t *testing.T) {
	guest.Only(t)
	g := volumes.NewGroup(t, "suite", "/dev/vda")
	cbttest.Run(t, func(t testing.TB, size int64) cbttest.Fixture { return newRig(t, g, size).fixture() })
}

// D12: a tracker of them that is wrong anywhere does not pass. To commit too early
// is no flaw: the kernel keeps all eras.
func TestFlawsAreCaught(t *testing.T) {
	guest.Only(t)
	g := volumes.NewGroup(t, "flaws", "/dev/vda")
	cbttest.CatchFlaws(t, func(t testing.TB, size int64, wrap func(cbt.Tracker) cbt.Tracker) cbttest.Fixture {
		r := newRig(t, g, size)
		r.wrap = wrap
		return r.fixture()
	}, "commits when it marks")
}

// A rig is a dm-era device.
type rig struct {
	t            testing.TB
	group        *volumes.Group
	name         string
	origin, meta string
	size         int64
	device       cbttest.Device
	views        []snapshot.View               // those not closed
	wrap         func(cbt.Tracker) cbt.Tracker // breaks the tracker; nil for one that is right
}

var next atomic.Int64

func newRig(t testing.TB, g *volumes.Group, size int64) *rig {
	n := next.Add(1)
	r := &rig{t: t, group: g, name: fmt.Sprintf("era%d", n), size: size}
	r.origin, r.meta = g.Thick(fmt.Sprintf("origin%d", n), 4*size), g.Thick(fmt.Sprintf("meta%d", n), 4<<20)
	// A superblock of zeros asks for new metadata.
	g.Run("busybox", "dd", "if=/dev/zero", "of="+r.meta, "bs=4096", "count=1", "conv=fsync")
	g.Run("dmsetup", "create", r.name, "--table", r.table())
	t.Cleanup(func() {
		if err := r.let(); err != nil {
			t.Error(err)
		}
		g.Run("dmsetup", "remove", "--retry", r.name)
		g.Remove(r.origin)
		g.Remove(r.meta)
	})
	return r
}

func (r *rig) path() string { return "/dev/mapper/" + r.name }

func (r *rig) table() string {
	return fmt.Sprintf("0 %d era %s %s 128", r.size/512, r.meta, r.origin)
}

func (r *rig) fixture() cbttest.Fixture {
	d := cbttest.BlockDevice(r.t, r.path(), r.resize)
	r.device = d
	return cbttest.Fixture{Device: coherent{d}, Open: r.begin, Crash: r.crash, Grain: 64 << 10}
}

func (r *rig) begin(ctx context.Context, consumer string) (cbt.Tracker, error) {
	d, err := block.Look(r.path())
	if err != nil {
		return nil, err
	}
	d.How = block.Still // nobody writes but the suite, between its views
	c := snapshot.Consumer{Repository: consumer, Volume: r.name}
	v, err := era.New(trace.DefaultDir).Take(ctx, d, snapshot.Options{Consumer: c})
	if err != nil {
		return nil, err
	}
	tracker, err := (era.Opener{}).Open(ctx, v, c)
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	if r.wrap != nil {
		tracker = r.wrap(tracker)
	}
	r.views = append(r.views, v)
	return &run{tracker, r, v}, nil
}

// crash ends the device as a power cut does not: what a dead process leaves is a
// snapshot of the metadata.
func (r *rig) crash() error {
	if err := r.let(); err != nil {
		return err
	}
	mark := "/var/lib/platter/dm-era/" + r.name
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		return err
	}
	r.group.Run("dmsetup", "message", r.name, "0", "take_metadata_snap")
	return nil
}

// let closes what is open of the device.
func (r *rig) let() error {
	var errs []error
	for _, v := range r.views {
		errs = append(errs, v.Close())
	}
	r.views = nil
	return errors.Join(errs...)
}

// resize makes the device longer. Shorter is another matter: dm-era forgets
// what lay beyond.
func (r *rig) resize(size int64) error {
	if size < r.size || size > 4<<20 {
		return fmt.Errorf("from %d to %d bytes: %w", r.size, size, errors.ErrUnsupported)
	}
	r.size = size
	r.group.Run("dmsetup", "suspend", r.name)
	r.group.Run("dmsetup", "load", r.name, "--table", r.table())
	r.group.Run("dmsetup", "resume", r.name)
	fd := int(r.device.(interface{ Fd() uintptr }).Fd())
	return unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0)
}

// A coherent device empties the page cache after what the device cannot do.
type coherent struct{ cbttest.Device }

func (c coherent) Zero(e block.Extent) error { return c.flush(c.Device.Zero(e)) }

func (c coherent) Discard(e block.Extent) error { return c.flush(c.Device.Discard(e)) }

// WriteAt writes through: what is in the cache is no part of a view.
func (c coherent) WriteAt(p []byte, off int64) (int, error) {
	n, err := c.Device.WriteAt(p, off)
	return n, errors.Join(err, unix.Fdatasync(c.fd()))
}

func (c coherent) fd() int { return int(c.Device.(interface{ Fd() uintptr }).Fd()) }

func (c coherent) flush(err error) error {
	if err == nil {
		return unix.Fdatasync(c.fd())
	}
	return errors.Join(err, unix.IoctlSetInt(c.fd(), unix.BLKFLSBUF, 0))
}

// A run closes its view with its tracker, as runs do.
type run struct {
	cbt.Tracker
	rig  *rig
	view snapshot.View
}

func (r *run) Close() error {
	r.rig.views = slices.DeleteFunc(r.rig.views, func(v snapshot.View) bool { return v == r.view })
	return errors.Join(r.Tracker.Close(), r.view.Close())
}

// Of a discard of several blocks dm-era may mark only the first, which is why a
// history ends with one.
//
// D12, D14: what may be missing in the kernel's marks is not vouched for.
func TestADiscardEndsTheHistory(t *testing.T) {
	guest.Only(t)
	r := newRig(t, volumes.NewGroup(t, "discards", "/dev/vda"), 1<<20)
	f := r.fixture()
	if _, err := f.Device.WriteAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	before, err := r.begin(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	g, err := before.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.group.Run("blkdiscard", "--offset", "262144", "--length", "524288", r.path())
	after, err := r.begin(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if set, err := after.Changed(t.Context(), g); !errors.Is(err, cbt.ErrHistoryLost) {
		t.Errorf("after a discard: %v, %v", set, err)
	}
	var point struct{ Now int }
	if err := json.Unmarshal(g, &point); err != nil {
		t.Fatal(err)
	}
	r.group.Run("dmsetup", "message", r.name, "0", "take_metadata_snap")
	list := r.group.Run("era_invalidate", "--metadata-snapshot", "--written-since", fmt.Sprint(point.Now), r.meta)
	r.group.Run("dmsetup", "message", r.name, "0", "drop_metadata_snap")
	t.Logf("of blocks 4 to 11, which were discarded, dm-era marked %s", list)
}
