// Package catalog is what we have: an index over one repository of where each
// block and map page is stored, of map pages' contents, and of manifests.
//
// It is a cache. All of it can be made again from the repository (Rebuild),
// and it is never the only copy of anything. What it says may be older than
// the repository; callers check the content of every block they read anyway.
//
// One process at a time holds a catalog. A Catalog is safe for concurrent use.
package catalog

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"platter/image"
)

// Errors that callers decide on.
var (
	// ErrNotFound means that the catalog knows nothing under a name or ID.
	ErrNotFound = errors.New("not in the catalog")
	// ErrLocked means that another process holds the catalog.
	ErrLocked = errors.New("catalog is locked")
	// ErrForeign means that the catalog belongs to another repository.
	ErrForeign = errors.New("catalog of another repository")
	// ErrNewer means that a newer platter made the catalog.
	ErrNewer = errors.New("catalog made by a newer platter")
	// ErrDamaged means that the catalog's own files are damaged. Nothing is
	// lost by it: Rebuild makes a new one from the repository.
	ErrDamaged = errors.New("catalog is damaged")
	// ErrFailed means that a write to the catalog's files failed, and that
	// this Catalog does nothing more. Opening it again may help.
	ErrFailed = errors.New("catalog failed")
)

// Bounds of Options.Memory, in bytes.
const (
	MinMemory     = 16 << 20
	DefaultMemory = 64 << 20
)

// Options say which catalog to open and what it may use.
type Options struct {
	// Dir is the catalog's directory. It is made (0700) when missing.
	Dir string
	// Repository is the ID of the repository that the catalog is of.
	Repository [16]byte
	// BlockSize of the repository, in bytes.
	BlockSize int
	// Memory bounds what the catalog keeps in memory, in bytes: caches, write
	// buffers and filters together. 0 means DefaultMemory; less than
	// MinMemory is taken as that. Garbage of the runtime comes on top.
	Memory int64
	// LockWait is how long to wait for another process to let the catalog go.
	LockWait time.Duration
	// Waiting is called when that wait begins, with the number of the process
	// or "unknown"; it may be nil.
	Waiting func(process string)

	// FS holds the directory; nil for the machine's. Tests put a model here.
	FS vfs.FS
	// Timeless is for tests in which years pass in no time: the index has no
	// clock that ticks.
	Timeless bool
}

// A Catalog is an open catalog.
type Catalog struct {
	opts     Options
	dir      *directory
	db       *pebble.DB
	state    *failure
	segments *segmentIndex // what the lookup of blocks keeps in memory

	tableOptions sstable.WriterOptions

	write  turn   // of whoever changes segments
	totals totals // guarded by write
	keys   atomic.Int64
}

// Open opens the catalog in opts.Dir, and makes an empty one when there is
// none. The catalog may be older than the repository: call Sync before relying
// on it. Errors wrap ErrLocked, ErrForeign, ErrNewer or ErrDamaged.
func Open(ctx context.Context, opts Options) (*Catalog, error) {
	opts = opts.withDefaults()
	dir, err := openDirectory(ctx, opts)
	if err != nil {
		return nil, err
	}
	c, err := openIn(dir, opts)
	if err != nil {
		return nil, errors.Join(err, dir.close())
	}
	return c, nil
}

func openIn(dir *directory, opts Options) (*Catalog, error) {
	head, err := dir.head()
	if errors.Is(err, ErrNotFound) {
		return create(dir, opts)
	}
	if err != nil {
		return nil, err
	}
	if err := head.check(opts); err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", opts.Dir, err)
	}
	if err := dir.clean(head.index); err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", opts.Dir, err)
	}
	return load(dir, opts, head, false)
}

// create makes an empty catalog in a directory that holds none.
func create(dir *directory, opts Options) (*Catalog, error) {
	head, err := dir.begin(opts)
	if err != nil {
		return nil, fmt.Errorf("create catalog %s: %w", opts.Dir, err)
	}
	c, err := load(dir, opts, head, true)
	if err != nil {
		return nil, err
	}
	// The head goes last: until it is durable there is no catalog here.
	if err := dir.setHead(head); err != nil {
		return nil, errors.Join(fmt.Errorf("create catalog %s: %w", opts.Dir, err), c.db.Close())
	}
	return c, nil
}

// load opens the index that head names.
func load(dir *directory, opts Options, head head, fresh bool) (*Catalog, error) {
	c := &Catalog{opts: opts, dir: dir, state: &failure{dir: opts.Dir}, write: newTurn()}
	o, release := indexOptions(dir, opts, c.state, fresh)
	defer release()
	c.tableOptions = o.MakeWriterOptions(0, o.FormatMajorVersion.MaxTableFormat())
	db, err := openIndex(dir, opts, head.index, c.state, o)
	if err != nil {
		return nil, err
	}
	c.db = db
	c.segments = newSegmentIndex(opts.Memory, filterFile{dir, head.instance})
	if err := c.recover(); err != nil {
		return nil, errors.Join(c.state.wrap("open", err), db.Close())
	}
	return c, nil
}

// recover reads what is kept in memory, and finishes what a crash interrupted.
func (c *Catalog) recover() error {
	if err := c.loadTotals(); err != nil {
		return err
	}
	if err := c.loadDamage(); err != nil {
		return err
	}
	return c.abandonUnfinished()
}

// Close writes what is worth keeping and lets the catalog go. After a failure
// it returns that failure.
func (c *Catalog) Close() error {
	failed := c.state.get()
	next := c.next()
	err := c.db.Close()
	if failed == nil && err == nil {
		// The filter goes last: it vouches for segments that are durable by now.
		err = c.segments.saveFilter(next)
	}
	if failed != nil {
		err = failed
	} else if err != nil {
		err = c.state.wrap("close", err)
	}
	return errors.Join(err, c.dir.close())
}

func (o Options) withDefaults() Options {
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	o.Memory = max(o.Memory, MinMemory)
	return o
}

// check compares the catalog found with the one wanted.
func (h head) check(opts Options) error {
	if h.repository != opts.Repository {
		return fmt.Errorf("%w: it belongs to repository %s, not to %s: name another directory with --catalog, or remove this one",
			ErrForeign, hex.EncodeToString(h.repository[:]), hex.EncodeToString(opts.Repository[:]))
	}
	if h.blockSize != opts.BlockSize {
		return fmt.Errorf("%w: it is for blocks of %d bytes, the repository's have %d: run platter catalog rebuild",
			ErrDamaged, h.blockSize, opts.BlockSize)
	}
	return nil
}

// compareSegments orders segments as their object names do.
func compareSegments(a, b image.SegmentID) int { return bytes.Compare(a[:], b[:]) }
