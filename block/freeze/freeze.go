// Package freeze holds filesystems still for a moment, and lets them go
// whatever happens.
//
// While a filesystem is frozen whoever writes to it waits. So a second process
// of this program watches the first: one that is locked into memory, needs no
// disk, and thaws when the time is over or the first process is gone. Programs
// that use the package begin with Watch.
//
// Between Freeze and Thaw a process must do nothing that may wait for a frozen
// filesystem: no log, no file written, and better no memory asked for.
package freeze

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
)

// The ioctls FIFREEZE and FITHAW, which take no argument.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// ErrLate means that the time was over before Thaw: what was read meanwhile is
// of no one moment.
var ErrLate = errors.New("the freeze was undone because its time was over")

// Filesystems are some that are to be frozen together. They belong to one
// goroutine.
type Filesystems struct {
	limit time.Duration
	all   []*filesystem
	guard *guard // nil where there is nothing to freeze
	began time.Time
}

type filesystem struct {
	block.Filesystem
	dir    *os.File
	frozen bool
	cannot bool // its kind cannot be frozen
}

// Sync writes back what is dirty, those last that others lie in, so that a freeze
// has less to do.
func Sync(list []block.Filesystem) (err error) {
	for _, fs := range slices.Backward(list) {
		if !fs.Writable {
			continue
		}
		dir, failed := os.Open(fs.Point)
		if failed == nil {
			failed = errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close())
		}
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("sync %s: %w", fs.Point, failed))
		}
	}
	return err
}

// Open prepares to freeze filesystems, in the order given: those that lie in
// others come first. No freeze lasts longer than limit. Filesystems that
// nobody can write to are left out.
func Open(list []block.Filesystem, limit time.Duration) (_ *Filesystems, err error) {
	f := &Filesystems{limit: limit}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, fs := range list {
		if !fs.Writable {
			continue
		}
		dir, err := os.Open(fs.Point)
		if err != nil {
			return nil, fmt.Errorf("freeze %s: %w", fs.Point, err)
		}
		f.all = append(f.all, &filesystem{Filesystem: fs, dir: dir})
	}
	if len(f.all) > 0 {
		f.guard, err = newGuard(f.all, limit)
	}
	return f, err
}

// Freeze freezes them all, or none with an error. Those that cannot be frozen
// because their kind cannot are written back instead: see Unfrozen.
func (f *Filesystems) Freeze() error {
	if f.guard != nil {
		if err := f.guard.arm(); err != nil {
			return err
		}
	}
	f.began = time.Now()
	for _, fs := range f.all {
		if err := fs.freeze(); err != nil {
			_, late := f.Thaw()
			return errors.Join(fmt.Errorf("freeze %s: %w", fs.Point, err), late)
		}
	}
	return nil
}

func (fs *filesystem) freeze() error {
	err := fs.control(fiFreeze)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY):
		fs.cannot = true
		return unix.Syncfs(int(fs.dir.Fd()))
	case errors.Is(err, unix.EBUSY):
		return errors.New("another program has frozen it")
	}
	fs.frozen = err == nil
	return err
}

// Unfrozen returns those that the last Freeze could not freeze.
func (f *Filesystems) Unfrozen() []string {
	var list []string
	for _, fs := range f.all {
		if fs.cannot {
			list = append(list, fs.Type+" at "+fs.Point)
		}
	}
	return list
}

// Thaw lets them go and returns how long the first was frozen. If the time was
// over before, it is an ErrLate.
func (f *Filesystems) Thaw() (time.Duration, error) {
	var errs []error
	late := false
	for _, fs := range slices.Backward(f.all) {
		if !fs.frozen {
			continue
		}
		fs.frozen = false
		err := fs.control(fiThaw)
		if errors.Is(err, unix.EINVAL) { // it is not frozen
			late = true
		} else if err != nil {
			errs = append(errs, fmt.Errorf("thaw %s: %w", fs.Point, err))
		}
	}
	took := time.Since(f.began)
	if f.guard != nil {
		over, err := f.guard.disarm()
		late, errs = late || over, append(errs, err)
	}
	if late {
		errs = append(errs, fmt.Errorf("%w: %v", ErrLate, f.limit))
	}
	return took, errors.Join(errs...)
}

func (fs *filesystem) control(request uintptr) error {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, fs.dir.Fd(), request, 0)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return e
	}
}

// Close thaws what may still be frozen and ends the watching process.
func (f *Filesystems) Close() error {
	var errs []error
	if slices.ContainsFunc(f.all, func(fs *filesystem) bool { return fs.frozen }) {
		_, err := f.Thaw()
		errs = append(errs, err)
	}
	if f.guard != nil {
		errs = append(errs, f.guard.close())
	}
	for _, fs := range f.all {
		errs = append(errs, fs.dir.Close())
	}
	return errors.Join(errs...)
}
