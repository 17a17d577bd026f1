// Package retry makes operations of a store again that failed for reasons that
// pass: a network that is gone for a while, a server that restarts.
//
// The pauses grow and are left to chance by half, so that many who failed
// together do not come back together. What gets on, even in small steps, is
// never given up; what stands still is, when patience is over.
package retry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"platter/image/store"
)

const (
	// DefaultPatience is for a store that is told nothing else.
	DefaultPatience = time.Hour
	// FirstPatience is for a server that was never met: its name may be wrong.
	FirstPatience = 20 * time.Second

	firstPause = 100 * time.Millisecond
	maxPause   = 15 * time.Second
	noticeGap  = 30 * time.Second
	// maxDamaged is how often data may arrive damaged in one operation.
	maxDamaged = 5
)

// A Failure is a request that did not go well, and what is to be made of it.
// Errors of other types end an operation.
type Failure struct {
	Cause error
	// Again: it may go well another time. What damages data on its way is
	// given few tries only.
	Again, Damage bool
	// Doubt: the request may have had its effect all the same.
	Doubt bool
	// Sure: the server was asked in two ways whether there is no object. One
	// that was not is asked once more.
	Sure bool
	// Moved: something was got before it failed.
	Moved bool
	Wait  time.Duration // that the server asked for
}

func (f *Failure) Error() string { return f.Cause.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Cause }

// A Line is what leads to a server, and knows how it does. It is safe for
// concurrent use.
type Line struct {
	// Patience is how long an operation is tried without any progress, 0 for
	// DefaultPatience. It is FirstPatience at most until the server is met.
	Patience time.Duration
	// Notify is told, in a sentence, of operations that are tried again and
	// again. It is called from several goroutines; nil for nobody.
	Notify func(string)

	met  atomic.Bool
	told atomic.Int64
}

// Met notes that the server has answered.
func (l *Line) Met() { l.met.Store(true) }

// Do calls f until it succeeds, or fails for good, or patience is over, which is
// store.ErrUnreachable.
func (l *Line) Do(ctx context.Context, what string, f func() error) error {
	began, damaged := time.Now(), 0
	asked := false // again, after the server said that there is no such object
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := f()
		if err == nil {
			l.Met()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		why := (*Failure)(nil)
		if !errors.As(err, &why) {
			return err
		}
		if errors.Is(err, store.ErrNotFound) && !asked && !why.Sure {
			asked = true // one that is out of date must not pass for the truth
		} else if !why.Again {
			return err
		}
		if why.Moved {
			began, try = time.Now(), 0
		}
		if why.Damage {
			damaged++
		}
		pause := pauseAfter(try, why.Wait)
		// One try alone proves nothing: the machine may have slept meanwhile.
		if damaged >= maxDamaged || try > 0 && time.Since(began)+pause > l.patience() {
			return l.giveUp(why, try+1, time.Since(began), err)
		}
		l.notify(what, try, err)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func (l *Line) giveUp(why *Failure, tries int, after time.Duration, err error) error {
	err = fmt.Errorf("given up after %d tries in %s: %w", tries, after.Round(time.Second), err)
	if why.Damage || errors.Is(err, store.ErrNotFound) {
		return err
	}
	return &unreachable{err}
}

// unreachable is store.ErrUnreachable in the words of its cause.
type unreachable struct{ error }

func (u *unreachable) Unwrap() error        { return u.error }
func (u *unreachable) Is(target error) bool { return target == store.ErrUnreachable }

func (l *Line) patience() time.Duration {
	p := l.Patience
	if p == 0 {
		p = DefaultPatience
	}
	if !l.met.Load() {
		p = min(p, FirstPatience)
	}
	return p
}

// pauseAfter doubles with each try.
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
func (l *Line) notify(what string, try int, err error) {
	now := time.Now().UnixNano()
	last := l.told.Load()
	if l.Notify == nil || try < 3 || now-last < int64(noticeGap) || !l.told.CompareAndSwap(last, now) {
		return
	}
	l.Notify(fmt.Sprintf("%s: %s: trying again for up to %s", what, err, l.patience()))
}
