package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"platter/block"
	"platter/block/freeze"
	"platter/block/snapshot"
	"platter/cbt/trace"
)

// snapshotLimit is how much longer filesystems may stand still for each device
// of which a snapshot is taken meanwhile.
const snapshotLimit = 5 * time.Second

// A Joint is some views of this package, all of one tracer, that come to their
// moment together, and with snapshots that others take.
type Joint struct{ views []*view }

// Join has views come to a moment together: Pass of each gives passes without
// end, as long as there was no Moment, and the last one after it. Views of other
// packages are left out.
func Join(list ...snapshot.View) *Joint {
	j := new(Joint)
	for _, s := range list {
		if v, ok := s.(*view); ok {
			v.joint = true
			j.views = append(j.views, v)
		}
	}
	return j
}

// Len returns how many views there are.
func (j *Joint) Len() int { return len(j.views) }

// Near reports whether another pass over the views would not leave less for the
// Moment.
func (j *Joint) Near() bool {
	return !slices.ContainsFunc(j.views, func(v *view) bool { return !v.round.synced })
}

// A Moment is one at which several devices stood still.
type Moment struct {
	Time   time.Time
	Frozen time.Duration // that filesystems stood still, 0 if there were none
	// Unfrozen are filesystems that cannot be frozen, and were written back.
	Unfrozen []string
}

// Moment freezes the filesystems on the views' devices, and on others from which
// snapshots are taken by take meanwhile. An error that wraps ErrAgain leaves the
// views as they were: passes go on, and there may be a Moment later. Whatever the
// error, what take took is of no use.
func (j *Joint) Moment(ctx context.Context, others []string, take func(context.Context) error) (Moment, error) {
	m, err := j.moment(ctx, others, take)
	for _, v := range j.views {
		if err == nil {
			v.round.held = v.hold.set()
		} else {
			v.round.synced, v.round.why = false, err
		}
	}
	return m, err
}

func (j *Joint) moment(ctx context.Context, others []string, take func(context.Context) error) (m Moment, err error) {
	f, err := j.filesystems(others)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	release, err := j.hold()
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, release()) }()

	if err := f.Freeze(); err != nil {
		return m, fmt.Errorf("%w: %w", ErrAgain, err)
	}
	// From here to Thaw nothing but reading, and what others need for snapshots.
	failed := j.rest(ctx, take)
	m.Time = time.Now()
	m.Frozen, err = f.Thaw()
	m.Unfrozen = f.Unfrozen()
	if errors.Is(err, freeze.ErrLate) {
		err = fmt.Errorf("%w: %w", ErrAgain, err)
	}
	if err = errors.Join(failed, err); err != nil {
		return m, err
	}
	for _, v := range j.views {
		if err := v.session.Whole(); err != nil {
			return m, v.named(err)
		}
	}
	for _, v := range j.views {
		v.frozen = max(v.frozen, m.Frozen)
		v.taken, v.moment, v.landed = m.Time, v.session.Number(), v.session.Number()
		v.notes = append(v.notes, frozenNote(m.Frozen, m.Unfrozen))
	}
	return m, nil
}

// filesystems returns all that are to be frozen, those first that lie in others:
// in the list of a device they do, and in that of another they come along with
// what they lie in.
func (j *Joint) filesystems(others []string) (*freeze.Filesystems, error) {
	var all []block.Filesystem
	add := func(list []block.Filesystem) {
		for _, fs := range list {
			if !slices.ContainsFunc(all, func(had block.Filesystem) bool { return had.Point == fs.Point }) {
				all = append(all, fs)
			}
		}
	}
	for _, v := range j.views {
		list, err := v.stacked()
		if err != nil {
			return nil, err
		}
		add(list)
	}
	for _, path := range others {
		on, err := block.StackedOn(path)
		if err != nil {
			return nil, err
		}
		add(on.Filesystems)
	}
	return freeze.Open(all, freezeLimit+time.Duration(len(others))*snapshotLimit)
}

// hold begins a generation of each view, a short one so that little is marked
// twice, and keeps others from beginning any.
func (j *Joint) hold() (release func() error, err error) {
	if len(j.views) == 0 {
		return func() error { return nil }, nil
	}
	var sessions []*trace.Session
	for _, v := range j.views {
		v.round.freezes++
		if err := v.session.Next(); err != nil {
			return nil, v.named(err)
		}
		sessions = append(sessions, v.session)
	}
	return trace.Hold(sessions...)
}

// rest reads what is left of the views, takes what others take, and proves that
// nothing was written to any of the views since.
func (j *Joint) rest(ctx context.Context, take func(context.Context) error) error {
	for _, v := range j.views {
		if err := v.rest(ctx); err != nil {
			return v.named(err)
		}
	}
	if take != nil {
		if err := take(ctx); err != nil {
			return err
		}
	}
	for _, v := range j.views {
		if err := v.rested(); err != nil {
			return v.named(err)
		}
	}
	for _, v := range j.views {
		if v.atRest != nil {
			v.atRest()
		}
	}
	return nil
}

// named says which device an error is of.
func (v *view) named(err error) error {
	if v.joint {
		return fmt.Errorf("%s: %w", v.path, err)
	}
	return err
}
