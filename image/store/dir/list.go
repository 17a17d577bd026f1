package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"platter/image/store"
	"platter/image/store/vfs"
)

// List implements store.Store. It holds the names of one directory at each
// level in memory.
func (s *Store) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	dir := strings.TrimSuffix(s.path(prefix), "/")
	err := s.plain(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	return s.list(ctx, dir, prefix, f)
}

func (s *Store) list(ctx context.Context, dir, prefix string, f func(store.Info) error) error {
	entries, err := s.entries(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.Kind == vfs.Directory {
			err = s.list(ctx, dir+"/"+e.Name, prefix+e.Name+"/", f)
		} else {
			err = s.listOne(dir+"/"+e.Name, prefix+e.Name, e.Info, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) listOne(path, name string, known *vfs.Info, f func(store.Info) error) error {
	var st vfs.Info
	var err error
	if known != nil {
		st = *known
	} else {
		st, err = s.fs.Stat(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err == nil && st.Kind != vfs.Regular {
		// Not passed over: what is listed decides what is deleted.
		err = fmt.Errorf("%s: %w", path, vfs.ErrNotRegular)
	}
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	return f(store.Info{Name: name, Size: st.Size, Modified: st.Modified})
}

// entries returns the names in a directory that objects may have, in the order
// of the objects' whole names, and makes them durable: another process may
// have put one there that it has not synced yet. A directory that is gone has
// none.
func (s *Store) entries(dir string) ([]vfs.Entry, error) {
	entries, err := s.fs.ReadDir(dir)
	if err != nil {
		return nil, notMissing(err)
	}
	if err := s.syncShown(dir); err != nil {
		return nil, err
	}
	entries = slices.DeleteFunc(entries, func(e vfs.Entry) bool { return !store.IsPart(e.Name) })
	slices.SortFunc(entries, func(a, b vfs.Entry) int { return strings.Compare(sortKey(a), sortKey(b)) })
	return entries, nil
}

// sortKey is what decides where the objects below e stand in order of name:
// "a-b" comes before "a/b".
func sortKey(e vfs.Entry) string {
	if e.Kind == vfs.Directory {
		return e.Name + "/"
	}
	return e.Name
}

// syncShown makes the names in a directory durable for one who lists them.
// Where nobody can write, everything is.
func (s *Store) syncShown(dir string) error {
	err := s.fs.SyncDir(dir)
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrNotDurable, err)
	}
	return nil
}

func notMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
