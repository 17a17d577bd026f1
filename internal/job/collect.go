package job

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// clockSlack is how far the store's clock may be from this machine's, or
// behind a time that the repository has seen, before nothing is deleted.
const clockSlack = time.Hour

// Collect gives space back. It never blocks a backup, and may be stopped at
// any moment: the next one goes on from what is there.
//
//  1. It takes a lease, and refuses to start where another collection has one.
//  2. It lists segments, then leases, then manifests, marks every record that
//     an image needs, and publishes the list of segments in which none is.
//  3. It lists leases and manifests again, and deletes what was condemned
//     longer ago than the grace, is needed by nobody, and that every backup at
//     work knew as condemned when it began (see delete).
//  4. It repacks: of segments that hold too much of no use, and of small ones
//     of which there are many, it moves the live records as they are stored to
//     new segments. When these are durable, and where the records went is
//     written down, it publishes a list on which the old ones stand. From here
//     on they are as any other condemned segment: backups take what is in them
//     for absent, and they are deleted by a later collection, as of step 3.
//  5. It merges the footers of segments that newcomers would have to read one
//     by one into indexes.
//
// A list is claimed by put-if-absent under the epoch after the newest. So of
// two collections that meet all the same, because one slept past its lease,
// only one publishes; the other decides again or gives up.
//
// Anything it cannot read stops it before the first deletion.
func Collect(ctx context.Context, env *Env, opts CollectOptions) (*CollectReport, error) {
	start := time.Now()
	c, err := beginCollect(ctx, env, opts)
	if err != nil {
		return nil, err
	}
	defer c.end(ctx)
	for {
		err := c.condemn(ctx)
		if errors.Is(err, store.ErrExists) && ctx.Err() == nil {
			continue // another collector published first
		}
		if err != nil {
			return nil, err
		}
		break
	}
	err = c.delete(ctx)
	if err == nil {
		err = c.repack(ctx)
	}
	if err == nil && !opts.DryRun {
		err = errors.Join(c.index(ctx), c.tidy(ctx))
	}
	c.finish()
	c.report.Elapsed = time.Since(start)
	return c.report, err
}

// A collector is one collection.
type collector struct {
	env    *Env
	opts   CollectOptions
	run    [16]byte
	holder *repo.Holder
	marks  *marks
	report *CollectReport
	now    time.Time // by the store's clock
	state  *repo.Condemned
	sizes  map[image.SegmentID]int64 // of all segments, as listed before marking
	young  map[image.SegmentID]bool  // too young to be condemned
	total  int64
	leases []repo.Lease // as listed last
	stale  []string
	gone   map[image.SegmentID]bool // deleted by this run, or to be in a dry one
}

func beginCollect(ctx context.Context, env *Env, opts CollectOptions) (*collector, error) {
	if opts.Grace < 0 || opts.MinAge < 0 || opts.MaxDelete <= 0 || opts.MaxDelete > 1 || opts.MaxUnused < 0 || opts.MaxUnused > 1 {
		return nil, fmt.Errorf("collect: %w: grace %v, min age %v, max delete %v, max unused %v: want times of 0 or more and shares of at most 100 %%, and some to delete",
			ErrUsage, opts.Grace, opts.MinAge, opts.MaxDelete, opts.MaxUnused)
	}
	c := &collector{
		env: env, opts: opts, report: &CollectReport{DryRun: opts.DryRun}, marks: newMarks(env),
		gone: map[image.SegmentID]bool{},
	}
	if !env.Repo.Keys.Writer().MayCollect() {
		return nil, fmt.Errorf("collect: %w", keys.ErrRights)
	}
	rand.Read(c.run[:])
	if err := c.alone(ctx); err != nil {
		return nil, err
	}
	if !opts.DryRun {
		var err error
		if c.holder, err = env.Repo.Acquire(ctx, repo.LeaseCollect, c.run); err != nil {
			return nil, err
		}
		// Another may have looked at the same moment.
		if err := c.alone(ctx); err != nil {
			c.end(ctx)
			return nil, err
		}
	}
	if err := env.sync(ctx); err != nil {
		c.end(ctx)
		return nil, err
	}
	return c, nil
}

// alone returns an error while another collection is at work.
func (c *collector) alone(ctx context.Context) error {
	live, _, err := c.env.Repo.Leases(ctx)
	if err != nil {
		return fmt.Errorf("collect: read leases: %w", err)
	}
	for _, l := range live {
		if l.Kind == repo.LeaseCollect && l.Run != hex.EncodeToString(c.run[:]) {
			return fmt.Errorf("collect: another collection is at work on %s (process %d, since %s): let it finish",
				l.Host, l.PID, l.Renewed.Format(time.RFC3339))
		}
	}
	return nil
}

func (c *collector) end(ctx context.Context) {
	if c.holder != nil {
		c.holder.Release(ctx)
	}
}

// condemn marks what is in use and publishes the new list. What is listed
// first can only be found in use by what is listed after it.
func (c *collector) condemn(ctx context.Context) (err error) {
	if c.state, err = c.env.Repo.NewestCondemned(ctx); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if len(c.state.Unread) > 0 {
		return fmt.Errorf("collect: %s: %w: nobody knows what it condemns; look at it, then remove it by hand", c.state.Unread[0], image.ErrCorrupt)
	}
	if c.now, err = c.env.Repo.Store.Now(ctx); err != nil {
		return err
	}
	c.report.Spared = 0
	c.sizes, c.young, c.total = map[image.SegmentID]int64{}, map[image.SegmentID]bool{}, 0
	err = c.env.Repo.Segments(ctx, func(id image.SegmentID, size int64, modified time.Time) error {
		c.sizes[id] = size
		c.total += size
		if c.now.Sub(modified) < c.opts.MinAge {
			c.young[id] = true
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("collect: list segments: %w", err)
	}
	if err := c.marks.reset(ctx, c.sizes, c.state.IDs()); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if err := c.look(ctx); err != nil {
		return err
	}
	next := &repo.Condemned{Epoch: c.state.Next, Time: c.now.UTC(), Run: hex.EncodeToString(c.run[:]), Seen: c.marks.seen}
	changed := false
	for _, s := range c.state.Segments {
		switch _, there := c.sizes[s.Segment]; {
		case !there:
			changed = true
		case c.marks.used(s.Segment):
			c.report.Spared++
			changed = true
		default:
			next.Segments = append(next.Segments, s)
		}
	}
	fresh, err := c.unused(ctx)
	if err != nil {
		return err
	}
	for _, id := range fresh {
		next.Segments = append(next.Segments, repo.CondemnedSegment{Segment: id, Size: c.sizes[id], Since: c.now.UTC(), Epoch: next.Epoch})
	}
	if (changed || len(fresh) > 0) && !c.opts.DryRun {
		if err := c.env.Repo.PublishCondemned(ctx, next); err != nil {
			return err
		}
		next.Next = next.Epoch + 1
	} else {
		next.Epoch, next.Next = c.state.Epoch, c.state.Next
	}
	c.state = next
	c.report.Segments = len(c.sizes)
	return nil
}

// atWork returns the runs that have a lease.
func (c *collector) atWork() map[string]bool {
	runs := map[string]bool{}
	for _, l := range c.leases {
		runs[l.Run] = true
	}
	return runs
}

// look lists leases, then marks what the images need that are there now.
func (c *collector) look(ctx context.Context) (err error) {
	if c.leases, c.stale, err = c.env.Repo.Leases(ctx); err != nil {
		return fmt.Errorf("collect: read leases: %w", err)
	}
	return c.marks.images(ctx)
}

// unused returns the segments to condemn now.
func (c *collector) unused(ctx context.Context) ([]image.SegmentID, error) {
	condemned, atWork := c.state.IDs(), c.atWork()
	var list []image.SegmentID
	for id := range c.sizes {
		if c.marks.used(id) || condemned[id] || c.young[id] {
			continue
		}
		// Segments of a run at work are not in any manifest yet.
		f, err := c.env.Repo.Footer(ctx, id)
		if err == nil && atWork[hex.EncodeToString(f.Run[:])] || errors.Is(err, store.ErrNotFound) {
			continue // or another collector was quicker
		}
		if err != nil && !errors.Is(err, image.ErrCorrupt) {
			return nil, fmt.Errorf("collect: %w", err)
		}
		list = append(list, id)
	}
	slices.SortFunc(list, func(a, b image.SegmentID) int { return slices.Compare(a[:], b[:]) })
	return list, nil
}

// delete removes the segments whose time has come, after one more look.
func (c *collector) delete(ctx context.Context) error {
	due, lost := c.due()
	if len(due) > 0 {
		if problem := c.clock(ctx); problem != "" {
			c.report.Notices = append(c.report.Notices, problem)
			due = nil
		}
	}
	if share := float64(lost) / float64(max(1, c.total)); len(due) > 0 && share > c.opts.MaxDelete {
		return fmt.Errorf("collect: %d segments, %.0f %% of what is stored, would be deleted, at most %.0f %% may be: look at them, then say --max-delete",
			len(due), 100*share, 100*c.opts.MaxDelete)
	}
	if len(due) == 0 {
		return nil
	}
	// Leases first, then images: a backup gives its lease up only after its
	// manifest is there to be listed.
	if err := c.look(ctx); err != nil {
		return err
	}
	proof := c.newProof()
	var gone []image.SegmentID
	for _, s := range due {
		if c.marks.used(s.Segment) {
			c.report.Spared++
			continue
		}
		if l := c.awaits(s); l != nil {
			c.report.Notices = append(c.report.Notices, fmt.Sprintf("segment %s waits for a backup that began before it was condemned: %s, of host %q, writer %.16s", s.Segment, l.Name, l.Host, l.Writer))
			continue
		}
		problem, err := proof.needless(ctx, s.Segment)
		if err != nil {
			return errors.Join(err, c.forget(ctx, gone))
		}
		if problem != "" {
			c.report.Notices = append(c.report.Notices, problem)
			continue
		}
		if err := c.remove(ctx, s); err != nil {
			return errors.Join(err, c.forget(ctx, gone))
		}
		gone = append(gone, s.Segment)
	}
	return c.forget(ctx, gone)
}

// remove deletes a segment, in a dry run only in the report.
func (c *collector) remove(ctx context.Context, s repo.CondemnedSegment) error {
	if !c.opts.DryRun {
		if !c.holder.Valid() {
			// Others may have looked away from this run: what it saw is old.
			return errors.New("collect: the lease ran out: run it again")
		}
		if err := c.env.Repo.Store.Delete(ctx, segment.Name(s.Segment)); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	c.gone[s.Segment] = true
	c.report.Deleted = append(c.report.Deleted, c.tell(s))
	c.report.Freed += s.Size
	return nil
}

// due returns the condemned segments whose grace is over, and how many of their
// bytes are stored nowhere else: what was moved out of them is not lost with
// them.
func (c *collector) due() (list []repo.CondemnedSegment, lost int64) {
	for _, s := range c.state.Segments {
		if !s.Since.Add(c.opts.Grace).After(c.now) {
			list = append(list, s)
			lost += s.Size - s.Moved
		}
	}
	return list, lost
}

// settled reports whether every backup at work knew that s is condemned when
// it began.
func (c *collector) awaits(s repo.CondemnedSegment) *repo.Lease {
	for i := range c.leases {
		if l := &c.leases[i]; l.Kind != repo.LeaseCollect && l.Epoch < s.Epoch {
			return l
		}
	}
	return nil
}

// clock says what is wrong with the store's clock, or nothing.
func (c *collector) clock(ctx context.Context) string {
	const nothing = "nothing is deleted until the clocks agree; condemned segments wait"
	if apart := c.now.Sub(c.env.Repo.Machine.Now()).Abs(); apart > clockSlack {
		return fmt.Sprintf("the store's clock and this machine's are %v apart: %s", apart.Round(time.Second), nothing)
	}
	if newest := c.marks.newest; newest.Sub(c.now) > clockSlack {
		return fmt.Sprintf("the store's clock says %s, and image %s was made at %s: %s", c.now.Format(time.RFC3339), c.marks.newestName, newest.Format(time.RFC3339), nothing)
	}
	for _, s := range c.state.Segments {
		if s.Since.Sub(c.now) > clockSlack {
			return fmt.Sprintf("the store's clock says %s, and a segment was condemned at %s: %s", c.now.Format(time.RFC3339), s.Since.Format(time.RFC3339), nothing)
		}
	}
	return ""
}

// finish puts what waits into the report.
func (c *collector) finish() {
	c.report.Live = c.total
	for _, s := range c.state.Segments {
		if _, listed := c.sizes[s.Segment]; listed {
			c.report.Live -= s.Size
		}
		if !c.gone[s.Segment] && !c.marks.used(s.Segment) {
			c.report.Condemned = append(c.report.Condemned, c.tell(s))
			c.report.Waiting += s.Size
		}
	}
}

func (c *collector) tell(s repo.CondemnedSegment) Condemned {
	return Condemned{Segment: s.Segment, Size: s.Size, Since: s.Since, Goes: s.Since.Add(c.opts.Grace)}
}

func (c *collector) forget(ctx context.Context, gone []image.SegmentID) error {
	if c.opts.DryRun {
		return nil
	}
	return c.env.Catalog.DropSegments(context.WithoutCancel(ctx), gone)
}

// tidy removes lists that nobody at work can have begun before, and leases of
// the dead.
func (c *collector) tidy(ctx context.Context) error {
	if err := c.tidyMoves(ctx); err != nil {
		return err
	}
	oldest := c.state.Epoch
	for _, l := range c.leases {
		oldest = min(oldest, l.Epoch)
	}
	for _, s := range c.state.Segments {
		oldest = min(oldest, s.Epoch)
	}
	if err := c.env.Repo.DropCondemnedBefore(ctx, oldest); err != nil {
		return err
	}
	for _, name := range c.stale {
		if err := c.env.Repo.Store.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	if t, ok := c.env.Repo.Store.(interface {
		RemoveTemps(ctx context.Context, olderThan time.Duration) (int, error)
	}); ok {
		_, err := t.RemoveTemps(ctx, 24*time.Hour)
		return err
	}
	return nil
}
