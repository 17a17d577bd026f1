package s3

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"platter/image/store"
	"platter/image/store/retry"
)

// Probe finds out whether the server does what a repository relies on: that it
// refuses to overwrite an object, also when several come at once, gives back
// what was put, ranges of it too, and lists it at once. It leaves nothing
// behind. Its errors say what to do.
func (s *Store) Probe(ctx context.Context) error {
	name := "probe-" + newUpload("", nil).mark
	err := s.probe(ctx, name)
	if removeErr := s.probeDelete(ctx, name); err == nil {
		err = removeErr
	}
	if err != nil {
		return fmt.Errorf("probe %s: %w", s.Location(), err)
	}
	return nil
}

func (s *Store) probe(ctx context.Context, name string) error {
	first := bytes.Repeat([]byte(name), 300)
	if err := s.Put(ctx, name, first); err != nil {
		return err
	}
	if err := s.probeObject(ctx, name, first); err != nil {
		return err
	}
	if err := s.probeList(ctx, name); err != nil {
		return err
	}
	return s.probeRace(ctx, name)
}

// probeDelete removes what the probe made, also when that was interrupted.
func (s *Store) probeDelete(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), retry.FirstPatience)
	defer cancel()
	var first error
	for _, name := range append(raceNames(name), name) {
		if err := s.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			first = cmp.Or(first, err)
		}
	}
	if first != nil {
		return first
	}
	if _, err := s.Head(ctx, name); !errors.Is(err, store.ErrNotFound) {
		return errors.Join(errors.New("what was deleted is still there"), err)
	}
	return nil
}

const racers = 4

func raceNames(name string) []string { return []string{name + "-1", name + "-2", name + "-3"} }

// probeRace puts several objects under one name at once: some servers look for
// an object first and write later.
func (s *Store) probeRace(ctx context.Context, name string) error {
	for _, name := range raceNames(name) {
		var wg sync.WaitGroup
		errs := make([]error, racers)
		for i := range errs {
			wg.Go(func() { errs[i] = s.Put(ctx, name, fmt.Append(nil, i)) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, store.ErrExists) {
				return err
			}
		}
		if won != 1 {
			return fmt.Errorf("%d of %d writes to one name at once had success: %w", won, racers, ErrUnconditional)
		}
	}
	return nil
}

func (s *Store) probeObject(ctx context.Context, name string, first []byte) error {
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
	return nil
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
