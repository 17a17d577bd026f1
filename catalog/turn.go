package catalog

import "context"

// A turn is held by one at a time. It may be held while a segment is read from
// a slow store, so that who waits for it heeds his context.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) leave() { <-t }
