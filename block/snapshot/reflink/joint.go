package reflink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/snapshot"
)

// maxTries is how often files are copied until none was written to meanwhile.
const maxTries = 500

// TakeAll copies files as they were at one moment. Nothing holds still who
// writes to them, so that is proven: as long as a copy is there, what is written
// to its file goes elsewhere on the filesystem. When all have been copied, each
// but the last is copied once more; where both copies lie at the same places,
// nobody wrote to the file meanwhile, and the copies are of the moment when the
// last one was made.
func (p provider) TakeAll(ctx context.Context, devices []block.Device, options []snapshot.Options) (_ []snapshot.View, err error) {
	var list []*taking
	defer func() {
		for _, t := range list {
			err = errors.Join(err, t.end(err != nil))
		}
	}()
	for i, d := range devices {
		t := &taking{device: d}
		list = append(list, t)
		if err := t.begin(p, d, options[i]); err != nil {
			return nil, fmt.Errorf("copy %s: %w", d.Path, err)
		}
	}
	if err := moment(ctx, list); err != nil {
		return nil, err
	}
	var views []snapshot.View
	for _, t := range list {
		t.view.taken = list[len(list)-1].copied
		err := t.last()
		if err == nil {
			err = t.view.open()
		}
		if err != nil {
			return nil, fmt.Errorf("copy %s: %w", t.device.Path, err)
		}
		views = append(views, t.view)
	}
	return views, context.Cause(ctx)
}

// moment copies files until all copies are of one moment.
func moment(ctx context.Context, list []*taking) error {
	var moved *taking
	for range maxTries {
		for _, t := range list {
			if err := t.copy(t.dst); err != nil {
				return fmt.Errorf("copy %s: %w", t.device.Path, err)
			}
		}
		var err error
		if moved, err = written(list[:len(list)-1]); err != nil || moved == nil {
			return err
		}
		// Out of step with who writes.
		select {
		case <-time.After(time.Duration(rand.Int64N(int64(5 * time.Millisecond)))):
		case <-ctx.Done():
			return fmt.Errorf("copy %s: %w: %w", moved.device.Path, errBusy, context.Cause(ctx))
		}
	}
	return fmt.Errorf("copy %s: %w", moved.device.Path, errBusy)
}

var errBusy = errors.New("it was written to each time while the other files were copied, and nothing holds it still: stop what writes to them (--before, --after), or image disks of a virtual machine by qemu:SOCKET")

// written returns the first file that was written to since it was copied, nil
// for none.
func written(list []*taking) (*taking, error) {
	for _, t := range list {
		if err := t.copy(t.probe); err != nil {
			return nil, fmt.Errorf("copy %s: %w", t.device.Path, err)
		}
	}
	for _, t := range list {
		if ok, err := alike(t.dst, t.probe); !ok || err != nil {
			return t, err
		}
	}
	return nil, nil
}

// alike reports whether two copies of a file hold the same for certain: all
// their extents lie at the same places.
func alike(a, b *os.File) (bool, error) {
	x, err := NewLayout(a, BatchExtents)
	if err != nil {
		return false, err
	}
	y, err := NewLayout(b, BatchExtents)
	if err != nil || x.Size != y.Size {
		return false, err
	}
	var before, now []Piece
	for off := int64(0); off < x.Size; {
		var end, other int64
		if before, end, err = x.Next(off, before[:0]); err != nil {
			return false, err
		}
		if now, other, err = y.Next(off, now[:0]); err != nil {
			return false, err
		}
		vague := func(e Piece) bool { return e.Flags&^(Plain|Unwritten) != 0 }
		if end != other || !slices.Equal(before, now) || slices.ContainsFunc(now, vague) {
			return false, nil
		}
		off = end
	}
	return true, nil
}

// A taking is a copy of a file that is being made.
type taking struct {
	device          block.Device
	view            *View
	dir             *os.File // that the copy lies in
	src, dst, probe *os.File // probe has no name
	copied          time.Time
}

func (t *taking) begin(p provider, d block.Device, o snapshot.Options) (err error) {
	path, err := real(d.Path)
	if err != nil {
		return err
	}
	if t.dir, err = openFolder(filepath.Dir(path)); err != nil {
		return err
	}
	id := snapshot.NewID()
	v := &View{provider: p, device: d, consumer: o.Consumer, id: id, path: filepath.Join(t.dir.Name(), nameOf(path, o, id, taken))}
	if t.src, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	if t.dst, err = os.OpenFile(v.path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600); err != nil {
		return err
	}
	t.view = v
	t.probe, err = os.OpenFile(t.dir.Name(), os.O_RDWR|unix.O_TMPFILE, 0o600)
	return err
}

// copy makes dst a copy of the file as it is now.
func (t *taking) copy(dst *os.File) error {
	if err := dst.Truncate(0); err != nil {
		return err
	}
	err := unix.IoctlFileClone(int(dst.Fd()), int(t.src.Fd()))
	t.copied = time.Now()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EXDEV) {
		err = fmt.Errorf("%w: its filesystem does not share extents between files: %w", snapshot.ErrUnfit, err)
	}
	return err
}

// last makes the copy durable: a manifest that names it must not outlive it.
func (t *taking) last() error { return errors.Join(t.dst.Sync(), t.dir.Sync()) }

// end closes what is open. If the copy is of no use, it goes.
func (t *taking) end(failed bool) error {
	var errs []error
	for _, f := range []*os.File{t.src, t.dst, t.probe, t.dir} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if failed && t.view != nil {
		errs = append(errs, t.view.Close())
	}
	return errors.Join(errs...)
}
