// Package mem keeps the objects of a repository in memory, for tests.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"platter/image/store"
)

// A Store is a store.Store in memory. Its clock starts at Epoch, moves on by a
// millisecond with each Put and otherwise by Advance alone, so that tests have
// the same times in every run.
type Store struct {
	mu      sync.Mutex
	objects map[string]object
	names   []string // of them, in order
	now     time.Time
}

type object struct {
	data     []byte
	modified time.Time
}

var _ store.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{objects: make(map[string]object), now: Epoch()}
}

// Clone returns a store of its own with the same objects and clock.
func (s *Store) Clone() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Store{objects: maps.Clone(s.objects), names: slices.Clone(s.names), now: s.now}
}

// Epoch is when every store's clock starts.
func Epoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// Advance moves the store's clock by d, back if d is negative.
func (s *Store) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// Replace puts other bytes under the name of an object, or a new object, as
// only damage does. It keeps data.
func (s *Store) Replace(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(name, data)
}

// set puts an object under a name, which may be taken.
func (s *Store) set(name string, data []byte) {
	if i, there := slices.BinarySearch(s.names, name); !there {
		s.names = slices.Insert(s.names, i, name)
	}
	s.objects[name] = object{data, s.now}
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name string, parts ...[]byte) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	data := bytes.Join(parts, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[name]; ok {
		return fmt.Errorf("put %s: %w", name, store.ErrExists)
	}
	s.now = s.now.Add(time.Millisecond)
	s.set(name, data)
	return nil
}

// ReadAt implements store.Store.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	o, err := s.get(ctx, name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if _, err := bytes.NewReader(o.data).ReadAt(p, off); err != nil && len(p) > 0 {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s: %d bytes at %d: %w", name, len(p), off, err)
	}
	return nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	o, err := s.get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	if int64(len(o.data)) > limit {
		return nil, fmt.Errorf("get %s: %d bytes, limit %d: %w", name, len(o.data), limit, store.ErrTooLarge)
	}
	return slices.Clone(o.data), nil
}

// Head implements store.Store.
func (s *Store) Head(ctx context.Context, name string) (store.Info, error) {
	o, err := s.get(ctx, name)
	if err != nil {
		return store.Info{}, fmt.Errorf("head %s: %w", name, err)
	}
	return store.Info{Name: name, Size: int64(len(o.data)), Modified: o.modified}, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	return s.ListAfter(ctx, prefix, "", f)
}

// ListAfter is List from the first name on that comes after another.
func (s *Store) ListAfter(ctx context.Context, prefix, after string, f func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	info, ok := s.next(prefix, max(prefix, after), after == "")
	for ; ok; info, ok = s.next(prefix, info.Name, false) {
		if ctx.Err() != nil {
			break
		}
		if err := f(info); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// next describes the first object after a name, or under it too, whose name
// begins with prefix.
func (s *Store) next(prefix, name string, itself bool) (info store.Info, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, there := slices.BinarySearch(s.names, name)
	if there && !itself {
		i++
	}
	if i == len(s.names) || !strings.HasPrefix(s.names[i], prefix) {
		return info, false
	}
	o := s.objects[s.names[i]]
	return store.Info{Name: s.names[i], Size: int64(len(o.data)), Modified: o.modified}, true
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := slices.BinarySearch(s.names, name)
	if !ok {
		return fmt.Errorf("delete %s: %w", name, store.ErrNotFound)
	}
	s.names = slices.Delete(s.names, i, i+1)
	delete(s.objects, name)
	return nil
}

// Now implements store.Store.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, ctx.Err()
}

// Location implements store.Store.
func (s *Store) Location() string { return "memory" }

// Close does nothing: the objects stay, for those who open the store again.
func (s *Store) Close() error { return nil }

func (s *Store) get(ctx context.Context, name string) (object, error) {
	if err := check(ctx, name); err != nil {
		return object{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[name]
	if !ok {
		return object{}, store.ErrNotFound
	}
	return o, nil
}

func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckName(name)
}
