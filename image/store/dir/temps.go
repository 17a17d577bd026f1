package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"platter/image/store"
	"platter/image/store/vfs"
)

// RemoveTemps removes what dead writers left: temporary files last written to
// longer than olderThan ago by the store's clock. It returns how many. A
// writer touches its file with every few MiB, so that a day is ample.
func (s *Store) RemoveTemps(ctx context.Context, olderThan time.Duration) (int, error) {
	now, err := s.Now(ctx)
	if err != nil {
		return 0, fmt.Errorf("remove unfinished objects: %w", err)
	}
	n, err := s.removeTemps(ctx, s.root, now.Add(-olderThan))
	if err != nil {
		return n, fmt.Errorf("remove unfinished objects: %w", err)
	}
	return n, nil
}

func (s *Store) removeTemps(ctx context.Context, dir string, before time.Time) (int, error) {
	entries, err := s.fs.ReadDir(dir)
	if err != nil {
		return 0, notMissing(err)
	}
	removed := 0
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		path, n := dir+"/"+e.Name, 0
		switch {
		case e.Kind == vfs.Directory && store.IsPart(e.Name):
			n, err = s.removeTemps(ctx, path, before)
		case e.Kind == vfs.Regular && strings.HasPrefix(e.Name, tempPrefix):
			n, err = s.removeTemp(path, before)
		}
		removed += n
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// removeTemp needs no sync: a temporary file that comes back is removed again.
func (s *Store) removeTemp(path string, before time.Time) (int, error) {
	st, err := s.fs.Stat(path)
	if err != nil {
		return 0, notMissing(err)
	}
	if !st.Modified.Before(before) {
		return 0, nil
	}
	if err := s.fs.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		return 0, err
	}
	return 1, nil
}
