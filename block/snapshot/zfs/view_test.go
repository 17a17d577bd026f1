package zfs_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
	"platter/block/freeze"
	"platter/block/snapshot"
	"platter/block/snapshot/zfs"
	"platter/vmtests/guest"
	"platter/vmtests/volumes"
)

func TestMain(m *testing.M) {
	if freeze.Watch() {
		return
	}
	os.Exit(m.Run())
}

const size = 4 << 20

// A rig is a volume of ZFS in a guest.
type rig struct {
	*testing.T
	pool *volumes.Pool
	path string
}

func newRig(t *testing.T) *rig {
	p := volumes.NewPool(t, "views", "/dev/vda")
	return &rig{t, p, p.Volume("v", size)}
}

func (r *rig) device() block.Device {
	r.Helper()
	d, err := block.Look(r.path)
	if err != nil {
		r.Fatal(err)
	}
	return d
}

func (r *rig) write(off int64, text string) {
	r.Helper()
	f, err := os.OpenFile(r.path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte(text), off)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		r.Fatal(err)
	}
}

// dead is a process of another boot.
const dead = "00000000-1-1-1"

func (r *rig) take(consumer, run string) *zfs.View {
	r.Helper()
	v, err := zfs.Provider{}.Take(r.Context(), r.device(), snapshot.Options{Consumer: snapshot.Consumer{Repository: consumer, Volume: "h/v"}, Run: run})
	if err != nil {
		r.Fatal(err)
	}
	return v.(*zfs.View)
}

func (r *rig) snapdev() string {
	r.Helper()
	return strings.Join(strings.Fields(r.pool.Run("zfs", "get", "-H", "-o", "value,source", "snapdev", "views/v")), " ")
}

func (r *rig) snapshots() (names []string) {
	r.Helper()
	all, err := zfs.Provider{}.Snapshots(r.Context(), r.device())
	if err != nil {
		r.Fatal(err)
	}
	for _, s := range all {
		names = append(names, s.ID)
	}
	return names
}

// shown is how many snapshots have devices.
func shown(t *testing.T) (n int) {
	t.Helper()
	all, err := filepath.Glob("/dev/zd*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if strings.Contains(block.Zvol(path), "@") {
			n++
		}
	}
	return n
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// D50: views of a volume are still, whatever is written; the last that is kept
// stays, the volume's properties are what they were.
func TestViewsAreStillAndLeaveWhatTheyFound(t *testing.T) {
	guest.Only(t)
	r := newRig(t)
	for _, before := range []string{"hidden default", "hidden local", "visible local"} {
		if value, ok := strings.CutSuffix(before, " local"); ok {
			r.pool.Run("zfs", "set", "snapdev="+value, "views/v")
		}
		r.write(0, "before")
		v := r.take("a", snapshot.ThisProcess())
		if got := r.snapdev(); got != before {
			t.Errorf("while a view is open: snapdev is %s, want %s", got, before)
		}
		r.write(0, "after.")
		b := make([]byte, 4096)
		if _, err := v.ReadAt(t.Context(), b, 0); err != nil || !bytes.HasPrefix(b, []byte("before")) {
			t.Errorf("the view holds %.8q, %v, want what was written before", b, err)
		}
		if i := v.Info(); i.Path != r.path || i.Kind != block.KindZvol || i.Name != "views/v" || i.Size != size {
			t.Errorf("the view is described as %+v, and not as the volume", i)
		}
		other := r.take("b", snapshot.ThisProcess())
		r.must(v.Keep(t.Context()))
		r.must(v.Close())
		r.must(other.Close())
		if got := r.snapdev(); got != before {
			t.Errorf("after a view: snapdev is %s, want %s", got, before)
		}
		if n := shown(t); before != "visible local" && n != 0 {
			t.Errorf("%s: %d snapshots have devices, want none", before, n)
		}
		if got := r.snapshots(); len(got) != 1 || got[0] != v.ID() {
			t.Errorf("got the snapshots %v, want the one that was kept, %s", got, v.ID())
		}
		if _, err := command.Run(t.Context(), "zfs", "destroy", "views/v@platter-"+v.ID()); err == nil {
			t.Error("a kept snapshot was destroyed by hand, without its hold being released")
		}
	}
	// Those who have nothing to do with it.
	r.pool.Run("zfs", "snapshot", "views/v@mine")
	if got := r.snapshots(); len(got) != 1 {
		t.Errorf("got the snapshots %v, want no other's", got)
	}
	if err := (zfs.Provider{}).Remove(t.Context(), snapshot.Snapshot{Method: zfs.Method, Name: "views/v@mine"}); err == nil {
		t.Error("somebody else's snapshot was removed")
	}
}

// D50: what a dead run left goes, and what it had changed is set right.
func TestLeftoversOfVolumesGo(t *testing.T) {
	guest.Only(t)
	r := newRig(t)
	v := r.take("a", dead)
	r.must(v.Source.Close()) // as the end of its process does
	kept := r.take("b", dead)
	r.must(kept.Keep(t.Context()))
	r.must(kept.Close())
	r.pool.Run("zfs", "set", "snapdev=visible", "views/v")
	c := snapshot.Consumer{Repository: "a", Volume: "h/v"}
	removed, err := snapshot.Clean(t.Context(), zfs.Provider{}, r.device(), c, "")
	if err != nil || len(removed) != 1 || removed[0].ID != v.ID() {
		t.Errorf("removed %v, %v, want what the dead run left", removed, err)
	}
	if got := r.snapdev(); got != "hidden default" {
		t.Errorf("snapdev is %s, and was hidden by default before the run that died", got)
	}
	all, err := zfs.Provider{}.Snapshots(t.Context(), r.device())
	if err != nil || len(all) != 1 || all[0].ID != kept.ID() || !all[0].Kept {
		t.Fatalf("got %v, %v, want the one that another consumer keeps", all, err)
	}
	r.must(zfs.Provider{}.Remove(t.Context(), all[0]))
	r.must(zfs.Provider{}.Remove(t.Context(), all[0]))
	if got := r.snapshots(); len(got) != 0 {
		t.Errorf("got the snapshots %v, want none", got)
	}
}

// What cannot be is refused, and says what to do. The disk has 512 MiB: not enough
// for a volume of 300 twice.
func TestViewsThatCannotBe(t *testing.T) {
	guest.Only(t)
	r := newRig(t)
	p := zfs.Provider{}
	fits := func(path string) snapshot.Fit {
		d, err := block.Look(path)
		if err != nil {
			t.Fatal(err)
		}
		return p.Fits(t.Context(), d)
	}
	if f := fits(r.path); !f.OK || !strings.Contains(f.Why, "views/v") {
		t.Errorf("a volume: got %+v, want that it fits", f)
	}
	if f := fits("/dev/vdb"); f.OK || !strings.Contains(f.Why, "no volume of ZFS") {
		t.Errorf("a disk: got %+v, want that it does not fit", f)
	}
	r.pool.Run("sgdisk", "--new", "1:2048:4095", r.path)
	if f := fits(r.path + "p1"); f.OK || !strings.Contains(f.Why, "views/v: image that") {
		t.Errorf("a partition: got %+v, want that the volume is to be imaged", f)
	}
	r.pool.Run("zfs", "snapshot", "views/v@mine")
	r.pool.Run("zfs", "set", "snapdev=visible", "views/v")
	if f := fits(r.pool.Device("v@mine")); f.OK || !strings.Contains(f.Why, "is a snapshot") {
		t.Errorf("a snapshot: got %+v, want that it does not fit", f)
	}
	r.pool.Run("zfs", "create", "-V", "300m", "views/thick")
	path := r.pool.Device("thick")
	if out, err := exec.CommandContext(t.Context(), "busybox", "dd", "if=/dev/urandom", "of="+path, "bs=1M", "count=300", "conv=fsync").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d, err := block.Look(path)
	r.must(err)
	if _, err := p.Take(t.Context(), d, snapshot.Options{Run: dead}); err == nil || !strings.Contains(err.Error(), "refreservation=none views/thick") {
		t.Errorf("a volume without room: got %v, want advice", err)
	}
}

// A filesystem on a volume is whole in its views, without a journal to replay.
func TestFilesystemsAreFrozenForAView(t *testing.T) {
	guest.Only(t)
	r := newRig(t)
	dir := t.TempDir()
	r.pool.Run("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-J", "size=1", r.path)
	r.must(unix.Mount(r.path, dir, "ext4", 0, ""))
	defer unix.Unmount(dir, 0)
	r.must(os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("text"), 9999), 0o600))
	v := r.take("a", dead)
	defer v.Close()
	b := make([]byte, size)
	_, err := v.ReadAt(t.Context(), b, 0)
	r.must(err)
	image := filepath.Join(t.TempDir(), "image")
	r.must(os.WriteFile(image, b, 0o600))
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-fn", image).CombinedOutput(); err != nil || bytes.Contains(out, []byte("recover")) {
		t.Errorf("%v: %s", err, out)
	}
	r.must(os.WriteFile(filepath.Join(dir, "more"), nil, 0o600)) // it is thawed
}
