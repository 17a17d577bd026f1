package dir

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"platter/image/store"
	"platter/image/store/vfs"
)

// tempPrefix begins the names of unfinished objects. No object's name holds a
// dot.
const tempPrefix = ".tmp-"

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name string, parts ...[]byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if err := store.CheckName(name); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if err := s.put(ctx, name, parts); err != nil {
		return fmt.Errorf("put %s: %w", name, s.classify(err))
	}
	return nil
}

func (s *Store) put(ctx context.Context, name string, parts [][]byte) error {
	path := s.path(name)
	dir := filepath.Dir(path)
	if err := s.makeDurable(dir); err != nil {
		return err
	}
	// The rename decides; this spares the writing.
	if _, err := s.fs.Stat(path); err == nil {
		return store.ErrExists
	}
	temp := dir + "/" + tempName()
	if err := s.write(ctx, temp, parts); err != nil {
		return err
	}
	if err := s.fs.Rename(temp, path); err != nil {
		s.fs.Remove(temp)
		if errors.Is(err, fs.ErrExist) {
			return store.ErrExists
		}
		return err
	}
	if err := s.fs.SyncDir(dir); err != nil {
		// It may come back after a crash, but nobody is to rely on it now.
		s.fs.Remove(path)
		return fmt.Errorf("%w: %w", store.ErrNotDurable, err)
	}
	return nil
}

// write makes the file temp of parts, durable but for its name. On an error no
// file is left.
func (s *Store) write(ctx context.Context, temp string, parts [][]byte) error {
	var size int64
	for _, p := range parts {
		size += int64(len(p))
	}
	f, err := s.fs.Create(temp, size)
	if err != nil {
		return err
	}
	err = fill(ctx, f, parts)
	if err2 := f.Close(); err == nil && err2 != nil {
		err = fmt.Errorf("%w: %w", store.ErrNotDurable, err2)
	}
	if err != nil {
		s.fs.Remove(temp)
	}
	return err
}

// writeMax is how much is written between two looks at the context, in bytes.
const writeMax = 8 << 20

func fill(ctx context.Context, f vfs.File, parts [][]byte) error {
	for _, p := range parts {
		for len(p) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(len(p), writeMax)
			if _, err := f.Write(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrNotDurable, err)
	}
	return nil
}

// makeDurable makes a directory below the root and its parents, unless they
// exist, and returns when all their names are durable. A directory that exists
// may have been made a moment ago by a process that has not synced it yet, so
// each is synced once.
func (s *Store) makeDurable(path string) error {
	s.mu.Lock()
	durable := s.dirs[path]
	s.mu.Unlock()
	if durable {
		return nil
	}
	parent := filepath.Dir(path)
	if err := s.makeDurable(parent); err != nil {
		return err
	}
	if err := s.fs.Mkdir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Its siblings become durable by the same sync.
	siblings, err := s.fs.ReadDir(parent)
	if err != nil {
		return err
	}
	if err := s.fs.SyncDir(parent); err != nil {
		return fmt.Errorf("%w: %w", store.ErrNotDurable, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range siblings {
		if e.Kind == vfs.Directory && store.IsPart(e.Name) {
			s.dirs[parent+"/"+e.Name] = true
		}
	}
	if !s.dirs[path] {
		return fmt.Errorf("%s: %w", path, syscall.ENOTDIR)
	}
	return nil
}

// classify adds what callers decide on to an error of the file system.
func (s *Store) classify(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s: %w: %w", s.root, store.ErrFull, err)
	}
	return err
}

func tempName() string {
	var b [16]byte
	rand.Read(b[:])
	return tempPrefix + hex.EncodeToString(b[:])
}
