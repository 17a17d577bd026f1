// Package reader gets blocks and map pages out of a repository, with or
// without a catalog. Restore, verify and everything that serves an image read
// through it.
//
// Whatever it hands out has been checked against its 32-byte ID. Where a page
// says a block is stored is a hint: a wrong one costs a lookup, in the index,
// among what collectors moved, or in the footers of all segments, and never correctness. Of a block that is
// stored twice one good copy is enough.
//
// Memory is bounded by the number given to New, plus what a Read is asked for.
package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// An Index knows where blocks are stored, and map pages. What it says is
// checked, so that it may be stale or wrong. An error means that it does not
// know.
type Index interface {
	Locate(ctx context.Context, id image.ID) ([]image.Location, error)
	Page(ctx context.Context, id image.ID) (*image.Page, image.Location, error)
}

// A Reader reads one repository. It is safe for concurrent use.
type Reader struct {
	repo    *repo.Repo
	index   Index // nil without one
	stride  int   // bytes between the blocks of a worker's buffer
	span    int   // bytes read from the store in one go
	workers chan *worker
	footers *cache[image.SegmentID, *segment.Footer]
	pages   *cache[image.ID, *image.Page]

	forward    forwarder
	table      atomic.Pointer[table]  // of the last scan of all footers
	unread     atomic.Pointer[string] // a segment whose end could not be read, and why
	tableLimit int64                  // bytes

	mu      sync.Mutex
	touched map[uint64]struct{} // first half of the IDs of segments whose data was read
}

// Sizes in bytes.
const (
	runSize = 1 << 20  // decoded together, and handed out together
	maxSpan = 4 << 20  // read in one go: a request to a bucket costs as much as a MiB
	maxGap  = 64 << 10 // between two records, read rather than skipped

	overhang = maxGap + 2*store.Align // of a span
)

// A worker is what one goroutine needs to read, decode and check.
type worker struct {
	codec   *segment.Codec
	hasher  *image.Hasher
	in, out []byte // aligned for O_DIRECT; they grow to what is asked for
}

// room returns b, or a longer buffer in its place.
func room(b []byte, n int) []byte {
	if len(b) >= n {
		return b
	}
	return store.AllocAligned(n)
}

// New returns a Reader of r that uses about memory bytes for its caches and
// buffers, and a few buffers at least. index may be nil.
func New(r *repo.Repo, index Index, memory int64) *Reader {
	out := max(runSize, r.Config.BlockSize)
	n := int64(2*runtime.GOMAXPROCS(0) + 2)
	n = max(1, min(n, memory/2/int64(2*out+overhang)))
	span := max(out, min(maxSpan, int(memory/2/n)-out-overhang))
	rest := max(memory-n*int64(span+overhang+out), 1<<20)
	rd := &Reader{
		repo: r, index: index, stride: r.Config.BlockSize, span: span,
		workers: make(chan *worker, n),
		footers: newCache[image.SegmentID](rest/4*3, footerMemory),
		pages:   newCache[image.ID](rest/4, func(*image.Page) int64 { return pageMemory }),
		touched: make(map[uint64]struct{}),
		// Both stay empty as long as hints lead where they should.
		forward: forwarder{limit: rest / 2, turn: make(chan struct{}, 1)}, tableLimit: rest / 2,
	}
	for range n {
		rd.workers <- nil // made when first needed
	}
	return rd
}

func (r *Reader) acquire(ctx context.Context) (*worker, error) {
	select {
	case w := <-r.workers:
		if w == nil {
			w = &worker{codec: new(segment.Codec), hasher: r.repo.Hasher()}
		}
		return w, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *Reader) release(w *worker) { r.workers <- w }

// Footer returns the checked footer of a segment. It is shared: do not change
// it.
func (r *Reader) Footer(ctx context.Context, id image.SegmentID) (*segment.Footer, error) {
	return r.footers.load(ctx, id, func() (*segment.Footer, error) {
		if r.forward.isGone(id) {
			return nil, fmt.Errorf("%s: %w", segment.Name(id), store.ErrNotFound)
		}
		f, err := r.repo.Footer(ctx, id)
		if err == nil {
			err = r.repo.Unlock(ctx, f)
		}
		if errors.Is(err, store.ErrNotFound) {
			r.forward.missing(id)
		}
		return f, err
	})
}

// Sizes in memory, in bytes.
const (
	recordMemory = 64
	pageMemory   = image.PageEntries*(image.IDSize+20) + 64
)

func footerMemory(f *segment.Footer) int64 { return int64(len(f.Records))*recordMemory + 256 }

// Segments returns how many segments blocks were read from so far.
func (r *Reader) Segments() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.touched)
}

func (r *Reader) touch(id image.SegmentID) {
	key := uint64(0)
	for _, b := range id[:8] {
		key = key<<8 | uint64(b)
	}
	r.mu.Lock()
	r.touched[key] = struct{}{}
	r.mu.Unlock()
}

// Lost is the error for a block or page of which the repository has no good
// copy.
type Lost struct {
	Page  bool
	Ref   int   // its place among what was asked for
	Block int64 // of the image; of a page the first that it spans, if known
	ID    image.ID
	At    image.Location // of the copy found bad; zero if none was found
	Err   error
}

// Error names the block or page, and the segment and offset where known.
func (e *Lost) Error() string {
	what := "block"
	if e.Page {
		what = "map page of block"
	}
	return fmt.Sprintf("%s %d (ID %.16s…): %v", what, e.Block, e.ID, e.Err)
}

// Unwrap returns the cause.
func (e *Lost) Unwrap() error { return e.Err }

// Damaged reports whether err means that stored bytes are damaged, missing or
// unreadable, rather than that a store could not be reached or a job was
// stopped.
func Damaged(err error) bool {
	for _, e := range []error{image.ErrCorrupt, store.ErrNotFound, io.ErrUnexpectedEOF, unix.EIO, unix.EBADMSG, unix.EUCLEAN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
