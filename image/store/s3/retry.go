package s3

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"platter/image/store"
)

const (
	firstPause = 100 * time.Millisecond
	maxPause   = 15 * time.Second
	noticeGap  = 30 * time.Second
)

// A failure is a request that did not go well, and what is to be made of it.
type failure struct {
	cause error
	// again: it may go well another time. What damages data on its way is
	// given few tries only.
	again, damage bool
	// doubt: the request may have had its effect all the same.
	doubt bool
	// sure: the server was asked in two ways whether there is no object.
	sure bool
	// moved: something was got before it failed.
	moved bool
	wait  time.Duration // that the server asked for
}

func (f *failure) Error() string { return f.cause.Error() }
func (f *failure) Unwrap() error { return f.cause }

// maxDamaged is how often data may arrive damaged in one operation.
const maxDamaged = 5

// retry calls f until it succeeds, or fails for good, or patience is over.
func (s *Store) retry(ctx context.Context, what string, f func() error) error {
	began, damaged := time.Now(), 0
	asked := false // again, after the server said that there is no such object
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := f()
		if err == nil {
			s.met.Store(true)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		why := (*failure)(nil)
		if !errors.As(err, &why) {
			return err
		}
		if errors.Is(err, store.ErrNotFound) && !asked && !why.sure {
			asked = true // one that is out of date must not pass for the truth
		} else if !why.again {
			return err
		}
		if why.moved {
			began, try = time.Now(), 0
		}
		if why.damage {
			damaged++
		}
		pause := pauseAfter(try, why.wait)
		if damaged >= maxDamaged || time.Since(began)+pause > s.patience() {
			return fmt.Errorf("given up after %d tries in %s: %w", try+1, time.Since(began).Round(time.Second), err)
		}
		s.notify(what, try, err)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// patience is short for a server that was never met: its name may be wrong.
func (s *Store) patience() time.Duration {
	p := s.config.Patience
	if p == 0 {
		p = defaultPatience
	}
	if !s.met.Load() {
		p = min(p, firstPatience)
	}
	return p
}

// pauseAfter doubles with each try; half of it is left to chance, so that many
// who failed together do not come back together.
func pauseAfter(try int, wanted time.Duration) time.Duration {
	p := min(firstPause<<min(try, 20), maxPause)
	p = p/2 + rand.N(p/2+1)
	return max(p, min(wanted, 4*maxPause))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// notify tells of trouble that lasts, seldom.
func (s *Store) notify(what string, try int, err error) {
	now := time.Now().UnixNano()
	last := s.told.Load()
	if s.config.Notify == nil || try < 3 || now-last < int64(noticeGap) || !s.told.CompareAndSwap(last, now) {
		return
	}
	s.config.Notify(fmt.Sprintf("%s: %s: trying again for up to %s", what, err, s.patience()))
}
