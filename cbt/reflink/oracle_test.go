package reflink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/snapshot"
	"platter/block/snapshot/reflink"
	"platter/cbt"
	"platter/vmtests/loop"
)

// TestMain makes this program one that can be killed in the middle of a run.
func TestMain(m *testing.M) {
	if path := os.Getenv("PLATTER_TEST_REFLINK"); path != "" {
		dieAfter(path, os.Getenv("PLATTER_TEST_CONSUMER"), os.Getenv("PLATTER_TEST_STEP"))
	}
	os.Exit(m.Run())
}

// dieAfter goes through a run and kills its process after a step.
func dieAfter(path, consumer, step string) {
	die := func(at string, err error) {
		if err != nil {
			fmt.Println(at, err)
			os.Exit(1)
		}
		if at == step {
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	}
	ctx := context.Background()
	t, err := open(ctx, path, consumer, reflink.BatchExtents)
	die("open", err)
	g, err := t.Mark(ctx)
	die("mark", err)
	die("commit", t.Commit(ctx, g))
	die("close", t.view.Close())
	os.Exit(0)
}

// A world is a file, its consumers, and what they know.
type world struct {
	t      *testing.T
	random *rand.Rand
	path   string
	flaw   func(w *world, t *tracker) cbt.Tracker // nil for none
	images map[string]*taken                      // by consumer

	tracked, lost, changed, killed int
}

// taken is what a consumer's last image was.
type taken struct {
	generation cbt.Generation
	content    []byte
	doubt      bool // something happened since that may end the history
	unkept     bool // its run died before it could keep its copy
}

const fileBytes = 2 << 20

func newWorld(t *testing.T, dir string, seed uint64) *world {
	w := &world{t: t, random: rand.New(rand.NewPCG(seed, 11)), path: filepath.Join(dir, snapshot.NewID(), "disk"), images: map[string]*taken{}}
	err := os.Mkdir(filepath.Dir(w.path), 0o700)
	if err == nil {
		err = os.WriteFile(w.path, w.bytes(fileBytes), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) bytes(n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.random.Uint32())
	}
	return p
}

// extent draws one: mostly short, at times at the edge of something.
func (w *world) extent(size int64) block.Extent {
	length := 1 + w.random.Int64N(min(size, []int64{1, 512, 4096, 70_000, size}[w.random.IntN(5)]))
	off := w.random.Int64N(size - length + 1)
	if w.random.IntN(2) == 0 {
		off = off / 4096 * 4096
	}
	return block.Extent{Offset: off, Length: length}
}

// change does one of the things that happen to files.
func (w *world) change() error {
	f, err := os.OpenFile(w.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	e := w.extent(info.Size())
	switch w.random.IntN(12) {
	case 0:
		return w.direct(e)
	case 1:
		return w.mapped(f, e, info.Size())
	case 2:
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, e.Offset, e.Length)
	case 3, 4:
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Offset, e.Length)
	case 5:
		return f.Truncate((fileBytes/2 + w.random.Int64N(fileBytes)) / 512 * 512)
	case 6: // there and back
		return errors.Join(f.Truncate(info.Size()/2), f.Truncate(info.Size()))
	case 7: // one part of it put in place of another
		const unit = 65536
		n := info.Size() / unit
		from := w.random.Int64N(n)
		to := (from + 1 + w.random.Int64N(n-1)) % n
		return unix.IoctlFileCloneRange(int(f.Fd()), &unix.FileCloneRange{
			Src_fd: int64(f.Fd()), Src_offset: uint64(from * unit), Src_length: unit, Dest_offset: uint64(to * unit),
		})
	case 8:
		return w.revert(f)
	case 9: // zeros, written
		_, err = f.WriteAt(make([]byte, e.Length), e.Offset)
		return err
	}
	_, err = f.WriteAt(w.bytes(e.Length), e.Offset)
	return err
}

func (w *world) direct(e block.Extent) error {
	f, err := os.OpenFile(w.path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := block.AllocAligned(4096 * int(1+e.Length/65536))
	if err != nil {
		return err
	}
	defer block.FreeAligned(p)
	copy(p, w.bytes(int64(len(p))))
	_, err = f.WriteAt(p, e.Offset/4096*4096)
	return err
}

func (w *world) mapped(f *os.File, e block.Extent, size int64) error {
	p, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	p[e.Offset] ^= byte(1 + w.random.IntN(255))
	p[e.End()-1] ^= byte(1 + w.random.IntN(255))
	return unix.Munmap(p)
}

// revert makes the file what one of its snapshots is: in place, or as another
// file under its name.
func (w *world) revert(f *os.File) error {
	all, err := w.copies()
	if err != nil || len(all) == 0 {
		return err
	}
	src, err := os.Open(all[w.random.IntN(len(all))].Name)
	if err != nil {
		return err
	}
	defer src.Close()
	if w.random.IntN(2) == 0 {
		info, err := src.Stat()
		if err != nil {
			return err
		}
		return errors.Join(f.Truncate(info.Size()), unix.IoctlFileClone(int(f.Fd()), int(src.Fd())))
	}
	other, err := os.Create(w.path + ".new")
	if err != nil {
		return err
	}
	defer other.Close()
	return errors.Join(unix.IoctlFileClone(int(other.Fd()), int(src.Fd())), os.Rename(other.Name(), w.path))
}

func (w *world) copies() ([]snapshot.Snapshot, error) {
	d, err := block.Look(w.path)
	if err != nil {
		return nil, err
	}
	return reflink.New().Snapshots(w.t.Context(), d)
}

// upheaval does what ends histories: somebody writes to a kept copy, or removes
// it.
func (w *world) upheaval() error {
	all, err := w.copies()
	if err != nil || len(all) == 0 || w.random.IntN(25) > 0 {
		return err
	}
	for _, was := range w.images {
		was.doubt = true
	}
	name := all[w.random.IntN(len(all))].Name
	if w.random.IntN(2) == 0 {
		return os.Remove(name)
	}
	now, err := os.ReadFile(w.path)
	if err != nil {
		return err
	}
	// With what is in the file now, so that the two look the same from then on.
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	src, err := os.Open(w.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(int64(len(now))), unix.IoctlFileClone(int(f.Fd()), int(src.Fd())), src.Close(), f.Close())
}

// kill has a process of a run of the consumer die after a step.
func (w *world) kill(consumer string) error {
	step := []string{"open", "mark", "commit", "close"}[w.random.IntN(4)]
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PLATTER_TEST_REFLINK="+w.path, "PLATTER_TEST_CONSUMER="+consumer, "PLATTER_TEST_STEP="+step)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Exited() {
		return fmt.Errorf("a run that should die: %w: %s", err, out)
	}
	w.killed++
	if was := w.images[consumer]; was != nil && (step == "commit" || step == "close") {
		was.doubt = true // it said that it has an image of later
	}
	return nil
}

// round changes the file, makes an image for a consumer, and compares. An error
// is what the tracker did wrong.
func (w *world) round() error {
	for range w.random.IntN(5) {
		if err := w.change(); err != nil {
			w.t.Fatal(err)
		}
	}
	consumer := []string{"a", "b"}[w.random.IntN(2)]
	if err := w.upheaval(); err != nil {
		w.t.Fatal(err)
	}
	// A copy that nobody kept is a leftover to other consumers.
	for other, was := range w.images {
		was.doubt = was.doubt || other != consumer && was.unkept
	}
	if w.random.IntN(8) == 0 {
		if err := errors.Join(w.kill(consumer), w.change()); err != nil {
			w.t.Fatal(err)
		}
	}
	t, err := w.open(consumer)
	if err != nil {
		return err
	}
	defer t.view.Source.Close()
	return w.image(consumer, t)
}

// open begins a run: leftovers go, and the view is taken.
func (w *world) open(consumer string) (*tracker, error) {
	d, err := block.Look(w.path)
	if err != nil {
		return nil, err
	}
	base := ""
	if was := w.images[consumer]; was != nil {
		base = New().Base(was.generation)
	}
	c := snapshot.Consumer{Repository: consumer, Volume: "host/disk"}
	if _, err := snapshot.Clean(w.t.Context(), reflink.New(), d, c, base); err != nil {
		return nil, err
	}
	return open(w.t.Context(), w.path, consumer, uint32(1+w.random.IntN(5)))
}

func (w *world) image(consumer string, t *tracker) error {
	tracker := cbt.Tracker(t)
	if w.flaw != nil {
		tracker = w.flaw(w, t)
	}
	now, err := os.ReadFile(w.path)
	if err != nil {
		return err
	}
	if view, err := os.ReadFile(t.view.Path()); err != nil || !bytes.Equal(view, now) {
		return fmt.Errorf("the view is not the file: %w", err)
	}
	if w.random.IntN(3) == 0 { // while the image is made
		if err := w.change(); err != nil {
			w.t.Fatal(err)
		}
	}
	g, err := tracker.Mark(w.t.Context())
	if err != nil {
		return err
	}
	if was := w.images[consumer]; was != nil {
		if err := w.compare(tracker, was, now); err != nil {
			return err
		}
	}
	next := &taken{generation: g, content: now}
	switch w.random.IntN(6) {
	case 0: // it fails: there is no image
		return t.view.Close()
	case 1: // it dies when the manifest is durable, and before it can say so
		next.unkept = true
	default:
		if err := tracker.Commit(w.t.Context(), g); err != nil {
			return err
		}
	}
	w.images[consumer] = next
	return nil
}

func (w *world) compare(t cbt.Tracker, was *taken, now []byte) error {
	set, err := t.Changed(w.t.Context(), was.generation)
	if errors.Is(err, cbt.ErrHistoryLost) {
		if w.lost++; !was.doubt {
			return fmt.Errorf("the history is lost, and nothing happened to it: %w", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	w.tracked++
	for off := 0; off < len(now); off += 512 {
		end := min(off+512, len(now))
		if end <= len(was.content) && bytes.Equal(was.content[off:end], now[off:end]) {
			continue
		}
		w.changed++
		if !set.Contains(block.Extent{Offset: int64(off), Length: 512}) {
			return fmt.Errorf("missed: the sector at %d differs, and is not in the set", off)
		}
	}
	return nil
}

// inMemory has the files below loop devices where no disk is waited for.
func inMemory(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err == nil {
		t.Setenv("TMPDIR", "/dev/shm")
	}
}

// D12, D14: rounds of everything that happens to a file, each image compared
// with it byte for byte: nothing is missed. With PLATTER_TEST_LONG=1 they are a
// thousand on each filesystem.
func TestOracleMissesNothing(t *testing.T) {
	inMemory(t)
	seeds, rounds := uint64(1), 25
	if os.Getenv("PLATTER_TEST_LONG") != "" {
		seeds, rounds = 20, 50
	}
	for name, mkfs := range filesystems() {
		t.Run(name, func(t *testing.T) {
			dir := loop.Filesystem(t, fsSize, mkfs...)
			var all world
			for seed := range seeds {
				w := newWorld(t, dir, seed)
				for n := range rounds {
					if err := w.round(); err != nil {
						t.Fatalf("seed %d, round %d: %v", seed, n, err)
					}
				}
				all.tracked, all.lost, all.changed, all.killed = all.tracked+w.tracked, all.lost+w.lost, all.changed+w.changed, all.killed+w.killed
				if err := os.RemoveAll(filepath.Dir(w.path)); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d rounds: %d tracked, %d with the history lost, %d changed sectors, %d killed, none missed",
				int(seeds)*rounds, all.tracked, all.lost, all.changed, all.killed)
			if all.tracked < int(seeds)*rounds/2 {
				t.Errorf("only %d rounds of %d were tracked", all.tracked, int(seeds)*rounds)
			}
		})
	}
}

// altered gives another set than the tracker's.
type altered struct {
	*tracker
	alter func(set *cbt.Set, since cbt.Generation) *cbt.Set
}

func (a *altered) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	set, err := a.tracker.Changed(ctx, since)
	if err == nil {
		set = a.alter(set, since)
	}
	return set, err
}

// each makes a flaw of what becomes of each extent of a set.
func each(change func(w *world, e block.Extent) block.Extent) func(*world, *tracker) cbt.Tracker {
	return func(w *world, t *tracker) cbt.Tracker {
		return &altered{t, func(set *cbt.Set, _ cbt.Generation) *cbt.Set {
			other := cbt.NewSet(set.Size())
			for e, ok := set.Next(0); ok; e, ok = set.Next(e.End()) {
				other.Add(change(w, e))
			}
			return other
		}}
	}
}

// late marks what the file is by then, and not the view.
type late struct {
	*tracker
	w *world
}

func (l *late) Mark(ctx context.Context) (cbt.Generation, error) {
	later, err := open(ctx, l.w.path, "b", reflink.BatchExtents)
	if err != nil {
		return nil, err
	}
	l.w.t.Cleanup(func() { later.view.Source.Close() })
	l.tracker.view = later.view
	return l.tracker.Mark(ctx)
}

// sized takes the size of the copy that a generation names.
func sized(since cbt.Generation) (n int64) {
	for _, b := range since[18:26] {
		n = n<<8 | int64(b)
	}
	return n
}

// credulous takes a copy for what it was, whatever it is now; gullible any.
type credulous struct {
	*tracker
	any bool
}

func (c *credulous) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	all, err := reflink.New().Snapshots(ctx, c.view.Device())
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.ID == (opener{}).Base(since) || c.any && s.ID != c.view.ID() {
			f, err := os.Open(s.Name)
			if err != nil {
				return nil, err
			}
			now, err := generation(s.ID, f)
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, err
			}
			return c.tracker.Changed(ctx, now)
		}
	}
	return c.tracker.Changed(ctx, since)
}

// greedy gives up what other consumers need.
type greedy struct{ *tracker }

func (g *greedy) Commit(ctx context.Context, at cbt.Generation) error {
	all, err := reflink.New().Snapshots(ctx, g.view.Device())
	for _, s := range all {
		if s.ID != g.view.ID() {
			err = errors.Join(err, reflink.New().Remove(ctx, s))
		}
	}
	return errors.Join(err, g.tracker.Commit(ctx, at))
}

// D12: a tracker that is wrong anywhere is caught.
func TestOracleCatchesFlawedTrackers(t *testing.T) {
	inMemory(t)
	const unit, coarse = 4096, 65536
	yesterday := map[*world]*cbt.Set{}
	flaws := map[string]func(*world, *tracker) cbt.Tracker{
		"ends a unit early":   each(func(_ *world, e block.Extent) block.Extent { e.Length -= unit; return e }),
		"begins a unit late":  each(func(_ *world, e block.Extent) block.Extent { e.Offset += unit; e.Length -= unit; return e }),
		"is a unit aside":     each(func(_ *world, e block.Extent) block.Extent { e.Offset += unit; return e }),
		"rounds inward":       each(func(_ *world, e block.Extent) block.Extent { return inward(e, coarse) }),
		"loses one at random": each(func(w *world, e block.Extent) block.Extent { e.Length *= int64(min(1, w.random.IntN(4))); return e }),
		"stops at 1 MiB": each(func(_ *world, e block.Extent) block.Extent {
			e.Length = min(e.Length, max(0, 1<<20-e.Offset))
			return e
		}),
		"ignores zeroes": func(w *world, t *tracker) cbt.Tracker {
			view, err := os.ReadFile(t.view.Path())
			if err != nil {
				w.t.Fatal(err)
			}
			return each(func(_ *world, e block.Extent) block.Extent {
				if len(bytes.Trim(view[e.Offset:e.End()], "\x00")) == 0 {
					e.Length = 0
				}
				return e
			})(w, t)
		},
		"ignores growth": func(_ *world, t *tracker) cbt.Tracker {
			return &altered{t, func(set *cbt.Set, since cbt.Generation) *cbt.Set {
				other := cbt.NewSet(set.Size())
				for e, ok := set.Next(0); ok; e, ok = set.Next(e.End()) {
					other.Add(block.Extent{Offset: e.Offset, Length: min(e.Length, sized(since)-e.Offset)})
				}
				return other
			}}
		},
		"answers as yesterday": func(w *world, t *tracker) cbt.Tracker {
			return &altered{t, func(set *cbt.Set, _ cbt.Generation) *cbt.Set {
				was := yesterday[w]
				yesterday[w] = set
				if was == nil || was.Size() != set.Size() {
					return set
				}
				return was
			}}
		},
		"marks later than the view":  func(w *world, t *tracker) cbt.Tracker { return &late{t, w} },
		"trusts a changed copy":      func(_ *world, t *tracker) cbt.Tracker { return &credulous{t, false} },
		"takes any copy for its own": func(_ *world, t *tracker) cbt.Tracker { return &credulous{t, true} },
		"takes from others":          func(_ *world, t *tracker) cbt.Tracker { return &greedy{t} },
	}
	dir := loop.Filesystem(t, fsSize, filesystems()["xfs"]...)
	names := []string{}
	for name := range flaws {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, dir, 7)
			w.flaw = flaws[name]
			for n := range 200 {
				if err := w.round(); err != nil {
					t.Logf("round %d: %v", n, err)
					return
				}
			}
			t.Error("200 rounds, and it is not caught")
		})
	}
}

// inward returns the whole units of an extent.
func inward(e block.Extent, unit int64) block.Extent {
	from, to := (e.Offset+unit-1)/unit*unit, e.End()/unit*unit
	return block.Extent{Offset: from, Length: max(0, to-from)}
}
