package era

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"platter/block/command"
	"platter/block/snapshot"
)

// ErrReserved means that another program holds the metadata still.
var ErrReserved = errors.New("another program uses the metadata snapshot")

// marks is where a file says that the snapshot of a stack's metadata is ours:
// it outlives a crash, as the snapshot itself does.
const marks = "/var/lib/platter/dm-era"

// hold calls read while the kernel holds a copy of the metadata still, which it
// does once at a time. A new era begins with it, and all before is on the disk.
// The copy is released whatever happens; what a dead run left is released first.
func (s *stack) hold(ctx context.Context, read func(era int64) error) (err error) {
	unlock, err := snapshot.Lock(ctx, "platter-era-"+strings.ReplaceAll(s.name, "/", "-"))
	if err != nil {
		return err
	}
	defer unlock()
	mark := filepath.Join(marks, strings.ReplaceAll(s.name, "/", "-"))
	if err := s.release(ctx, mark); err != nil {
		return err
	}
	if err := put(mark); err != nil {
		return err
	}
	// From here on all that was done is undone, also when ctx has ended.
	undo := context.WithoutCancel(ctx)
	if err := s.message(ctx, "take_metadata_snap"); err != nil {
		return errors.Join(err, os.Remove(mark))
	}
	defer func() {
		e := s.message(undo, "drop_metadata_snap")
		if e == nil {
			e = os.Remove(mark)
		}
		err = errors.Join(err, e)
	}()
	now, err := s.status(ctx)
	if err != nil {
		return err
	}
	return read(now.era)
}

// release drops what a dead run of ours holds. We have the lock: none lives.
func (s *stack) release(ctx context.Context, mark string) error {
	now, err := s.status(ctx)
	if err != nil || !now.held {
		return err
	}
	if _, err := os.Stat(mark); err != nil {
		return fmt.Errorf("%w; if none does: dmsetup message %s 0 drop_metadata_snap", ErrReserved, s.name)
	}
	return s.message(ctx, "drop_metadata_snap")
}

// put makes a file that is there after a crash.
func put(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	for _, p := range []string{path, filepath.Dir(path)} {
		flags := os.O_RDONLY
		if p == path {
			flags = os.O_RDWR | os.O_CREATE
		}
		f, err := os.OpenFile(p, flags, 0o644)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// written lists what was written in an era or later, in blocks: from the first
// to before the last. The metadata is held.
func (s *stack) written(ctx context.Context, since int64, each func(from, to int64)) error {
	list, err := command.Run(ctx, "era_invalidate", "--metadata-snapshot", "--written-since", fmt.Sprint(since), s.metadata)
	if err != nil {
		return err
	}
	return blocks(list, each)
}
