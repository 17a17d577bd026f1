package catalog

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// failure is the first error after which a catalog does nothing more: a failed
// write (see guardFS), or damage met by any goroutine. A backup does not end
// because its cache has: every call refuses from then on, and the repository
// has all that the catalog would have said.
type failure struct {
	dir string
	mu  sync.Mutex
	err error
}

func (f *failure) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *failure) set(kind error, what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = told{fmt.Errorf("catalog %s: %s: %w%s", f.dir, what, kind, advice(kind))}
	}
}

// told is an error that names the catalog and gives advice already.
type told struct{ error }

func (t told) Unwrap() error { return t.error }

// wrap says what was tried on which catalog, unless err does. Damage gets its
// own error and the advice what to do.
func (f *failure) wrap(what string, err error) error {
	if err == nil || errors.As(err, new(told)) {
		return err
	}
	kind := error(nil)
	if errors.Is(err, ErrDamaged) {
		kind = ErrDamaged
	} else if pebble.IsCorruptionError(err) {
		kind, err = ErrDamaged, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return told{fmt.Errorf("%s catalog %s: %w%s", what, f.dir, err, advice(kind))}
}

func advice(kind error) string {
	if kind == ErrDamaged {
		return " (nothing is lost: platter catalog rebuild makes a new one from the repository)"
	}
	return ""
}

// logger is what Pebble reports to.
type logger struct{ state *failure }

func (logger) Infof(string, ...any)  {}
func (logger) Errorf(string, ...any) {}

// Fatalf returns, where Pebble expects the process to end: the catalog is
// marked as failed, and the caller looks at the mark before it believes in any
// success.
func (l logger) Fatalf(format string, args ...any) {
	l.state.set(ErrFailed, fmt.Sprintf(format, args...))
}

// read runs f unless the catalog has failed.
func (c *Catalog) read(what string, f func() error) error {
	if err := c.state.get(); err != nil {
		return err
	}
	if err := f(); err != nil {
		return c.state.wrap(what, err)
	}
	return c.state.get()
}

// apply commits b and closes it. durable says whether to wait for the disk.
func (c *Catalog) apply(what string, b *pebble.Batch, durable bool) error {
	defer b.Close()
	if err := c.state.get(); err != nil {
		return err
	}
	if err := c.dir.room(c.opts); err != nil {
		return c.state.wrap(what, err)
	}
	o := pebble.NoSync
	if durable {
		o = pebble.Sync
	}
	if err := b.Commit(o); err != nil {
		return c.state.wrap(what, err)
	}
	return c.state.get()
}
