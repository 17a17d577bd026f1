package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/freeze"
	"platter/block/snapshot"
	"platter/cbt/trace"
	"platter/vmtests/guest"
	"platter/vmtests/loop"
)

const blockSize = 64 << 10

func TestMain(m *testing.M) {
	if freeze.Watch() {
		return
	}
	os.Exit(m.Run())
}

// tracerDir is where a test keeps a tracer of its own, which ends with the
// test.
func tracerDir(t testing.TB) string {
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
	dir := filepath.Join(above, "platter")
	tr, _, err := trace.Run(dir)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip("SKIPPED, this needs programs in the kernel: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A machine is a disk with a mounted filesystem that is written to.
type machine struct {
	t       testing.TB
	backing string
	dev     string
	dir     string
	stop    atomic.Bool
	writers sync.WaitGroup
}

// machineOf calls use with a machine of its own, whose disk is a file of size
// bytes in memory.
func machineOf(t testing.TB, kind string, size int64, use func(*machine)) {
	t.Helper()
	machineOn(t, kind, size, func(disk string) (path string, remove func()) { return disk, func() {} }, use)
}

// machineOn is machineOf with a device that stack makes upon the disk.
func machineOn(t testing.TB, kind string, size int64, stack func(disk string) (path string, remove func()), use func(*machine)) {
	t.Helper()
	if why := loop.Unavailable(t.Context()); why != "" {
		t.Skip("SKIPPED, this needs loop devices: ", why)
	}
	shm, err := os.MkdirTemp("/dev/shm", "platter-live-")
	if err != nil {
		t.Skip("SKIPPED, this needs a file system in memory: ", err)
	}
	defer os.RemoveAll(shm)
	m := &machine{t: t, backing: filepath.Join(shm, "disk")}
	if err := errors.Join(os.WriteFile(m.backing, nil, 0o600), os.Truncate(m.backing, size)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs."+kind, "-q", m.backing)
	d, err := loop.Attach(t.Context(), m.backing, loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Detach()
	var remove func()
	m.dev, remove = stack(d.Path)
	defer remove()
	if m.dir, err = os.MkdirTemp("", "platter-live-"); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(m.dir)
	run(t, "mount", m.dev, m.dir)
	defer run(t, "umount", m.dir)
	defer m.rest()
	use(m)
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// write has so many goroutines change files until rest.
func (m *machine) write(seed uint64, writers int) {
	for i := range writers {
		w := &writer{dir: filepath.Join(m.dir, fmt.Sprint("writer", i)), random: rand.New(rand.NewPCG(seed, uint64(i)))}
		if err := os.MkdirAll(w.dir, 0o700); err != nil {
			m.t.Fatal(err)
		}
		m.writers.Go(func() {
			for !m.stop.Load() {
				if err := w.step(); err != nil && !errors.Is(err, unix.ENOSPC) {
					m.t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
}

func (m *machine) rest() {
	m.stop.Store(true)
	m.writers.Wait()
}

// A writer changes a few files in every way that reaches a disk.
type writer struct {
	dir    string
	random *rand.Rand
}

const fileSize = 1 << 20

func (w *writer) step() error {
	path := filepath.Join(w.dir, fmt.Sprint(w.random.IntN(6)))
	flags := os.O_RDWR | os.O_CREATE
	switch w.random.IntN(10) {
	case 0:
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case 1:
		if err := os.Rename(path, path+"x"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case 2:
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if flags&unix.O_DIRECT != 0 {
		return w.direct(f)
	}
	p := make([]byte, 1+w.random.IntN(30_000))
	for i := range p {
		p[i] = byte(w.random.Uint32())
	}
	if _, err := f.WriteAt(p, w.random.Int64N(fileSize)); err != nil {
		return err
	}
	switch w.random.IntN(8) {
	case 0:
		return f.Sync()
	case 1:
		return f.Truncate(w.random.Int64N(fileSize))
	case 2:
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, w.random.Int64N(fileSize), 70_000)
	case 3:
		return w.mapped(f)
	}
	return nil
}

func (w *writer) direct(f *os.File) error {
	p, err := block.AllocAligned(8192)
	if err != nil {
		return err
	}
	defer block.FreeAligned(p)
	p[0] = byte(w.random.Uint32())
	_, err = f.WriteAt(p, w.random.Int64N(fileSize/4096)*4096)
	return err
}

func (w *writer) mapped(f *os.File) error {
	if err := f.Truncate(fileSize); err != nil {
		return err
	}
	// What is mapped must have its place, or a full disk would be a signal.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, fileSize); err != nil {
		return err
	}
	p, err := unix.Mmap(int(f.Fd()), 0, fileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for range 20 {
		p[w.random.IntN(fileSize)]++
	}
	return unix.Munmap(p)
}

// copyOf copies a device as a run does, and returns the view and the copy.
func copyOf(t testing.TB, dir, dev string, atRest func()) (*view, []byte) {
	t.Helper()
	d, err := block.Look(dev)
	if err != nil {
		t.Fatal(err)
	}
	p := &Provider{dir, 64 << 20, Method}
	if f := p.Fits(t.Context(), d); !f.OK {
		t.Fatalf("it does not fit: %s", f.Why)
	}
	taken, err := p.Take(t.Context(), d, snapshot.Options{
		Consumer: snapshot.Consumer{Repository: "r", Volume: "h/v"}, BlockSize: blockSize,
	})
	if err != nil {
		t.Fatal(err)
	}
	v := taken.(*view)
	v.atRest = atRest
	size := v.Info().Size
	image := make([]byte, size)
	buf, err := block.AllocAligned(blockSize)
	if err != nil {
		t.Fatal(err)
	}
	defer block.FreeAligned(buf)
	read := func(src block.Source, off int64) {
		n := min(blockSize, size-off)
		if _, err := src.ReadAt(t.Context(), buf[:n], off); err != nil {
			t.Fatal(err)
		}
		copy(image[off:], buf[:n])
	}
	for off := int64(0); off < size; off += blockSize {
		read(v, off)
	}
	for last := false; !last; {
		src, again, end, err := v.Pass(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < size; off += blockSize {
			if again.Contains(block.Extent{Offset: off, Length: min(blockSize, size-off)}) {
				read(src, off)
			}
		}
		last = end
	}
	return v, image
}

// D56: the copy of a disk that is written to all the time is what the disk was
// in the moment of the freeze, byte for byte.
func TestCopyIsTheFrozenDisk(t *testing.T) {
	for _, c := range []struct {
		kind    string
		size    int64
		writers int
	}{{"ext4", 64 << 20, 2}, {"xfs", 320 << 20, 2}, {"btrfs", 160 << 20, 1}} {
		t.Run(c.kind, func(t *testing.T) {
			if c.kind != "ext4" && !long() {
				t.Skip("SKIPPED, only with PLATTER_TEST_LONG=1")
			}
			dir := tracerDir(t)
			machineOf(t, c.kind, c.size, func(m *machine) {
				m.write(1, c.writers)
				for range rounds() {
					var frozen []byte
					v, image := copyOf(t, dir, m.dev, func() {
						var err error
						if frozen, err = os.ReadFile(m.backing); err != nil {
							t.Error(err)
						}
					})
					defer v.Close()
					if err := v.Still(); err != nil {
						t.Fatal(err)
					}
					if i := firstDifference(image, frozen); i >= 0 {
						t.Fatalf("the copy differs at %d, after %v", i, v.notes)
					}
					t.Log(v.notes)
				}
			})
		})
	}
}

// D56: also of a device whose writes land long after they were written, later
// than passes end; the device mapper's, of which the kernel does not count what is
// on its way.
func TestCopyOfADelayedDiskIsTheFrozenDisk(t *testing.T) {
	guest.Only(t)
	const size = 32 << 20
	slow := func(disk string) (path string, remove func()) {
		run(t, "dmsetup", "create", "slow", "--table", fmt.Sprintf("0 %d delay %s 0 0 %s 0 50", size/512, disk, disk))
		return "/dev/mapper/slow", func() { run(t, "dmsetup", "remove", "--retry", "slow") }
	}
	dir := tracerDir(t)
	machineOn(t, "ext4", size, slow, func(m *machine) {
		m.write(1, 1)
		for n := range 4 {
			var frozen []byte
			v, image := copyOf(t, dir, m.dev, func() {
				var err error
				if frozen, err = os.ReadFile(m.backing); err != nil {
					t.Error(err)
				}
			})
			if err := v.Still(); err != nil {
				t.Fatal(err)
			}
			if i := firstDifference(image, frozen); i >= 0 {
				t.Fatalf("copy %d differs at %d, after %v", n, i, v.notes)
			}
			file := filepath.Join(filepath.Dir(m.backing), "image")
			if err := os.WriteFile(file, image, 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "e2fsck", "-fn", file)
			if err := errors.Join(v.Close(), os.Remove(file)); err != nil {
				t.Fatal(err)
			}
			t.Log(v.notes)
		}
	})
}

// D56: a database that is written to all the time is whole in every copy.
func TestDatabasesAreWholeInCopies(t *testing.T) {
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Skip("SKIPPED, this needs sqlite3: ", err)
	}
	dir := tracerDir(t)
	for _, kind := range []string{"ext4", "xfs"} {
		if kind != "ext4" && !long() {
			continue
		}
		size := map[string]int64{"ext4": 64 << 20, "xfs": 320 << 20}[kind]
		machineOf(t, kind, size, func(m *machine) {
			db := filepath.Join(m.dir, "db")
			run(t, "sqlite3", db, "create table t(k integer primary key, v blob);")
			m.writers.Go(func() {
				for i := 0; !m.stop.Load(); i++ {
					insert := fmt.Sprintf("pragma journal_mode=%s; insert into t(v) values(randomblob(20000)); delete from t where k %% 3 = %d;",
						[]string{"wal", "delete"}[i/8%2], i%3)
					if out, err := exec.Command("sqlite3", db, insert).CombinedOutput(); err != nil {
						t.Errorf("insert: %v: %s", err, out)
						return
					}
				}
			})
			for range rounds() {
				v, image := copyOf(t, dir, m.dev, nil)
				defer v.Close()
				if err := v.Still(); err != nil {
					t.Fatal(err)
				}
				m.whole(kind, image)
			}
		})
	}
}

// whole checks the filesystem of an image and the database in it.
func (m *machine) whole(kind string, image []byte) {
	m.t.Helper()
	file := filepath.Join(filepath.Dir(m.backing), "image")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		m.t.Fatal(err)
	}
	defer os.Remove(file)
	if kind == "ext4" {
		run(m.t, "e2fsck", "-fn", file)
	}
	there, err := os.MkdirTemp("", "platter-there-")
	if err != nil {
		m.t.Fatal(err)
	}
	defer os.Remove(there)
	options := map[string]string{"ext4": "loop", "xfs": "loop,nouuid"}[kind]
	run(m.t, "mount", "-o", options, file, there)
	out, err := exec.Command("sqlite3", filepath.Join(there, "db"), "pragma integrity_check;").CombinedOutput()
	run(m.t, "umount", there)
	if err != nil || string(out) != "ok\n" {
		m.t.Fatalf("the database in the image: %v: %s", err, out)
	}
	if kind == "xfs" {
		run(m.t, "xfs_repair", "-n", file)
	}
}

func long() bool { return os.Getenv("PLATTER_TEST_LONG") != "" }

// rounds is how many copies are made of a machine that is written to.
func rounds() int {
	if long() {
		return 20
	}
	return 1
}

func firstDifference(a, b []byte) int {
	if len(a) != len(b) {
		return 0
	}
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// D60: what is to be done around the moment is done before the filesystems are
// frozen and after they go on; if the first fails there is no copy.
func TestAroundTheFreeze(t *testing.T) {
	dir := tracerDir(t)
	machineOf(t, "ext4", 16<<20, func(m *machine) {
		d, err := block.Look(m.dev)
		if err != nil {
			t.Fatal(err)
		}
		// Whoever writes while they are frozen waits for ever here.
		write := func() error { return os.WriteFile(filepath.Join(m.dir, "flushed"), []byte("x"), 0o600) }
		broken := errors.New("broken")
		for _, fails := range []error{nil, broken} {
			taken, err := (&Provider{dir, 1 << 20, Method}).Take(t.Context(), d, snapshot.Options{
				Consumer: snapshot.Consumer{Repository: "r", Volume: "h/v"}, BlockSize: blockSize,
			})
			if err != nil {
				t.Fatal(err)
			}
			v := taken.(*view)
			defer v.Close()
			var story []string
			v.atRest = func() { story = append(story, "rest") }
			Around(taken, func(context.Context) error {
				story = append(story, "before")
				return errors.Join(write(), fails)
			}, func(_ context.Context, err error) {
				story = append(story, fmt.Sprint("after ", err == nil))
				if err := write(); err != nil {
					t.Error(err)
				}
			})
			var wrong error
			for last := false; !last && wrong == nil; {
				_, _, last, wrong = v.Pass(t.Context())
			}
			want := []string{"before", "rest", "after true"}
			if fails != nil {
				want = []string{"before", "after false"}
			}
			if !errors.Is(wrong, fails) || !slices.Equal(story, want) {
				t.Errorf("got %v, %v; want %v, %v", story, wrong, want, fails)
			}
		}
	})
}
