package retry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"platter/image/store"
)

var errGone = errors.New("network is unreachable")

// A network that is gone for so long, by the bubble's own clock.
func outage(l *Line, length time.Duration) (tries int, err error) {
	back := time.Now().Add(length)
	err = l.Do(context.Background(), "put segment", func() error {
		tries++
		if time.Now().Before(back) {
			return &Failure{Cause: errGone, Again: true}
		}
		return nil
	})
	return tries, err
}

func TestOutageIsWaitedForUntilPatienceIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var notes []string
		l := &Line{Notify: func(s string) { notes = append(notes, s) }}
		l.Met()
		start := time.Now()
		tries, err := outage(l, 59*time.Minute)
		if err != nil || time.Since(start) > 60*time.Minute {
			t.Errorf("59 minutes: got %v after %v", err, time.Since(start))
		}
		// Pauses grow to between 7 and 15 seconds: an hour is some hundreds.
		if tries < 200 || tries > 500 {
			t.Errorf("%d tries in an hour", tries)
		}
		if len(notes) == 0 || len(notes) > 121 || !strings.Contains(notes[0], "put segment: network is unreachable: trying again for up to 1h") {
			t.Errorf("%d notes, the first %q", len(notes), notes)
		}
		start = time.Now()
		_, err = outage(l, 2*time.Hour)
		if !errors.Is(err, errGone) || !errors.Is(err, store.ErrUnreachable) || time.Since(start) > time.Hour || time.Since(start) < 59*time.Minute {
			t.Errorf("two hours: got %v after %v", err, time.Since(start))
		}
	})
}

func TestServerNeverMetIsGivenUpSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, start := new(Line), time.Now()
		if _, err := outage(l, time.Hour); !errors.Is(err, errGone) || time.Since(start) > FirstPatience {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestProgressRenewsPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Line{Patience: time.Minute}
		l.Met()
		steps, start := 0, time.Now()
		err := l.Do(t.Context(), "read", func() error {
			time.Sleep(50 * time.Second)
			if steps++; steps == 20 {
				return nil
			}
			return &Failure{Cause: errGone, Again: true, Moved: true}
		})
		if err != nil || time.Since(start) < 10*time.Minute {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestWhatIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plain := errors.New("denied")
		for _, tt := range []struct {
			err   error
			tries int
		}{
			{plain, 1},
			{&Failure{Cause: plain}, 1},
			{&Failure{Cause: plain, Again: true, Damage: true}, maxDamaged},
			{fmt.Errorf("wrapped: %w", &Failure{Cause: store.ErrNotFound}), 2},
			{&Failure{Cause: store.ErrNotFound, Sure: true}, 1},
		} {
			l, tries := new(Line), 0
			l.Met()
			err := l.Do(t.Context(), "x", func() error { tries++; return tt.err })
			if !errors.Is(err, errors.Unwrap(tt.err)) && !errors.Is(err, tt.err) || tries != tt.tries {
				t.Errorf("%v: got %v after %d tries, want %d", tt.err, err, tries, tt.tries)
			}
		}
	})
}

func TestServersWishAndContextAreHeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, start, tries := new(Line), time.Now(), 0
		l.Met()
		_ = l.Do(t.Context(), "x", func() error {
			if tries++; tries == 2 {
				return nil
			}
			return &Failure{Cause: errGone, Again: true, Wait: 42 * time.Second}
		})
		if d := time.Since(start); d < 42*time.Second {
			t.Errorf("came back after %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		err := l.Do(ctx, "x", func() error { return &Failure{Cause: errGone, Again: true} })
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestMachineThatSleptTriesOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tries := new(Line), 0
		err := l.Do(t.Context(), "open", func() error {
			if tries++; tries == 2 {
				return nil
			}
			time.Sleep(3 * time.Hour)
			return &Failure{Cause: errGone, Again: true}
		})
		if err != nil || tries != 2 {
			t.Errorf("got %v after %d tries", err, tries)
		}
	})
}
