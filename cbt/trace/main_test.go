package trace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"platter/block"
	"platter/cbt"
	"platter/cbt/cbttest"
)

// testDir is where a test keeps a tracer of its own, which ends with the test. The
// test is skipped where the kernel or who runs it may not trace.
func testDir(t testing.TB) string {
	t.Helper()
	above := t.TempDir()
	if err := unix.Mount("bpf", above, "bpf", 0, "mode=0700"); err != nil {
		t.Skip("SKIPPED, this needs to mount a file system of BPF objects: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(above, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(above, "platter")
}

func runTest(t testing.TB, dir string, o options) *Tracer {
	t.Helper()
	tr, _, err := run(dir, o)
	if cannot(err) {
		t.Skip("SKIPPED, this needs programs in the kernel: ", err)
	}
	if err != nil {
		var v *ebpf.VerifierError
		if errors.As(err, &v) {
			t.Fatalf("%+v", v)
		}
		t.Fatal(err)
	}
	return tr
}

// cannot reports whether an error is of what this machine does not allow.
func cannot(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EPERM) || errors.Is(err, ebpf.ErrNotSupported) ||
		errors.Is(err, fs.ErrNotExist) && !present("/sys/kernel/btf/vmlinux")
}

func present(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// synced is a block device whose writes have reached it when they return.
type synced struct {
	cbttest.Device
	sync func() error
	fd   uintptr
}

func (d synced) WriteAt(p []byte, off int64) (int, error) {
	n, err := d.Device.WriteAt(p, off)
	return n, errors.Join(err, d.sync())
}

// ReadAt reads what is on the device: what was cut off and came back lies in the
// page cache still.
func (d synced) ReadAt(p []byte, off int64) (int, error) {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.fd, unix.BLKFLSBUF, 0); errno != 0 {
		return 0, errno
	}
	return d.Device.ReadAt(p, off)
}

// Zero punches a hole, which a device makes by an operation of its own: zeroing
// a range is writing zeros where the file below a loop device has it no other way.
func (d synced) Zero(e block.Extent) error { return errors.Join(d.Device.Discard(e), d.sync()) }

// Discard asks the device itself: what files call punching a hole is zeroing
// where devices are concerned.
func (d synced) Discard(e block.Extent) error {
	span := [2]uint64{uint64(e.Offset), uint64(e.Length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.fd, unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	if errno == unix.EOPNOTSUPP {
		return fmt.Errorf("discard: %w", errors.ErrUnsupported)
	}
	if errno != 0 {
		return errno
	}
	return d.sync()
}

// A rig is a loop device and the tracer that watches it.
type rig struct {
	t        testing.TB
	dir      string
	o        options
	path     string
	tracer   *Tracer
	sessions []*Session
	wrap     func(*Session) cbt.Tracker // nil for none
}

func (r *rig) fixture(size int64) cbttest.Fixture {
	if present("/dev/shm") { // where files can have holes, and loop devices discard
		r.t.Setenv("TMPDIR", "/dev/shm")
	}
	d := cbttest.Loop(r.t, size)
	file := d.(interface {
		Name() string
		Sync() error
		Fd() uintptr
	})
	r.path = file.Name()
	if r.dir == "" {
		r.dir = testDir(r.t)
	}
	r.tracer = runTest(r.t, r.dir, r.o)
	r.t.Cleanup(func() { r.end() })
	return cbttest.Fixture{
		Device: synced{d, file.Sync, file.Fd()}, Open: r.open, Crash: r.crash, Unwatched: r.unwatched, Grain: 4096,
	}
}

func (r *rig) open(_ context.Context, consumer string) (cbt.Tracker, error) {
	s, err := r.tracer.Session(r.path, consumer)
	if err != nil {
		return nil, err
	}
	r.sessions = append(r.sessions, s)
	tracker := cbt.Tracker(s)
	if r.wrap != nil {
		tracker = r.wrap(s)
	}
	return &closing{tracker, s, r}, nil
}

// closing takes a session out of those that a crash would end.
type closing struct {
	cbt.Tracker
	session *Session
	rig     *rig
}

func (c *closing) Close() error {
	c.rig.sessions = slices.DeleteFunc(c.rig.sessions, func(s *Session) bool { return s == c.session })
	return c.session.Close()
}

func (r *rig) end() (err error) {
	for _, s := range r.sessions {
		err = errors.Join(err, s.Close())
	}
	r.sessions = nil
	return errors.Join(err, r.tracer.Close())
}

func (r *rig) crash() (err error) {
	if err := r.end(); err != nil {
		return err
	}
	r.tracer, err = Open(r.dir)
	return err
}

func (r *rig) unwatched(write func() error) (err error) {
	if err := errors.Join(r.end(), Stop(r.dir), write()); err != nil {
		return err
	}
	r.tracer, _, err = run(r.dir, r.o)
	return err
}
