package dir_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"platter/image/store"
	"platter/image/store/crashfs"
	"platter/image/store/dir"
	"platter/image/store/storetest"
	"platter/image/store/vfs"
)

const root = "/srv/backup/repo"

func TestSuiteInMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s, err := dir.Create(root, crashfs.New())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// ledger remembers what was asked of a store and what it acknowledged.
type ledger struct {
	mu      sync.Mutex
	created bool
	objects map[string]*promise
}

type promise struct {
	data      []byte
	put, gone bool // acknowledged
	deleting  bool // asked for
}

func (l *ledger) put(s store.Store, name string, data []byte) error {
	l.mu.Lock()
	p := &promise{data: data}
	l.objects[name] = p
	l.mu.Unlock()
	// In two parts, so that a crash may come between.
	err := s.Put(context.Background(), name, data[:len(data)/3], data[len(data)/3:])
	l.mu.Lock()
	defer l.mu.Unlock()
	p.put = err == nil
	return err
}

func (l *ledger) delete(s store.Store, name string) error {
	l.mu.Lock()
	p := l.objects[name]
	p.deleting = true
	l.mu.Unlock()
	err := s.Delete(context.Background(), name)
	l.mu.Lock()
	defer l.mu.Unlock()
	p.gone = err == nil
	return err
}

// work makes a store and uses it in every way that changes anything.
func (l *ledger) work(fsys *crashfs.FS) error {
	s, err := dir.Create(root, fsys)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.created = true
	l.mu.Unlock()
	for i, name := range []string{"config", "segments/aa/1", "segments/aa/2", "segments/bb/3", "images/x/1"} {
		size := []int{300, 9000, 5000, 512, 700}[i]
		if err := l.put(s, name, storetest.Bytes(uint64(i), size)); err != nil {
			return err
		}
	}
	if err := l.put(s, "trash/segments/1", []byte("condemned")); err != nil {
		return err
	}
	if err := l.delete(s, "segments/aa/1"); err != nil {
		return err
	}
	if err := l.delete(s, "images/x/1"); err != nil {
		return err
	}
	return l.put(s, "images/x/2", storetest.Bytes(9, 6000))
}

// check compares the store after a crash with what was acknowledged.
func (l *ledger) check(after *crashfs.FS) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := dir.Open(root, after)
	if err != nil {
		if !l.created && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	ctx := context.Background()
	listed := make(map[string]int64)
	err = s.List(ctx, "", func(i store.Info) error {
		listed[i.Name] = i.Size
		return nil
	})
	if err != nil {
		return err
	}
	for name, p := range l.objects {
		size, there := listed[name]
		delete(listed, name)
		if there && size != int64(len(p.data)) {
			return fmt.Errorf("%s has %d bytes, put with %d", name, size, len(p.data))
		}
		if err := p.check(s, name, there); err != nil {
			return err
		}
	}
	for name := range listed {
		return fmt.Errorf("%s appeared and was never put", name)
	}
	return tidy(ctx, s, after)
}

func (p *promise) check(s store.Store, name string, there bool) error {
	got, err := s.Get(context.Background(), name, 1<<20)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if there {
			return fmt.Errorf("%s is listed and not found", name)
		}
		if p.put && !p.deleting {
			return fmt.Errorf("%s was acknowledged and is gone", name)
		}
		return nil
	case err != nil:
		return err
	case p.gone:
		return fmt.Errorf("%s was deleted for good and is back", name)
	case !bytes.Equal(got, p.data):
		return fmt.Errorf("%s holds other bytes than put", name)
	}
	return nil
}

// tidy shows that what is left of unfinished objects can be removed, and that
// the store takes new ones.
func tidy(ctx context.Context, s *dir.Store, after *crashfs.FS) error {
	after.Advance(25 * time.Hour)
	if _, err := s.RemoveTemps(ctx, 24*time.Hour); err != nil {
		return err
	}
	if n, err := s.RemoveTemps(ctx, 0); n != 0 || err != nil {
		return fmt.Errorf("second RemoveTemps: %d left, %w", n, err)
	}
	return s.Put(ctx, "segments/aa/after", []byte("the crash"))
}

func newLedger() *ledger { return &ledger{objects: make(map[string]*promise)} }

func TestCrashLeavesObjectsWholeOrAbsent(t *testing.T) {
	// D1, D2.
	fsys, l := crashfs.New(), newLedger()
	if err := fsys.Explore(1, 40, func() error { return l.work(fsys) }, l.check); err != nil {
		t.Error(err)
	}
	t.Logf("%d crash points", fsys.Ops()+1)
}

func TestCrashOfConcurrentPuts(t *testing.T) {
	fsys, l := crashfs.New(), newLedger()
	work := func() error {
		s, err := dir.Create(root, fsys)
		if err != nil {
			return err
		}
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for w := range errs {
			wg.Go(func() {
				for i := range 4 {
					name := fmt.Sprintf("segments/%d/%d", i, w)
					if err := l.put(s, name, storetest.Bytes(uint64(w), 3000+i)); err != nil {
						errs[w] = err
						return
					}
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	if err := fsys.Explore(2, 12, work, l.check); err != nil {
		t.Error(err)
	}
}

// The calls that follow a crash must fail and not hang, and leave the store as
// a crash does.
func TestWorkAfterCrashFails(t *testing.T) {
	whole := crashfs.New()
	if err := newLedger().work(whole); err != nil {
		t.Fatal(err)
	}
	for n := range whole.Ops() {
		fsys, l := crashfs.New(), newLedger()
		fsys.CrashAfter(n)
		if err := l.work(fsys); !errors.Is(err, crashfs.ErrCrashed) {
			t.Fatalf("crash after %d calls: got error %v", n, err)
		}
		for after := range fsys.States(3, 8) {
			if err := l.check(after); err != nil {
				t.Fatalf("crash after %d calls, %s: %v", n, after, err)
			}
		}
	}
}

// Every sync is needed: without any one of them some crash breaks a promise.
func TestEverySyncIsNeeded(t *testing.T) {
	// D2.
	whole := crashfs.New()
	if err := newLedger().work(whole); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []crashfs.Kind{crashfs.Sync, crashfs.SyncDir} {
		n := whole.Counts()[kind]
		if n < 7 {
			t.Errorf("only %d calls of %s", n, kind)
		}
		for nth := 1; nth <= n; nth++ {
			fsys, l := crashfs.New(), newLedger()
			fsys.Drop(kind, nth)
			if err := fsys.Explore(4, 8, func() error { return l.work(fsys) }, l.check); err == nil {
				t.Errorf("%s %d of %d can be left out and no crash shows it", kind, nth, n)
			}
		}
	}
}

// What one process lists, and so may build on, is not lost because the process
// that put it had not come to the end.
func TestListedObjectsAreDurable(t *testing.T) {
	fsys := crashfs.New()
	s, err := dir.Create(root, fsys)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := dir.Open(root, fsys)
	if err != nil {
		t.Fatal(err)
	}
	// The writer never syncs a directory.
	fsys.Drop(crashfs.SyncDir, 0)
	for i := range 3 {
		if err := s.Put(t.Context(), fmt.Sprintf("a/%d", i), []byte("1")); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(t.Context(), fmt.Sprintf("b%d/c/d", i), []byte("1")); err != nil {
			t.Fatal(err)
		}
	}
	fsys.Heal()
	seen := list(t, reader)
	if len(seen) != 6 {
		t.Fatalf("listed %q, want 6 objects", seen)
	}
	for after := range fsys.States(5, 20) {
		s, err := dir.Open(root, after)
		if err != nil {
			t.Fatal(err)
		}
		if got := list(t, s); !slices.Equal(got, seen) {
			t.Errorf("%s: listed %q before the crash, %q after it", after, seen, got)
		}
	}
}

func list(t *testing.T, s store.Store) []string {
	t.Helper()
	var names []string
	err := s.List(t.Context(), "", func(i store.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestFailedSyncIsNotDurable(t *testing.T) {
	// D4.
	for _, kind := range []crashfs.Kind{crashfs.Sync, crashfs.SyncDir} {
		whole := crashfs.New()
		if err := newLedger().work(whole); err != nil {
			t.Fatal(err)
		}
		for nth := 1; nth <= whole.Counts()[kind]; nth++ {
			fsys, l := crashfs.New(), newLedger()
			fsys.Fail(kind, nth, syscall.EIO)
			var err error
			check := func(after *crashfs.FS) error { return l.check(after) }
			if bad := fsys.Explore(6, 6, func() error { err = l.work(fsys); return nil }, check); bad != nil {
				t.Errorf("%s %d fails: %v", kind, nth, bad)
			}
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("%s %d fails: got error %v", kind, nth, err)
			}
			if l.created && !errors.Is(err, store.ErrNotDurable) {
				t.Errorf("%s %d fails: error %v is not ErrNotDurable", kind, nth, err)
			}
			noTemps(t, fsys)
		}
	}
}

func noTemps(t *testing.T, fsys *crashfs.FS) {
	t.Helper()
	s, err := dir.Open(root, fsys)
	if err != nil {
		return // not made yet
	}
	if n, err := s.RemoveTemps(t.Context(), -time.Hour); n != 0 || err != nil {
		t.Errorf("%d temporary files left, %v", n, err)
	}
}

// badClose is a file system whose files cannot be closed without an error.
type badClose struct{ vfs.FS }

func (b badClose) Create(path string, size int64) (vfs.File, error) {
	f, err := b.FS.Create(path, size)
	return badFile{f}, err
}

type badFile struct{ vfs.File }

func (badFile) Close() error { return syscall.EIO }

func TestErrorFromCloseCounts(t *testing.T) {
	// D4.
	fsys := crashfs.New()
	s, err := dir.Create(root, badClose{fsys})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a/b", []byte("x")); !errors.Is(err, syscall.EIO) || !errors.Is(err, store.ErrNotDurable) {
		t.Errorf("got %v, want EIO and ErrNotDurable", err)
	}
	noTemps(t, fsys)
	if got := list(t, s); len(got) > 0 {
		t.Errorf("%q left", got)
	}
}

func TestFullDisk(t *testing.T) {
	// D8.
	for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		for _, kind := range []crashfs.Kind{crashfs.Create, crashfs.Write, crashfs.Sync, crashfs.Mkdir, crashfs.Rename} {
			fsys := crashfs.New()
			s, err := dir.Create(root, fsys)
			if err != nil {
				t.Fatal(err)
			}
			fsys.Fail(kind, fsys.Counts()[kind]+1, errno)
			err = s.Put(t.Context(), "a/b", []byte("some"), []byte("more"))
			if !errors.Is(err, store.ErrFull) || !bytes.Contains([]byte(err.Error()), []byte(root)) {
				t.Errorf("%s fails with %v: got error %v, want ErrFull naming %s", kind, errno, err, root)
			}
			noTemps(t, fsys)
			if got := list(t, s); len(got) > 0 {
				t.Errorf("%s fails with %v: %q left", kind, errno, got)
			}
			if err := s.Put(t.Context(), "a/b", []byte("again")); err != nil {
				t.Errorf("put once there is space: %v", err)
			}
		}
	}
}

func TestEveryCallFailing(t *testing.T) {
	whole := crashfs.New()
	if err := newLedger().work(whole); err != nil {
		t.Fatal(err)
	}
	for kind, n := range whole.Counts() {
		for nth := 1; nth <= n; nth++ {
			fsys, l := crashfs.New(), newLedger()
			fsys.Fail(kind, nth, syscall.EIO)
			if err := l.work(fsys); !errors.Is(err, syscall.EIO) {
				t.Errorf("%s %d fails: got error %v", kind, nth, err)
			}
			for after := range fsys.States(7, 6) {
				if err := l.check(after); err != nil {
					t.Errorf("%s %d fails, %s: %v", kind, nth, after, err)
				}
			}
		}
	}
}

func TestCancelledPutLeavesNothing(t *testing.T) {
	fsys := crashfs.New()
	s, err := dir.Create(root, fsys)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	fsys.Watch(func(op crashfs.Op) {
		if op.Kind == crashfs.Write {
			cancel()
		}
	})
	err = s.Put(ctx, "a/b", []byte("first"), []byte("second"))
	if !errors.Is(err, context.Canceled) || fsys.Counts()[crashfs.Write] != 1 {
		t.Errorf("got %v after %d writes, want Canceled after 1", err, fsys.Counts()[crashfs.Write])
	}
	noTemps(t, fsys)
	if got := list(t, s); len(got) > 0 {
		t.Errorf("%q left", got)
	}
}
