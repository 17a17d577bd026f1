// Package crashfs is a file system in memory that can crash: it implements
// vfs.FS and keeps apart what programs see and what a power cut leaves.
//
// What it takes to be durable is what POSIX promises and no more:
//
//   - the bytes and the length of a file, by Sync of that file;
//   - a name in a directory, made, changed or removed, by SyncDir of that
//     directory; so a directory's own name by SyncDir of its parent.
//
// Everything else may or may not survive, each change for itself: bytes not
// synced may be there, be lost with the file's length, or be torn by sectors
// of 512 or 4096 bytes, the length there and zeros or junk in place of some.
// Only a rename is one change: a crash leaves one name or the other.
//
// Nothing here waits and nothing is random but by a seed, so that a test tries
// thousands of crashes in a second.
package crashfs

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"platter/image/store/vfs"
)

// ErrCrashed is what every call returns once the machine has crashed.
var ErrCrashed = errors.New("the machine has crashed")

// Kind is a kind of call that changes something.
type Kind string

// The calls that are counted, and can crash or fail. Calls that only read
// change nothing that a crash could leave otherwise.
const (
	Create  Kind = "create"
	Write   Kind = "write"
	Sync    Kind = "sync"
	Rename  Kind = "rename"
	Remove  Kind = "remove"
	Mkdir   Kind = "mkdir"
	SyncDir Kind = "sync directory"
)

// An Op is one call that changes something.
type Op struct {
	N    int // of all, from 1
	Kind Kind
	Nth  int    // of its kind, from 1
	Path string // the new name of a rename
}

// String returns what a test prints of a call.
func (o Op) String() string { return fmt.Sprintf("call %d (%s %d, %s)", o.N, o.Kind, o.Nth, o.Path) }

// An FS is a vfs.FS in memory, at first with an empty root directory. It is
// safe for concurrent use.
type FS struct {
	// op is held by each changing call from its count to its end.
	op    sync.Mutex
	watch func(Op)

	mu      sync.Mutex
	root    *node
	clock   time.Time
	state   string
	count   map[Kind]int
	total   int
	limit   int // calls before the crash; negative for none
	crashed bool
	free    int64 // bytes; negative for no bound
	drops   map[call]bool
	fails   map[call]error
}

var _ vfs.FS = (*FS)(nil)

// call names the nth call of a kind; 0 stands for all.
type call struct {
	kind Kind
	nth  int
}

// New returns an empty file system. Its clock starts at the beginning of 2026,
// moves on by a millisecond with each changing call and otherwise by Advance.
func New() *FS {
	return newFS(newDir(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), "new")
}

func newFS(root *node, clock time.Time, state string) *FS {
	return &FS{
		root: root, clock: clock, state: state, limit: -1, free: -1,
		count: make(map[Kind]int), drops: make(map[call]bool), fails: make(map[call]error),
	}
}

// String says which crash state f is.
func (f *FS) String() string { return f.state }

// Advance moves the clock by d, back if d is negative.
func (f *FS) Advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = f.clock.Add(d)
}

// Ops returns how many changing calls were made.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total
}

// Counts returns how many calls of each kind were made.
func (f *FS) Counts() map[Kind]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.count)
}

// CrashAfter lets n changing calls through, counted as Ops counts, those made
// already included: the next one and every call after it, reads too, return
// ErrCrashed and do nothing.
func (f *FS) CrashAfter(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limit = n
}

// Drop makes the nth call of a kind, 0 for all, succeed and do nothing. It is
// meant for Sync and SyncDir: a test that cannot tell has no need of the sync,
// or is no test.
func (f *FS) Drop(kind Kind, nth int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drops[call{kind, nth}] = true
}

// Heal ends what Drop and Fail began. What was lost stays lost.
func (f *FS) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.drops)
	clear(f.fails)
}

// Fail makes the nth call of a kind, 0 for all, return an error that wraps
// err. A failed Write has written half. A failed Sync or SyncDir has lost what
// it was to make durable: as with a real kernel, a later one that succeeds
// says nothing of it. Other calls do nothing.
func (f *FS) Fail(kind Kind, nth int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails[call{kind, nth}] = err
}

// SetFree bounds the space left to n bytes of file content; a Write past it
// fails with ENOSPC after writing what fits. Removing a file frees its bytes.
func (f *FS) SetFree(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = n
}

// Watch calls w before every changing call takes effect. No other changing
// call runs meanwhile, so that w may look at States, and it must make none.
func (f *FS) Watch(w func(Op)) {
	f.op.Lock()
	defer f.op.Unlock()
	f.watch = w
}

// verdict is what becomes of a changing call.
type verdict struct {
	drop bool
	err  error
}

// change runs do as one changing call, counted, watched and perhaps made to
// crash or fail. do holds f.mu.
func (f *FS) change(kind Kind, path string, do func(verdict) error) error {
	f.op.Lock()
	defer f.op.Unlock()
	if f.watch != nil {
		f.mu.Lock()
		op, over := f.next(kind, path), f.over()
		f.mu.Unlock()
		if !over {
			f.watch(op)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over() {
		f.crashed = true
		return pathError(kind, path, ErrCrashed)
	}
	op := f.next(kind, path)
	f.total, f.count[kind] = op.N, op.Nth
	f.clock = f.clock.Add(time.Millisecond)
	if err := do(f.verdict(op)); err != nil {
		return pathError(kind, path, err)
	}
	return nil
}

func (f *FS) next(kind Kind, path string) Op {
	return Op{N: f.total + 1, Kind: kind, Nth: f.count[kind] + 1, Path: path}
}

func (f *FS) over() bool { return f.crashed || f.limit >= 0 && f.total >= f.limit }

func (f *FS) verdict(op Op) verdict {
	all, one := call{op.Kind, 0}, call{op.Kind, op.Nth}
	v := verdict{drop: f.drops[all] || f.drops[one], err: f.fails[one]}
	if v.err == nil {
		v.err = f.fails[all]
	}
	return v
}

// Explore calls work, and check for the file systems that a crash may leave:
// at most k at each point between two changing calls of work, the first and
// the last included. work and check share what the caller knows to have been
// acknowledged so far. It returns the first error of either, saying where.
func (f *FS) Explore(seed uint64, k int, work func() error, check func(after *FS) error) error {
	var bad error
	at := func(point string, n int) {
		for after := range f.States(seed+uint64(n)*1000003, k) {
			if bad != nil {
				return
			}
			if err := check(after); err != nil {
				bad = fmt.Errorf("crash %s, %s, seed %d: %w", point, after, seed, err)
			}
		}
	}
	f.Watch(func(op Op) { at("before "+op.String(), op.N) })
	err := work()
	f.Watch(nil)
	at("at the end", f.Ops()+1)
	if bad != nil {
		return bad
	}
	return err
}
