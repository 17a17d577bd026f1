package bitmap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"platter/block"
	"platter/block/snapshot"
	vm "platter/block/snapshot/qemu"
	"platter/cbt"
	"platter/cbt/cbttest"
	"platter/vmtests/qemu"
)

// D12, D13, D14: on the disk of a running QEMU.
func TestBitmapPassesTheSuite(t *testing.T) {
	if os.Getenv("PLATTER_TEST_VM") == "" {
		for _, story := range []string{"crash before commit", "writes during a run"} {
			err := cbttest.Try(t, story, func(t testing.TB, size int64) cbttest.Fixture { return newRig(t, size, nil).fixture() })
			if err != nil {
				t.Fatalf("%s: %v", story, err)
			}
		}
		return
	}
	cbttest.Run(t, func(t testing.TB, size int64) cbttest.Fixture { return newRig(t, size, nil).fixture() })
}

// D12: a tracker that is wrong anywhere does not pass.
func TestSuiteCatchesFlawedBitmaps(t *testing.T) {
	if os.Getenv("PLATTER_TEST_VM") == "" {
		t.Skip("SKIPPED, many machines: make vm")
	}
	cbttest.CatchFlaws(t, func(t testing.TB, size int64, wrap func(cbt.Tracker) cbt.Tracker) cbttest.Fixture {
		return newRig(t, size, wrap).fixture()
	})
}

// A rig is a machine whose disk is a raw file, which can be read beside it.
type rig struct {
	t       testing.TB
	machine *qemu.Live
	disk    *os.File
	data    string // what is written goes by way of this file
	size    int64
	views   []snapshot.View
	wrap    func(cbt.Tracker) cbt.Tracker // nil for the tracker as it is
}

func newRig(t testing.TB, size int64, wrap func(cbt.Tracker) cbt.Tracker) *rig {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &rig{t: t, machine: qemu.StartLive(t, path, "raw"), disk: f, data: filepath.Join(dir, "data"), size: size, wrap: wrap}
}

func (r *rig) fixture() cbttest.Fixture {
	return cbttest.Fixture{Device: r, Open: r.open, Crash: r.crash, Grain: 64 << 10}
}

func (r *rig) open(ctx context.Context, consumer string) (cbt.Tracker, error) {
	d, _, err := vm.Provider{}.Look(ctx, "qemu:"+r.machine.Socket)
	if err != nil {
		return nil, err
	}
	c := snapshot.Consumer{Repository: consumer, Volume: "disk"}
	v, err := vm.Provider{}.Take(ctx, d, snapshot.Options{Consumer: c, Run: "00000000-1-1-1"})
	if err != nil {
		return nil, err
	}
	r.views = append(r.views, v)
	t, err := (Opener{}).Open(ctx, v, c)
	if err != nil {
		return nil, err
	}
	if r.wrap != nil {
		t = r.wrap(t)
	}
	return &run{t, r, v}, nil
}

// crash leaves all behind that a dying process does, and cleans up as the next
// one does first.
func (r *rig) crash() error {
	var errs []error
	for _, v := range r.views {
		q, _ := vm.Of(v)
		errs = append(errs, q.Abandon())
	}
	if r.views = nil; errors.Join(errs...) != nil {
		return errors.Join(errs...)
	}
	ctx := context.WithoutCancel(r.t.Context())
	d, _, err := vm.Provider{}.Look(ctx, "qemu:"+r.machine.Socket)
	if err != nil {
		return err
	}
	// A consumer that there is not: only what nobody can need goes.
	_, err = snapshot.Clean(ctx, vm.Provider{}, d, snapshot.Consumer{}, "")
	return err
}

// A run closes its view with its tracker, as runs do.
type run struct {
	cbt.Tracker
	rig  *rig
	view snapshot.View
}

func (r *run) Close() error {
	for i, v := range r.rig.views {
		if v == r.view {
			r.rig.views = append(r.rig.views[:i], r.rig.views[i+1:]...)
			return errors.Join(r.Tracker.Close(), r.view.Close())
		}
	}
	return errors.Join(r.Tracker.Close(), os.ErrClosed)
}

func (r *rig) Size() int64 { return r.size }

func (r *rig) ReadAt(p []byte, off int64) (int, error) { return r.disk.ReadAt(p, off) }

func (r *rig) WriteAt(p []byte, off int64) (int, error) {
	if err := os.WriteFile(r.data, p, 0o600); err != nil {
		return 0, err
	}
	return len(p), r.machine.IO(fmt.Sprintf("write -s %s %d %d", r.data, off, len(p)))
}

func (r *rig) Zero(e block.Extent) error {
	return r.machine.IO(fmt.Sprintf("write -z %d %d", e.Offset, e.Length))
}

func (r *rig) Discard(e block.Extent) error {
	return r.machine.IO(fmt.Sprintf("discard %d %d", e.Offset, e.Length))
}

// Resize makes the disk larger. Of one that is made smaller QEMU forgets what
// was written to the part that goes; what notices that it comes back is that the
// ends of a disk are read in every run.
func (r *rig) Resize(size int64) error {
	if size < r.size {
		return errors.ErrUnsupported
	}
	err := r.machine.Do("block_resize", map[string]any{"node-name": "node0", "size": size}, nil)
	if err == nil {
		r.size = size
	}
	return err
}
