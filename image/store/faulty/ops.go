package faulty

import (
	"context"
	"fmt"
	"io"

	"platter/image/store"
)

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name string, parts ...[]byte) error {
	op := Op{Kind: Put, Name: name}
	for _, p := range parts {
		op.Size += int64(len(p))
	}
	return s.do(op, func(*rule) error {
		if !s.take(op.Size) {
			return fmt.Errorf("put %s: %w", name, store.ErrFull)
		}
		err := s.under.Put(ctx, name, parts...)
		if err != nil {
			s.take(-op.Size)
		}
		return err
	})
}

// take takes n bytes of the room left, if there is so much.
func (s *Store) take(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room < 0 {
		return true
	}
	if n > s.room {
		return false
	}
	s.room -= n
	return true
}

// ReadAt implements store.Store.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	op := Op{Kind: ReadAt, Name: name, Offset: off, Size: int64(len(p))}
	return s.do(op, func(r *rule) error {
		if err := s.under.ReadAt(ctx, name, p, off); err != nil || r == nil {
			return err
		}
		if n := copy(p, r.Damage(p)); n < len(p) {
			return fmt.Errorf("read %s: %d bytes at %d, got %d: %w", name, len(p), off, n, io.ErrUnexpectedEOF)
		}
		return nil
	})
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, name string, limit int64) (data []byte, err error) {
	err = s.do(Op{Kind: Get, Name: name, Size: limit}, func(r *rule) error {
		data, err = s.under.Get(ctx, name, limit)
		if err == nil && r != nil {
			data = r.Damage(data)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Head implements store.Store.
func (s *Store) Head(ctx context.Context, name string) (info store.Info, err error) {
	err = s.do(Op{Kind: Head, Name: name}, func(*rule) error {
		info, err = s.under.Head(ctx, name)
		return err
	})
	if err != nil {
		return store.Info{}, err
	}
	return info, nil
}

// List implements store.Store. With After, all objects were shown before the
// error.
func (s *Store) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	return s.do(Op{Kind: List, Name: prefix}, func(*rule) error {
		return s.under.List(ctx, prefix, f)
	})
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.do(Op{Kind: Delete, Name: name}, func(*rule) error {
		return s.under.Delete(ctx, name)
	})
}

// Flip is a Damage that turns over one bit, counted from the first byte's
// lowest and around the end.
func Flip(bit int) func([]byte) []byte {
	return func(p []byte) []byte {
		if len(p) > 0 {
			p[bit/8%len(p)] ^= 1 << (bit % 8)
		}
		return p
	}
}

// Truncate is a Damage that leaves at most n bytes.
func Truncate(n int) func([]byte) []byte {
	return func(p []byte) []byte { return p[:min(n, len(p))] }
}
