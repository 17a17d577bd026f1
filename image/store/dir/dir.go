// Package dir keeps the objects of a repository as files in a directory, each
// under its own name.
//
// An object is written to a temporary file beside its place, synced, given its
// name in one step that never replaces another, and the directory synced. It
// is there whole or not at all, also after a crash: docs/durability.md. What
// List reports is durable too, whoever wrote it and however lately.
//
// The directories belong to one user (0700, files 0600). Symbolic links below
// the store's own directory are refused, and so is whatever else is no regular
// file. Several processes, and machines that share the file system, may use a
// directory at once.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"platter/image/store"
	"platter/image/store/vfs"
)

// openFiles is how many files a Store keeps open for ReadAt.
const openFiles = 64

// A Store is a store.Store in a directory.
type Store struct {
	root  string
	fs    vfs.FS
	files *files

	mu sync.Mutex
	// dirs are the directories known to be directories, by path; true when
	// their names are durable in their parents.
	dirs map[string]bool
}

var _ store.Store = (*Store)(nil)

// Open opens the store in the directory path, which must exist: the error
// wraps fs.ErrNotExist when it does not. The directory itself may be reached
// through symbolic links.
func Open(path string, fsys vfs.FS) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	// The dot makes it the directory behind a symbolic link.
	st, err := fsys.Stat(path + "/.")
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if st.Kind != vfs.Directory {
		return nil, fmt.Errorf("open store %s: %w", path, syscall.ENOTDIR)
	}
	s := &Store{root: path, fs: fsys, dirs: map[string]bool{path: true}}
	s.files = newFiles(openFiles, s.open)
	return s, nil
}

// Create is Open for a directory that may not exist yet. It makes what is
// missing of path, and returns when all of it is durable. What exists already
// is left as it is.
func Create(path string, fsys vfs.FS) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("create store %s: %w", path, err)
	}
	if err := makeAll(path, fsys, true); err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	return Open(path, fsys)
}

// makeAll makes path and its missing parents, and syncs each one's parent. The
// last of them is synced though it exists: whoever made it may not have.
func makeAll(path string, fsys vfs.FS, last bool) error {
	parent := filepath.Dir(path)
	if parent == path {
		return nil
	}
	_, err := fsys.Stat(path + "/.")
	made := errors.Is(err, fs.ErrNotExist)
	if made {
		if err := makeAll(parent, fsys, false); err != nil {
			return err
		}
		err = fsys.Mkdir(path)
		if errors.Is(err, fs.ErrExist) {
			err = nil // by another process, just now
		}
	}
	if err != nil || !made && !last {
		return err
	}
	err = fsys.SyncDir(parent)
	if !made && errors.Is(err, fs.ErrPermission) {
		return nil // made and owned by someone else, who answers for it
	}
	return err
}

// Location returns the path of the directory.
func (s *Store) Location() string { return s.root }

// Close closes the files kept open. Reads still running end as they would.
func (s *Store) Close() error { return s.files.Close() }

// Now returns the time by the clock of the file system, as Info.Modified is:
// on a network file system that is the server's, the same for all machines.
// Where the store cannot be written to, so that nothing can be decided by the
// time either, it is the machine's.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	t, err := s.fs.Touch(s.root)
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		return time.Now(), nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read the clock of %s: %w", s.root, err)
	}
	return t, nil
}

// ReadAt implements store.Store.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := s.check(ctx, name); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	f, err := s.files.Acquire(name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	defer s.files.Release(f)
	if _, err := f.ReadAt(p, off); err != nil {
		return fmt.Errorf("read %s: %d bytes at %d: %w", name, len(p), off, unexpected(err))
	}
	return nil
}

// unexpected turns the end of a file into one that came too soon.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := s.check(ctx, name); err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	f, err := s.open(name)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	if st.Size > limit {
		return nil, fmt.Errorf("get %s: %d bytes, limit %d: %w", name, st.Size, limit, store.ErrTooLarge)
	}
	p := make([]byte, st.Size)
	if len(p) == 0 {
		return p, nil
	}
	if _, err := f.ReadAt(p, 0); err != nil {
		return nil, fmt.Errorf("get %s: %w", name, unexpected(err))
	}
	return p, nil
}

// Head implements store.Store.
func (s *Store) Head(ctx context.Context, name string) (store.Info, error) {
	if err := s.check(ctx, name); err != nil {
		return store.Info{}, fmt.Errorf("head %s: %w", name, err)
	}
	st, err := s.fs.Stat(s.path(name))
	if err == nil && st.Kind != vfs.Regular {
		err = vfs.ErrNotRegular
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("head %s: %w", name, absent(err))
	}
	return store.Info{Name: name, Size: st.Size, Modified: st.Modified}, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := s.check(ctx, name); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	// Also keeps the name of an empty directory from being taken for an object.
	if _, err := s.Head(ctx, name); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	path := s.path(name)
	if err := s.fs.Remove(path); err != nil {
		return fmt.Errorf("delete %s: %w", name, absent(err))
	}
	s.files.Forget(name)
	if err := s.SyncName(name); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// SyncName makes it durable that an object is there, or is not.
func (s *Store) SyncName(name string) error {
	if err := store.CheckName(name); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	if err := s.fs.SyncDir(filepath.Dir(s.path(name))); err != nil {
		return fmt.Errorf("sync %s: %w: %w", name, store.ErrNotDurable, err)
	}
	return nil
}

// check guards every operation on an object.
func (s *Store) check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := store.CheckName(name); err != nil {
		return err
	}
	return absent(s.plain(filepath.Dir(s.path(name))))
}

// plain returns an error unless path and all directories between it and the
// root are directories themselves, not links to some.
func (s *Store) plain(path string) error {
	s.mu.Lock()
	_, known := s.dirs[path]
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := s.plain(filepath.Dir(path)); err != nil {
		return err
	}
	st, err := s.fs.Stat(path)
	if err != nil {
		return err
	}
	switch st.Kind {
	case vfs.Regular: // an object, and nothing below it
		return fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	case vfs.Other:
		return fmt.Errorf("%s: %w", path, syscall.ENOTDIR)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.dirs[path]; !known {
		s.dirs[path] = false
	}
	return nil
}

// open opens an object whose name was checked.
func (s *Store) open(name string) (vfs.File, error) {
	f, err := s.fs.Open(s.path(name))
	return f, absent(err)
}

func (s *Store) path(name string) string { return s.root + "/" + name }

// absent makes a missing file or directory store.ErrNotFound.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", store.ErrNotFound, err)
	}
	return err
}
