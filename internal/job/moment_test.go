package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"platter/block"
	"platter/block/snapshot"
	"platter/block/snapshot/qemu"
	"platter/block/snapshot/reflink"
	"platter/cbt"
	"platter/cbt/bitmap"
	passes "platter/cbt/live"
	trackreflink "platter/cbt/reflink"
	"platter/image"
	loops "platter/vmtests/loop"
	vm "platter/vmtests/qemu"
)

// A pair are two places that are written to in turn: a number to the first,
// durable, then the same number to the second.
type pair struct {
	t     *testing.T
	write func(place int, number uint64) error // nil for nobody
	stop  atomic.Bool
	done  sync.WaitGroup
}

func (p *pair) begin() {
	if p.write == nil {
		return
	}
	p.done.Go(func() {
		for n := uint64(1); !p.stop.Load(); n++ {
			for place := range 2 {
				if err := p.write(place, n); err != nil {
					p.t.Errorf("write %d to place %d: %v", n, place, err)
					return
				}
			}
		}
	})
}

func (p *pair) end() {
	p.stop.Store(true)
	p.done.Wait()
}

// mark is a number as it is written: findable in an image of a disk.
var markWord = []byte("PLATTER-SEQUENCE-NUMBER-")

func mark(n uint64) []byte {
	return binary.BigEndian.AppendUint64(bytes.Clone(markWord), n)
}

// marked returns the number in an image.
func marked(t *testing.T, env *Env, m *image.Manifest) uint64 {
	t.Helper()
	b := content(t, env, m)
	i := bytes.Index(b, markWord)
	if i < 0 {
		t.Fatalf("%s: no number in its image", m.Volume)
	}
	return binary.BigEndian.Uint64(b[i+len(markWord):])
}

// toFiles writes numbers to two open files.
func toFiles(list [2]*os.File) func(int, uint64) error {
	return func(place int, n uint64) error {
		if _, err := list[place].WriteAt(mark(n), 0); err != nil {
			return err
		}
		return list[place].Sync()
	}
}

// inTurn images two devices that are written to in turn, and returns how often
// the images are not of one moment.
func inTurn(t *testing.T, env *Env, p *pair, rounds int, opts BackupOptions) (torn int) {
	t.Helper()
	p.begin()
	defer p.end()
	for range rounds {
		reports, err := Backup(t.Context(), env, opts)
		if err != nil {
			t.Fatal(err)
		}
		a, b := reports[0].Image, reports[1].Image
		x, y := marked(t, env, a), marked(t, env, b)
		t.Logf("%d and %d, %s and %s, frozen %v, %v", x, y, a.Tracker.View, b.Tracker.View, reports[0].Frozen, a.Warnings)
		if y != x && y != x-1 {
			torn++
		}
		if opts.Together && (!a.Time.Equal(b.Time) || a.Set == "" || a.Set != b.Set || !reports[1].Together) {
			t.Errorf("times %v and %v, sets %q and %q", a.Time, b.Time, a.Set, b.Set)
		}
		if a.Fuzzy || b.Fuzzy {
			t.Errorf("fuzzy: %v %v", a.Warnings, b.Warnings)
		}
	}
	return torn
}

func mounts(t *testing.T, kind string) (devices []string, list [2]*os.File) {
	t.Helper()
	if why := loops.Unavailable(t.Context()); why != "" {
		t.Skip("SKIPPED, this needs loop devices: ", why)
	}
	for i := range list {
		path := filepath.Join(t.TempDir(), "disk")
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 32<<20)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs."+kind, "-q", path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		d, err := loops.Attach(t.Context(), path, loops.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Detach() })
		dir := t.TempDir()
		if out, err := exec.Command("mount", d.Path, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Cleanup(func() { exec.Command("umount", dir).Run() })
		if list[i], err = os.Create(filepath.Join(dir, "number")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { list[i].Close() })
		devices = append(devices, d.Path)
	}
	return devices, list
}

// tracedWays are those of disks that a tracer of the test's own watches.
func tracedWays(t *testing.T) Ways {
	t.Helper()
	dir := tracerDir(t)
	startTracer(t, dir)
	return Ways{Views: []snapshot.Provider{passes.New(dir)}, Trackers: []cbt.Opener{passes.Opener{}}}
}

func turns() int {
	if long() {
		return 40
	}
	return 3
}

// Two disks that are written to in turn are imaged as they were at one moment,
// and are not without --together.
func TestDisksTogetherAreOfOneMoment(t *testing.T) {
	env, ways := newEnv(t, 64<<10), tracedWays(t)
	devices, list := mounts(t, "ext4")
	p := &pair{t: t, write: toFiles(list)}
	log := filepath.Join(t.TempDir(), "log")
	opts := BackupOptions{Devices: devices, Ways: ways, Together: true, Hooks: Hooks{
		Before: "echo before $PLATTER_DEVICES >>" + log, After: "echo after $PLATTER_OUTCOME >>" + log,
	}}
	if torn := inTurn(t, env, p, turns(), opts); torn > 0 {
		t.Errorf("%d of %d sets are of no one moment", torn, turns())
	}
	want := []string{"before " + strings.Join(devices, " "), "after taken"}
	if got := lines(t, log); !slices.Equal(got[:2], want) || len(got)%2 != 0 {
		t.Errorf("hooks: %q, want %q", got, want)
	}
	p = &pair{t: t, write: toFiles(list)}
	if torn := inTurn(t, env, p, 3, BackupOptions{Devices: devices, Ways: ways}); torn == 0 {
		t.Error("without --together they are of one moment as well: this test shows nothing")
	}
}

// Two files on one filesystem, the same.
func TestReflinksTogetherAreOfOneMoment(t *testing.T) {
	ways := Ways{Views: []snapshot.Provider{reflink.New()}, Trackers: []cbt.Opener{trackreflink.New()}}
	for _, mkfs := range [][]string{{"mkfs.xfs", "-q"}, {"mkfs.btrfs", "-q"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			env := newEnv(t, 64<<10)
			dir := loops.Filesystem(t, 400<<20, mkfs...)
			var devices []string
			var list [2]*os.File
			for i, name := range []string{"a", "b"} {
				path := filepath.Join(dir, name)
				var err error
				if list[i], err = os.Create(path); err == nil {
					_, err = list[i].Write(make([]byte, 1<<20))
				}
				if err != nil {
					t.Fatal(err)
				}
				defer list[i].Close()
				devices = append(devices, path)
			}
			p := &pair{t: t, write: toFiles(list)}
			if torn := inTurn(t, env, p, turns(), BackupOptions{Devices: devices, Ways: ways, Together: true}); torn > 0 {
				t.Errorf("%d of %d sets are of no one moment", torn, turns())
			}
			p = &pair{t: t, write: toFiles(list)}
			if torn := inTurn(t, env, p, 3, BackupOptions{Devices: devices, Ways: ways}); torn == 0 {
				t.Error("without --together they are of one moment as well: this test shows nothing")
			}
		})
	}
}

// Two disks of a virtual machine, the same.
func TestDisksOfAMachineTogetherAreOfOneMoment(t *testing.T) {
	env := newEnv(t, 64<<10)
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "a.raw"), filepath.Join(dir, "b.raw")}
	for _, path := range paths {
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	machine := vm.StartLive(t, paths[0], "raw", paths[1])
	number := uint64(0)
	// Through its monitor QEMU does not take writes while it is at something
	// else: they come before and after each view.
	write := func() {
		number++
		for place := range 2 {
			// qemu-io writes a file, which here has one sector.
			path := filepath.Join(dir, "number")
			err := os.WriteFile(path, append(mark(number), make([]byte, 512-len(mark(number)))...), 0o600)
			if err == nil {
				err = machine.IOOf(fmt.Sprint("disk", place), "write -s "+path+" 0 512")
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	opts := BackupOptions{
		Devices: []string{"qemu:" + machine.Socket + ":disk0", "qemu:" + machine.Socket + ":disk1"},
		Ways:    Ways{Views: []snapshot.Provider{busy{write: write}}, Trackers: []cbt.Opener{bitmap.Opener{}}},
	}
	for _, together := range []bool{true, false, true} {
		opts.Together = together
		torn := inTurn(t, env, &pair{t: t}, 1, opts)
		if together == (torn > 0) {
			t.Errorf("together %v: %d sets are of no one moment", together, torn)
		}
	}
	var left []any
	if err := machine.Do("query-block-jobs", nil, &left); err != nil || len(left) > 0 {
		t.Errorf("jobs are left in QEMU: %v, %v", left, err)
	}
}

// busy is the provider of a machine that writes before and after each view.
type busy struct {
	qemu.Provider
	write func()
}

func (b busy) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	b.write()
	defer b.write()
	return b.Provider.Take(ctx, d, o)
}

func (b busy) TakeAll(ctx context.Context, devices []block.Device, options []snapshot.Options) ([]snapshot.View, error) {
	b.write()
	defer b.write()
	return b.Provider.TakeAll(ctx, devices, options)
}

// If one device cannot be had, there is an image of none, and nothing is left
// behind; what cannot stand still together is refused.
func TestTogetherIsAllOrNothing(t *testing.T) {
	env, r := newEnv(t, 4<<10), seeded(t, 70)
	good, bad := newTracked(t, 1<<20, r), newTracked(t, 1<<20, r)
	ways := Ways{Views: []snapshot.Provider{several{good, bad}}}
	bad.broken = errors.New("no room for a snapshot")
	_, err := Backup(t.Context(), env, BackupOptions{Devices: []string{good.path, bad.path}, Ways: ways, Together: true})
	if err == nil || !strings.Contains(err.Error(), bad.path) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("got %v, want the device and the reason", err)
	}
	if n := len(good.copies); n > 0 {
		t.Errorf("%d snapshots are left", n)
	}
	if all, err := allImages(t.Context(), env); err != nil || len(all) > 0 {
		t.Errorf("%d images, %v", len(all), err)
	}
	bad.broken = nil
	reports, err := Backup(t.Context(), env, BackupOptions{Devices: []string{good.path, bad.path}, Ways: ways, Together: true})
	if err != nil || len(reports) != 2 {
		t.Fatalf("%d images, %v", len(reports), err)
	}
	for i, d := range []*tracked{good, bad} {
		d.proveContent(env, reports[i].Image)
	}
	// A view that is none any more when it is read costs the others their image.
	bad.filled = true
	if _, err = Backup(t.Context(), env, BackupOptions{Devices: []string{good.path, bad.path}, Ways: ways, Together: true}); !errors.Is(err, snapshot.ErrFilled) {
		t.Errorf("got %v, want %v", err, snapshot.ErrFilled)
	}
	if all, err := allImages(t.Context(), env); err != nil || len(all) != 2 {
		t.Errorf("%d images, %v, want the two from before", len(all), err)
	}
	if _, err = Backup(t.Context(), env, BackupOptions{Devices: []string{good.path, good.path}, Ways: ways, Together: true}); !errors.Is(err, ErrUsage) {
		t.Errorf("one device twice: got %v, want %v", err, ErrUsage)
	}
}

// several is the provider of a few tracked devices.
type several []*tracked

func (several) Name() string { return "copy" }

func (p several) of(path string) copier {
	return copier{p[slices.IndexFunc(p, func(d *tracked) bool { return d.path == path })]}
}

func (p several) Fits(ctx context.Context, d block.Device) snapshot.Fit {
	return p.of(d.Path).Fits(ctx, d)
}

func (p several) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	c := p.of(d.Path)
	if c.broken != nil {
		return nil, c.broken
	}
	return c.Take(ctx, d, o)
}

func (p several) Snapshots(ctx context.Context, d block.Device) ([]snapshot.Snapshot, error) {
	return p.of(d.Path).Snapshots(ctx, d)
}

func (p several) Remove(ctx context.Context, s snapshot.Snapshot) error {
	for _, d := range p {
		if err := (copier{d}).Remove(ctx, s); err != nil {
			return err
		}
	}
	return nil
}
