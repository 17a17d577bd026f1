package live

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"platter/block"
	"platter/block/freeze"
	"platter/block/snapshot"
	"platter/cbt"
)

const (
	// maxPasses are those before the first freeze.
	maxPasses = 10
	// maxFreezes is how often to try.
	maxFreezes = 5
)

// lookLimit is how long a pass waits to see the disk at rest.
const lookLimit = 100 * time.Millisecond

// A round is the passes up to one moment.
type round struct {
	passes  int
	bytes   int64 // of the pass before
	synced  bool  // the last pass was after a sync
	freezes int
	why     error    // why the last freeze was in vain
	held    *cbt.Set // what was read in a moment that others share; nil before
}

// begin sees to it that what was under way before the session began is on the
// disk when reading begins: nobody marked it.
func (v *view) begin(ctx context.Context) error {
	if !v.session.Counted() {
		// Of the device mapper, most likely: what it had in flight before nobody
		// counted, and from now on the tracer does.
		if err := freeze.Drain(v.path, freezeLimit); err == nil {
			v.session.Drained()
		} else if !errors.Is(err, freeze.ErrNoMapper) {
			return fmt.Errorf("%w: %w", snapshot.ErrUnfit, err)
		}
	}
	seen, err := v.look(time.Second)
	if err == nil && !seen {
		// It is never at rest by itself: hold it for a moment.
		var f *freeze.Filesystems
		if f, err = v.alone().filesystems(nil); err == nil {
			if err = f.Freeze(); err == nil {
				err = v.drain()
				v.landed = v.session.Number()
				_, late := f.Thaw()
				err = errors.Join(err, late)
			}
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("wait for %s: %w: %w", v.path, snapshot.ErrUnfit, err)
	}
	return v.session.Next()
}

// look waits a while for a moment at which nothing is in flight. What is
// written by then has landed.
func (v *view) look(d time.Duration) (seen bool, err error) {
	for end := time.Now().Add(d); ; time.Sleep(200 * time.Microsecond) {
		n, err := v.session.InFlight()
		if n == 0 {
			v.landed = v.session.Number()
		}
		if n == 0 || err != nil || time.Now().After(end) {
			return n == 0, err
		}
	}
}

// Pass copies again what was marked during the two passes before, since what
// was on its way to the disk while one read may have landed after: more than
// two where the disk was never seen at rest between them. It goes on while
// that gets less, then once more when all is written back, and the last pass
// is read in a freeze.
func (v *view) Pass(ctx context.Context) (src block.Source, again *cbt.Set, last bool, err error) {
	r := &v.round
	if r.held != nil {
		held := r.held
		v.round, v.still = round{}, nil
		return &v.hold, held, true, nil
	}
	if r.synced && !v.joint {
		held, err := v.between(ctx)
		if err == nil {
			v.round, v.still = round{}, nil
			return &v.hold, held, true, nil
		}
		if errors.Is(err, errBefore) {
			return nil, nil, true, err
		}
		if ctx.Err() != nil || !errors.Is(err, ErrAgain) || r.freezes >= maxFreezes {
			return v.giveUp(ctx, err)
		}
		r.synced, r.why = false, err
	}
	if r.passes > 0 && r.converged() {
		if err := v.sync(); err != nil {
			return v.giveUp(ctx, err)
		}
		r.synced = true
	}
	from := v.landed
	if _, err := v.look(lookLimit); err != nil {
		return v.giveUp(ctx, err)
	}
	if err := v.session.Next(); err != nil {
		return v.giveUp(ctx, err)
	}
	again = v.session.Between(from, v.session.Number())
	r.passes, r.bytes = r.passes+1, again.Bytes()
	return v.Source, again, false, ctx.Err()
}

// converged reports whether another pass would not leave less for the freeze.
func (r *round) converged() bool { return r.bytes < small || r.passes >= maxPasses || r.freezes > 0 }

// small is so little that the freeze itself takes longer than to read it.
const small = 4 << 20

// giveUp ends the round with a copy of no one moment.
func (v *view) giveUp(ctx context.Context, why error) (block.Source, *cbt.Set, bool, error) {
	if ctx.Err() != nil {
		return nil, nil, true, context.Cause(ctx)
	}
	v.round = round{}
	v.still = fmt.Errorf("copy %s while it is written to: %w", v.path, why)
	return v.Source, v.session.Since(v.landed), true, nil
}

func (v *view) sync() error {
	list, err := v.stacked()
	if err != nil {
		return err
	}
	return freeze.Sync(list)
}

// alone is a moment of this view and no other.
func (v *view) alone() *Joint { return &Joint{[]*view{v}} }

// stacked returns the filesystems on the device, and takes note of its swap.
func (v *view) stacked() ([]block.Filesystem, error) {
	on, err := block.StackedOn(v.path)
	v.hold.swap = on.Swap
	return on.Filesystems, err
}

// ErrAgain means that a freeze was in vain, and another one may not be.
var ErrAgain = errors.New("the disk did not come to rest")

// errBefore wraps what the caller's part before the freeze fails with.
var errBefore = errors.New("get the device ready")

// between freezes between what the caller wants done before and after.
func (v *view) between(ctx context.Context) (held *cbt.Set, err error) {
	if v.before == nil {
		return v.freeze(ctx)
	}
	if err = v.before(ctx); err != nil {
		err = fmt.Errorf("%w: %w", errBefore, err)
	} else {
		held, err = v.freeze(ctx)
	}
	v.after(ctx, err)
	return held, err
}

// freeze reads what is left while nothing is written, and returns it.
func (v *view) freeze(ctx context.Context) (*cbt.Set, error) {
	if _, err := v.alone().moment(ctx, nil, nil); err != nil {
		return nil, err
	}
	return v.hold.set(), nil
}

func frozenNote(took time.Duration, unfrozen []string) string {
	note := fmt.Sprintf("filesystems stood still for %d ms", took.Milliseconds())
	if len(unfrozen) > 0 {
		note += ", but for what cannot and was at rest: " + strings.Join(unfrozen, ", ")
	}
	return note
}

// rest reads what is left into memory: nothing was on its way to the disk when
// it began.
func (v *view) rest(ctx context.Context) error {
	if err := v.drain(); err != nil {
		return err
	}
	if len(v.hold.swap) > 0 {
		// To tell writes to swap from others takes a generation.
		if err := v.session.NextHeld(); err != nil {
			return err
		}
	}
	v.events = v.session.Events()
	return v.hold.fill(ctx, v.session, v.landed)
}

// rested proves that what rest read is of one moment, and of this one: nothing
// was written since. Where the kernel may go on swapping, only what lies outside
// of swap has to be at rest: what swap holds is of no use to a machine that
// starts from the image.
func (v *view) rested() error {
	if len(v.hold.swap) > 0 {
		if !v.session.Within(v.hold.swap) {
			return errWritten
		}
		return nil
	}
	n, err := v.session.InFlight()
	if err != nil {
		return err
	}
	if n != 0 || v.session.Events() != v.events {
		return errWritten
	}
	return nil
}

// Errors that need no memory.
var (
	errWritten  = fmt.Errorf("%w: something writes to it that no filesystem holds back", ErrAgain)
	errInFlight = fmt.Errorf("%w: writes did not land", ErrAgain)
	errTooMuch  = fmt.Errorf("%w: more was written than fits into memory", ErrAgain)
)

// drain waits until nothing is in flight.
func (v *view) drain() error {
	for end := time.Now().Add(drainLimit); ; time.Sleep(200 * time.Microsecond) {
		n, err := v.session.InFlight()
		if n == 0 || err != nil {
			return err
		}
		if time.Now().After(end) {
			return errInFlight
		}
	}
}
