package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store"
)

// PinOptions say what to pin and why.
type PinOptions struct {
	Image  string // as on the command line
	Reason string
	Hold   bool
	Until  time.Time // zero for no end; not with Hold
	By     string
	Wait   time.Duration // for a prune that is at work
}

// Pin keeps an image from being pruned by any machine.
//
// A prune that began before may not have seen the pin. So Pin waits for those
// that are at work, and looks whether the image is still there: when it returns
// nil, no prune forgets the image any more.
func Pin(ctx context.Context, env *Env, opts PinOptions) (*repo.Pin, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	if !env.Repo.Keys.Writer().MayCollect() {
		return nil, fmt.Errorf("pin: %w", keys.ErrRights)
	}
	m, err := Find(ctx, env, opts.Image)
	if err != nil {
		return nil, err
	}
	pin, err := putPin(ctx, env, m, opts)
	if err != nil {
		return nil, err
	}
	if err := outlive(ctx, env, m, opts.Wait); err != nil {
		return pin, fmt.Errorf("pin image %.8s: %w", m.ID, err)
	}
	return pin, nil
}

func (o *PinOptions) check() error {
	switch {
	case strings.TrimSpace(o.Reason) == "":
		return fmt.Errorf("pin: say why, for whoever wonders in a year: %w", ErrUsage)
	case o.Hold && !o.Until.IsZero():
		return fmt.Errorf("pin: a legal hold has no end but its removal: %w", ErrUsage)
	}
	return nil
}

func putPin(ctx context.Context, env *Env, m *image.Manifest, opts PinOptions) (*repo.Pin, error) {
	pin := &repo.Pin{
		Manifest: env.Repo.ManifestName(m), Image: m.ID, Volume: m.Volume, Seq: m.Seq, Reason: opts.Reason, Hold: opts.Hold, By: opts.By, Until: opts.Until.UTC(),
	}
	now, err := env.Repo.Store.Now(ctx)
	if err != nil {
		return nil, err
	}
	if pin.Ended(now) {
		return nil, fmt.Errorf("pin until %s: that is over: %w", opts.Until.Format(time.RFC3339), ErrUsage)
	}
	return pin, env.Repo.PutPin(ctx, pin)
}

// pollPrunes is how often leases are looked at while a prune is at work.
const pollPrunes = time.Second

// outlive waits until no prune is at work that may have begun before now, and
// then makes sure that the image is still there.
func outlive(ctx context.Context, env *Env, m *image.Manifest, wait time.Duration) error {
	runs := map[string]bool{}
	for first := true; ; first = false {
		live, _, err := env.Repo.Leases(ctx)
		if err != nil {
			return err
		}
		var atWork *repo.Lease
		for i, l := range live {
			if l.Kind == repo.LeasePrune && (first || runs[l.Run]) {
				runs[l.Run] = true
				atWork = &live[i]
			}
		}
		if atWork == nil {
			break
		}
		if wait <= 0 {
			return fmt.Errorf("a prune is at work on %s that may not have seen the pin: when it is done, look whether the image is there, else undelete it", atWork.Host)
		}
		pause := min(wait, pollPrunes)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			wait -= pause
		}
	}
	name := env.Repo.ManifestName(m)
	if _, err := env.Repo.Store.Head(ctx, name); errors.Is(err, store.ErrNotFound) {
		return errors.New("it was pruned at the same moment: undelete it")
	} else if err != nil {
		return err
	}
	return nil
}

// UnpinOptions say which pins to remove.
type UnpinOptions struct {
	Image string
	Hold  bool // legal holds, and only those; otherwise all other pins
}

// Unpin removes the pins of an image, or its legal holds, and returns them.
// Keys that only write images cannot.
func Unpin(ctx context.Context, env *Env, opts UnpinOptions) (removed []repo.Pin, err error) {
	if !env.Repo.Keys.Writer().MayCollect() {
		return nil, fmt.Errorf("unpin: %w", keys.ErrRights)
	}
	m, err := Find(ctx, env, opts.Image)
	if err != nil {
		return nil, err
	}
	pins, err := env.Repo.Pins(ctx)
	if err != nil {
		return nil, err
	}
	pins = slices.DeleteFunc(pins, func(p repo.Pin) bool { return p.Manifest != env.Repo.ManifestName(m) })
	for i := range pins {
		if pins[i].Hold != opts.Hold {
			continue
		}
		if err := env.Repo.RemovePin(ctx, &pins[i]); err != nil {
			return removed, err
		}
		removed = append(removed, pins[i])
	}
	switch {
	case len(removed) > 0:
		return removed, nil
	case opts.Hold:
		return nil, fmt.Errorf("unpin image %.8s of %s: it is under no legal hold", m.ID, m.Volume)
	case len(pins) > 0:
		return nil, fmt.Errorf("unpin image %.8s of %s: it is under a legal hold (%s), which only --hold removes", m.ID, m.Volume, pins[0].Reason)
	}
	return nil, fmt.Errorf("unpin image %.8s of %s: it is not pinned", m.ID, m.Volume)
}
