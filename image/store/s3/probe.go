package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/minio/minio-go/v7"

	"platter/image/store"
)

// Probe finds out whether the server does what a repository relies on: that it
// refuses to overwrite an object, gives back what was put, ranges of it too,
// and lists it at once. It leaves nothing behind. Its errors say what to do.
func (s *Store) Probe(ctx context.Context) error {
	probe := newUpload("", nil)
	name := "probe-" + probe.mark
	first := bytes.Repeat([]byte(probe.mark), 300)
	if err := s.Put(ctx, name, first); err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	err := s.probe(ctx, name, first)
	// Also when it was interrupted.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), firstPatience)
	defer cancel()
	if rmErr := s.Delete(ctx, name); rmErr != nil && err == nil {
		err = rmErr
	}
	if err == nil {
		if _, err = s.Head(ctx, name); err == nil {
			err = errors.New("what was deleted is still there")
		} else if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("probe %s: %w", s.Location(), err)
	}
	return nil
}

func (s *Store) probe(ctx context.Context, name string, first []byte) error {
	second := slices.Repeat([]byte("second"), 100)
	switch err := s.Put(ctx, name, second); {
	case err == nil:
		return ErrUnconditional
	case !errors.Is(err, store.ErrExists):
		return fmt.Errorf("%w: %w", ErrUnconditional, err)
	}
	got, err := s.Get(ctx, name, int64(len(first)))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, first) {
		return ErrUnconditional
	}
	part := got[:1000]
	if err := s.ReadAt(ctx, name, part, 1234); err != nil {
		return err
	}
	if !bytes.Equal(part, first[1234:][:1000]) {
		return errors.New("a range came back with other bytes than were put there")
	}
	return s.probeList(ctx, name)
}

func (s *Store) probeList(ctx context.Context, name string) error {
	o, err := s.Head(ctx, name)
	if err != nil {
		return err
	}
	now, err := s.Now(ctx)
	if err != nil {
		return err
	}
	if d := now.Sub(o.Modified).Abs(); d > 5*time.Minute {
		return fmt.Errorf("the server's time is %s, but it says that it stored an object at %s", now, o.Modified)
	}
	// From the key before on: the bucket may hold a lot.
	key := s.key(name)
	found := false
	err = s.list(ctx, "", key[:len(key)-1], func(o *minio.ObjectInfo) error {
		found = o.Key == key
		return errStopped
	})
	if err != nil && !errors.Is(err, errStopped) {
		return err
	}
	if !found {
		return errors.New("what was just put is not listed: the server's listings are out of date")
	}
	return nil
}
