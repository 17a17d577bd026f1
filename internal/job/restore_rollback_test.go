package job

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"platter/block/snapshot"
	"platter/cbt"
	passes "platter/cbt/live"
	"platter/cbt/trace"
	"platter/image"
)

// A traced disk is a loop device that a tracer of the kernel's own watches.
type traced struct {
	t         *testing.T
	dev, file string
	dir       string // of the tracer
	state     string
	env       *Env
	r         *rand.Rand
}

func newTraced(t *testing.T, env *Env, content []byte) *traced {
	t.Helper()
	d := &traced{t: t, state: t.TempDir(), env: env, r: seeded(t, 77)}
	d.dev, d.file = loop(t, content, 512)
	d.dir = tracerDir(t)
	d.trace()
	return d
}

// trace starts the tracer.
func (d *traced) trace() { startTracer(d.t, d.dir) }

// tracerDir is where a test keeps a tracer of its own, which ends with it.
func tracerDir(t *testing.T) string {
	t.Helper()
	above := t.TempDir()
	if err := unix.Mount("bpf", above, "bpf", 0, "mode=0700"); err != nil {
		t.Skip("NOT TESTED: this needs to mount a file system of BPF objects: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(above, unix.MNT_DETACH) })
	return filepath.Join(above, "platter")
}

func startTracer(t *testing.T, dir string) {
	t.Helper()
	tr, _, err := trace.Run(dir)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip("NOT TESTED: this needs programs in the kernel: ", err)
	}
	if err = errors.Join(err, tr.Close()); err != nil {
		t.Fatal(err)
	}
}

func (d *traced) ways() Ways {
	return Ways{Views: []snapshot.Provider{passes.New(d.dir)}, Trackers: []cbt.Opener{passes.Opener{}}}
}

func (d *traced) backup() *image.Manifest {
	d.t.Helper()
	reports, err := Backup(d.t.Context(), d.env, BackupOptions{Devices: []string{d.dev}, Volume: "disk", Ways: d.ways(), Audit: AuditOff})
	if err != nil {
		d.t.Fatal(err)
	}
	return reports[0].Image
}

// change writes n blocks of 64 KiB somewhere, past the page cache.
func (d *traced) change(n int, from, to int64) {
	d.t.Helper()
	f, err := os.OpenFile(d.dev, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	p := make([]byte, 64<<10)
	for range n {
		random(d.r, p)
		if _, err := f.WriteAt(p, (from+d.r.Int64N(to-from-int64(len(p))))&^511); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *traced) restore(ctx context.Context, image string) (*RestoreReport, error) {
	return Restore(ctx, d.env, RestoreOptions{Image: image, Target: d.dev, InPlace: true, Ways: d.ways(), State: d.state, Confirm: yes})
}

func (d *traced) rollback(image string) *RestoreReport {
	d.t.Helper()
	r, err := d.restore(d.t.Context(), image)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

func (d *traced) is(want []byte) {
	d.t.Helper()
	if !bytes.Equal(onDisk(d.t, d.dev, d.file), want) {
		d.t.Error("the device is not the image")
	}
}

func (d *traced) journals() int {
	names, _ := filepath.Glob(filepath.Join(d.state, "rollbacks", "*.json"))
	return len(names)
}

// A rollback looks at what differs from the newest tracked image, at what was
// written since, and at the canaries; the next image goes on from the tracker.
func TestRollbackLooksAtWhatChanged(t *testing.T) {
	const size = 64 << 20
	d := newTraced(t, newEnv(t, 64<<10), junk(t, size))
	first := d.backup()
	monday := onDisk(t, d.dev, d.file)
	d.change(5, 8<<20, 50<<20)
	d.backup()
	d.change(5, 8<<20, 50<<20)
	second := d.backup()
	tuesday := onDisk(t, d.dev, d.file)
	d.change(5, 8<<20, 50<<20)

	for _, c := range []struct {
		to   *image.Manifest
		want []byte
	}{{first, monday}, {second, tuesday}, {first, monday}} {
		r := d.rollback(c.to.ID.String())
		d.is(c.want)
		b := r.Rollback
		if b == nil || b.Why != "" || b.Parent != second.ID.String() || b.Looked > 8<<20 || r.Trusted > size-b.Looked || r.Trusted < size-3*b.Looked || !b.Generated || !r.ReadBack {
			t.Fatalf("rollback %+v, trusted %d of %d", b, r.Trusted, size)
		}
		if r.Written == 0 || r.Written > 40*64<<10 || r.Written+r.Zeroed+r.Kept+r.Trusted != size {
			t.Errorf("written %d, zeroed %d, kept %d, trusted %d", r.Written, r.Zeroed, r.Kept, r.Trusted)
		}
		if d.journals() != 0 {
			t.Error("a journal is left")
		}
	}
	d.change(2, 8<<20, 50<<20)
	m := d.backup()
	if m.Tracker.Name != trace.Name || m.Stats.Read > 10<<20 || !bytes.Equal(content(t, d.env, m), onDisk(t, d.dev, d.file)) {
		t.Errorf("the image after it: tracker %+v, read %d", m.Tracker, m.Stats.Read)
	}
}

// Any doubt has every block compared, and the result is the image all the same.
func TestRollbackComparesAllInDoubt(t *testing.T) {
	const size = 24 << 20
	for name, c := range map[string]struct {
		doubt func(t *testing.T, d *traced)
		why   string
	}{
		"the tracer was stopped": {func(t *testing.T, d *traced) {
			if err := trace.Stop(d.dir); err != nil {
				t.Fatal(err)
			}
			d.change(3, 4<<20, 20<<20)
			d.trace()
		}, "stopped since"},
		"something was written behind the tracer's back, in sight of the canaries": {func(t *testing.T, d *traced) {
			f, err := os.OpenFile(d.file, os.O_RDWR, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("superblock"), 4096)
				if err == nil {
					_, err = f.WriteAt([]byte("unseen"), 12<<20)
				}
			}
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			tool(t, "blockdev", "--flushbufs", d.dev)
		}, "missed a write"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newTraced(t, newEnv(t, 64<<10), junk(t, size))
			m := d.backup()
			want := onDisk(t, d.dev, d.file)
			d.change(3, 4<<20, 20<<20)
			c.doubt(t, d)
			r := d.rollback(m.ID.String())
			d.is(want)
			if r.Trusted != 0 || r.Rollback == nil || !strings.Contains(r.Rollback.Why, c.why) {
				t.Errorf("rollback %+v, trusted %d, want a doubt: %s", r.Rollback, r.Trusted, c.why)
			}
		})
	}
}

// What the tracked image left out as free may hold anything: it is looked at.
func TestRollbackLooksAtWhatWasLeftOut(t *testing.T) {
	const size = 64 << 20
	env := newEnv(t, 64<<10)
	d := newTracked(t, size, seeded(t, 9))
	tool(t, "mkfs.ext4", "-q", "-F", "-b", "4096", d.path)
	junk := make([]byte, 20<<20)
	random(seeded(t, 9), junk)
	d.write(junk, 40<<20) // free space that is full of what was deleted
	m := d.backup(env, BackupOptions{})
	if !m.LeftOut {
		t.Fatalf("nothing was left out: %+v", m.Stats)
	}
	d.write(junk[:300_000], 20<<20)
	r := mustRestore(t, env, RestoreOptions{Image: m.ID.String(), Target: d.path, InPlace: true, Ways: d.ways(), State: t.TempDir()})
	if !bytes.Equal(d.content(), content(t, env, m)) {
		t.Error("the device is not the image")
	}
	if r.Rollback == nil || r.Rollback.Why != "" || r.Rollback.LeftOut == 0 || r.Trusted == 0 {
		t.Errorf("%+v", r.Rollback)
	}
}

// A rollback that is cut off at any write is gone on with by the next: with the
// tracer still there, which saw what was written, and without, as after a
// power cut.
func TestRollbackCutOffIsGoneOnWith(t *testing.T) {
	sweep(t)
	const size = 32 << 20
	d := newTraced(t, newEnv(t, 64<<10), junk(t, size))
	first := d.backup()
	want := onDisk(t, d.dev, d.file)
	d.change(40, 2<<20, 30<<20)
	d.backup()
	for n := range 8 {
		d.change(6, 2<<20, 30<<20)
		ctx, cancel := context.WithCancel(t.Context())
		d.env.Progress = func(p Progress) {
			if p.Phase == "write" && p.Done > int64(n)*size/8 {
				cancel()
			}
		}
		_, err := d.restore(ctx, first.ID.String())
		cancel()
		d.env.Progress = nil
		if err == nil {
			continue
		}
		if d.journals() != 1 {
			t.Fatalf("round %d, cut off by %v: %d journals", n, err, d.journals())
		}
		if n%2 == 1 {
			if err := trace.Stop(d.dir); err != nil {
				t.Fatal(err)
			}
			d.trace()
		}
		r := d.rollback(first.ID.String())
		d.is(want)
		if r.Rollback.Resumed == "" || (r.Rollback.Why == "") != (n%2 == 0) || d.journals() != 0 {
			t.Errorf("round %d: %+v, %d journals", n, r.Rollback, d.journals())
		}
		if n%2 == 1 {
			d.backup()
		}
	}
}

func TestRollbackRefusesAMountedTarget(t *testing.T) {
	const size = 32 << 20
	d := newTraced(t, newEnv(t, 64<<10), func() []byte {
		f := sparseFile(t, size)
		tool(t, "mkfs.ext4", "-q", f)
		return readFile(t, f)
	}())
	m := d.backup()
	dir := t.TempDir()
	tool(t, "mount", "-o", "ro", d.dev, dir)
	defer func() { _ = exec.Command("umount", dir).Run() }()
	before := readFile(t, d.file)
	if _, err := d.restore(t.Context(), m.ID.String()); err == nil || !strings.Contains(err.Error(), "is mounted") {
		t.Errorf("got %v, want a refusal", err)
	}
	if !bytes.Equal(readFile(t, d.file), before) || d.journals() != 0 {
		t.Error("something was written")
	}
}
