package catalog

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"platter/image"
)

func memOptions(fs vfs.FS) Options {
	return Options{Dir: "/catalog", Repository: [16]byte{1, 2, 3}, BlockSize: 65536, Memory: MinMemory, FS: fs}
}

// A story is what happens to a catalog until a fault ends it. It remembers
// what was promised to survive.
type story struct {
	repo  *fakeRepo
	acked []image.SegmentID // added, and Add returned
}

// tell makes a catalog, adds, drops, synchronizes and rebuilds. Errors end it.
func (s *story) tell(ctx context.Context, opts Options) error {
	c, err := Open(ctx, opts)
	if err != nil {
		return err
	}
	err = s.fill(ctx, c)
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	c, _, err = Rebuild(ctx, opts, s.repo, nil)
	if err != nil {
		return err
	}
	return c.Close()
}

func (s *story) fill(ctx context.Context, c *Catalog) error {
	for _, f := range s.repo.segments[:4] {
		if err := c.AddSegment(ctx, f, source(s.repo.pages[f.ID])); err != nil {
			return err
		}
		s.acked = append(s.acked, f.ID)
	}
	if err := c.MarkDamaged(ctx, testID(3), at(1, 2)); err != nil {
		return err
	}
	gone := s.acked[0]
	s.acked = s.acked[1:] // from here on it may be there or not
	if err := c.DropSegments(ctx, []image.SegmentID{gone}); err != nil {
		return err
	}
	if _, err := c.Sync(ctx, s.repo, nil); err != nil {
		return err
	}
	for _, f := range s.repo.segments {
		s.acked = append(s.acked, f.ID)
	}
	return nil
}

// storyRepo has a segment of pages large enough to be written in parts, and
// enough segments for a round.
func storyRepo() *fakeRepo {
	repo := smallRepo()
	var ids []int
	for i := range 250 {
		ids = append(ids, 20000+i)
	}
	f, pages := testPages(11, ids...)
	repo.add(f, pages)
	for i := range bulkFloor {
		repo.add(testFooter(1000+i, i), nil)
	}
	return repo
}

// check opens what is left, and expects all that was promised, and nothing
// that is not so.
func (s *story) check(t *testing.T, opts Options) {
	t.Helper()
	c, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, c)
	for _, id := range s.acked {
		if _, err := c.segment(id); err != nil {
			t.Errorf("segment %v was added: %v", id, err)
		}
	}
	s.checkAnswers(t, c)
	mustSync(t, c, s.repo)
	mustCheck(t, c, s.repo)
}

// checkAnswers asks for every block there is: each answer must be true.
func (s *story) checkAnswers(t *testing.T, c *Catalog) {
	t.Helper()
	known := map[image.SegmentID]bool{}
	if err := c.Segments(t.Context(), func(i SegmentInfo) error { known[i.ID] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.repo.segments {
		ids := make([]image.ID, len(f.Records))
		for i := range f.Records {
			ids[i] = f.Records[i].ID
		}
		found := make([]image.Location, len(ids))
		if err := c.Lookup(t.Context(), ids, found); err != nil {
			t.Fatal(err)
		}
		for i, at := range found {
			if err := s.truth(ids[i], at, known); err != nil {
				t.Errorf("block %v: %v", ids[i], err)
			}
		}
	}
}

func (s *story) truth(id image.ID, at image.Location, known map[image.SegmentID]bool) error {
	if at.IsZero() {
		return nil
	}
	f, err := s.repo.Footer(context.Background(), at.Segment)
	if err != nil {
		return err
	}
	if int(at.Record) >= len(f.Records) || f.Records[at.Record].ID != id {
		return errors.New("is not at " + at.String())
	}
	if !known[at.Segment] {
		return errors.New("is in the unknown segment of " + at.String())
	}
	return nil
}

// writes reports whether an operation changes a file system.
func writes(op errorfs.Op) bool {
	return op.Kind.ReadOrWrite() == errorfs.OpIsWrite
}

func TestCrashAtEveryWriteLeavesAGoodCatalog(t *testing.T) {
	total := 0
	count := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if writes(op) {
			total++
		}
		return nil
	})
	serial := &locked{inner: count}
	s := &story{repo: storyRepo()}
	if err := s.tell(t.Context(), memOptions(errorfs.Wrap(vfs.NewCrashableMem(), serial))); err != nil {
		t.Fatal(err)
	}
	step := 1
	if !long() {
		step = total/25 + 1
	}
	for at := step / 2; at < total; at += step {
		crashAt(t, at)
		if t.Failed() {
			t.Fatalf("crash before write %d of %d", at, total)
		}
	}
}

// locked serializes an injector: Pebble writes from several goroutines.
type locked struct {
	sync.Mutex
	inner errorfs.Injector
}

func (l *locked) MaybeError(op errorfs.Op) error {
	l.Lock()
	defer l.Unlock()
	return l.inner.MaybeError(op)
}

func (l *locked) String() string { return "locked" }

// crashAt stops the machine before a write, with some of what was not synced
// lost, and looks at what is left.
func crashAt(t *testing.T, n int) {
	t.Helper()
	mem := vfs.NewCrashableMem()
	s := &story{repo: storyRepo()}
	var left *vfs.MemFS
	var then story
	crash := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if left != nil {
			return nil
		}
		if writes(op) {
			n--
		}
		if n < 0 {
			then = *s
			left = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(uint64(n), 1))})
		}
		return nil
	})
	serial := &locked{inner: crash}
	if err := s.tell(t.Context(), memOptions(errorfs.Wrap(mem, serial))); err != nil {
		t.Fatal(err)
	}
	if left == nil {
		return // this run had fewer writes
	}
	then.check(t, memOptions(left))
}

// long says whether to try everything, as PLATTER_TEST_LONG asks for: it takes
// minutes.
func long() bool { return os.Getenv("PLATTER_TEST_LONG") != "" }

func TestFullDiskFailsCleanly(t *testing.T) {
	step := 1
	if !long() {
		step = 37
	}
	for n := 0; ; n += step {
		mem := vfs.NewMem()
		s := &story{repo: storyRepo()}
		left := n
		full := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !takesSpace(op) {
				return nil
			}
			if left--; left < 0 {
				return syscall.ENOSPC
			}
			return nil
		})
		err := s.tell(t.Context(), memOptions(errorfs.Wrap(mem, &locked{inner: full})))
		if left >= 0 {
			if err != nil {
				t.Fatalf("with room for all: %v", err)
			}
			break
		}
		if err == nil {
			continue // a write that is only tried, like removing what is obsolete
		}
		if !strings.Contains(err.Error(), "no space left") && !errors.Is(err, ErrFailed) {
			t.Errorf("room for %d writes: %v", n, err)
		}
		s.check(t, memOptions(mem))
		if t.Failed() {
			t.Fatalf("room for %d writes", n)
		}
	}
}

func takesSpace(op errorfs.Op) bool {
	switch op.Kind {
	case errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpLink, errorfs.OpMkdirAll, errorfs.OpFilePreallocate:
		return true
	}
	return false
}

func TestLittleSpaceRefusesOneCallOnly(t *testing.T) {
	mem := vfs.NewMem()
	c := mustOpen(t, memOptions(mem))
	defer mustClose(t, c)
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 20})
	if err := c.AddSegment(t.Context(), testFooter(1, 1), nil); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want ENOSPC", err)
	}
	if got := lookup(t, c, 1)[0]; !got.IsZero() {
		t.Errorf("block of a segment that was refused is at %v", got)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 40})
	mustAdd(t, c, testFooter(1, 1), nil)
	if got := lookup(t, c, 1)[0]; got != at(1, 0) {
		t.Errorf("block is at %v once there is room", got)
	}
}

func TestFailedSyncFailsTheCatalog(t *testing.T) {
	mem := vfs.NewMem()
	broken := false
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo) {
			return syscall.EIO
		}
		return nil
	})
	serial := &locked{inner: inject}
	c := mustOpen(t, memOptions(errorfs.Wrap(mem, serial)))
	mustAdd(t, c, testFooter(1, 1), nil)
	serial.Lock()
	broken = true
	serial.Unlock()
	if err := c.AddSegment(t.Context(), testFooter(2, 2), nil); !errors.Is(err, ErrFailed) {
		t.Fatalf("got %v, want ErrFailed", err)
	}
	for name, err := range map[string]error{
		"add":      c.AddSegment(t.Context(), testFooter(3, 3), nil),
		"lookup":   c.Lookup(t.Context(), []image.ID{testID(1)}, make([]image.Location, 1)),
		"segments": c.Segments(t.Context(), func(SegmentInfo) error { return nil }),
		"close":    c.Close(),
	} {
		if !errors.Is(err, ErrFailed) {
			t.Errorf("%s after a failure: %v, want ErrFailed", name, err)
		}
	}
	c = mustOpen(t, memOptions(mem))
	defer mustClose(t, c)
	if got := lookup(t, c, 1)[0]; got != at(1, 0) {
		t.Errorf("what was added before is at %v", got)
	}
}
