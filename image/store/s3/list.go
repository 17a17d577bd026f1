package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"platter/image/store"
	"platter/image/store/retry"
)

// List implements store.Store. Keys below the prefix that are no names of
// objects of ours are passed over. Times are in whole seconds.
func (s *Store) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	last := "" // key that was shown, or passed over
	var stop error
	err := s.line.Do(ctx, "list "+prefix, func() error {
		var moved bool
		err := s.list(ctx, prefix, last, func(o *minio.ObjectInfo) error {
			if !strings.HasPrefix(o.Key, s.key(prefix)) || o.Key <= last {
				return fmt.Errorf("%s: the server lists %q after %q: it must list keys in order", s.Location(), o.Key, last)
			}
			last, moved = o.Key, true
			name := strings.TrimPrefix(o.Key, s.key(""))
			if store.CheckName(name) != nil {
				return nil
			}
			stop = f(store.Info{Name: name, Size: o.Size, Modified: o.LastModified.Truncate(time.Second)})
			if stop != nil {
				return errStopped
			}
			return nil
		})
		if why := (*retry.Failure)(nil); moved && errors.As(err, &why) {
			why.Moved = true
		}
		return err
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	return nil
}

// errStopped: the caller wants no more. Its error may be one of another
// operation on this store, and must not pass for the listing's own.
var errStopped = errors.New("stopped")

// list shows the keys after last until something goes wrong.
func (s *Store) list(ctx context.Context, prefix, last string, show func(*minio.ObjectInfo) error) error {
	var a answer
	pages := s.core.ListObjectsIter(a.watch(ctx), s.config.Bucket, minio.ListObjectsOptions{
		Prefix: s.key(prefix), Recursive: true, StartAfter: last, FetchOwner: new(bool),
	})
	for o := range pages {
		if o.Err != nil {
			err := s.failure(o.Err, &a)
			if errors.Is(err, store.ErrNotFound) { // nonsense: there is always a list
				err = &retry.Failure{Cause: errors.New(err.Error()), Again: true}
			}
			return err
		}
		if err := show(&o); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Delete implements store.Store. Two who delete an object at once may both be
// told that they did.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	// S3 itself does not tell whether there was anything to delete.
	if _, err := s.Head(ctx, name); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if err := s.remove(ctx, name); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, name string) error {
	err := s.line.Do(ctx, "delete "+name, func() error {
		var a answer
		err := s.core.RemoveObject(a.watch(ctx), s.config.Bucket, s.key(name), minio.RemoveObjectOptions{})
		if err == nil && a.status == http.StatusNoContent {
			return nil
		}
		if err != nil {
			if err = s.failure(err, &a); !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		// Something else may have answered: S3 says of no object that it is not
		// there to be deleted.
		_, err = s.stat(ctx, name)
		if err == nil {
			err = &retry.Failure{Cause: fmt.Errorf("%s: said to be deleted, and is still there (status %d)", s.Location(), a.status), Again: true}
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil // gone by another's request, or by an earlier one of ours
	}
	return err
}
