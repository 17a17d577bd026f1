package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"platter/block"
	"platter/block/snapshot"
	"platter/cbt"
	"platter/image"
	"platter/image/reader"
)

// A Rollback tells how an in-place restore knew what to look at.
type Rollback struct {
	Parent    string `json:"parent"`            // the newest tracked image, hex
	Tracker   string `json:"tracker"`           // that vouches for all the time since
	Differs   int64  `json:"differs_bytes"`     // between the two images
	Written   int64  `json:"written_bytes"`     // since the parent, says the tracker
	LeftOut   int64  `json:"left_out_bytes"`    // of free space that the parent did not keep: looked at
	Resumed   string `json:"resumed,omitempty"` // when the rollback that was cut off had begun
	Why       string `json:"why,omitempty"`     // why every block was compared after all
	Looked    int64  `json:"looked_at_bytes"`
	Generated bool   `json:"new_generation"` // the tracker began a new generation at the end
}

// A rollback is an in-place restore of a device that a tracker has watched
// since a newer image of it was made: only what differs between the two images
// and what was written since can be another than wanted.
//
// A tracker is a hint. Whatever does not join up has every block compared, and
// the places where writes cannot hide are looked at in any case.
type rollback struct {
	*restorer
	parent   *image.Manifest
	device   block.Device // before we held it
	provider snapshot.Provider
	opener   cbt.Opener
	journal  *journal
	report   *Rollback
	mu       sync.Mutex // of the report, while blocks are compared
}

// planRollback finds the newest tracked image of the device and the tracker
// that goes on from it. why says what is missing, and both are empty where
// trackers have nothing to do with the restore.
func (w *wanted) planRollback(ctx context.Context, env *Env, opts *RestoreOptions, t *block.TargetPlan) (r *rollback, why string) {
	if !opts.InPlace || opts.Ways.Trackers == nil || w.part != nil || t.Create {
		return nil, ""
	}
	all, _, err := Images(ctx, env, w.image.Volume)
	if err != nil {
		return nil, err.Error()
	}
	var parent *image.Manifest
	for _, m := range all {
		if m.Line() == w.image.Line() && m.Tracker.History != "" && (parent == nil || m.Seq > parent.Seq) {
			parent = m
		}
	}
	if parent == nil {
		return nil, "no image of the volume was tracked"
	}
	r = &rollback{parent: parent, report: &Rollback{Parent: parent.ID.String(), Tracker: parent.Tracker.History}}
	if why = r.noParent(w, t); why != "" {
		return nil, why
	}
	if r.device, err = opts.Ways.Find(ctx, opts.Target); err != nil {
		return nil, err.Error()
	}
	for _, o := range opts.Ways.Trackers {
		for _, p := range opts.Ways.Views {
			if o.Name() == parent.Tracker.History && o.Method() == p.Name() {
				r.opener, r.provider = o, p
			}
		}
	}
	if r.opener == nil {
		return nil, "this program does not know the tracker " + parent.Tracker.History
	}
	if fit := r.provider.Fits(ctx, r.device); !fit.OK {
		return nil, fmt.Sprintf("tracker %s: %s", parent.Tracker.History, fit.Why)
	}
	if opts.State == "" {
		return nil, "there is no place for its journal"
	}
	if on, err := block.Carries(opts.Target, opts.State); err != nil || on {
		return nil, "its journal would lie on the target itself"
	}
	return r, ""
}

// noParent says why nothing can be taken over from the tracked image.
func (r *rollback) noParent(w *wanted, t *block.TargetPlan) string {
	p := r.parent
	switch {
	case p.Fuzzy:
		return "the newest tracked image is fuzzy"
	case p.Missed():
		return "the tracker missed a write"
	case otherDevice(p.Device, t.Info):
		return "the tracked images are of another device: " + p.Device.Identity
	case p.BlockSize != w.image.BlockSize:
		return "the newest tracked image has blocks of another size"
	case p.Size != w.image.Size || t.Info.Size != p.Size || !w.fit.Empty():
		return fmt.Sprintf("the image has %d bytes, the newest tracked one %d, the target %d", w.image.Size, p.Size, t.Info.Size)
	}
	return ""
}

// begin finds out what to look at. It is called when the target is ours alone,
// and writes nothing but the journal.
func (r *rollback) begin(ctx context.Context) error {
	set, err := r.changed(ctx)
	if err == nil && r.report.Why == "" {
		if err = r.prove(ctx, set); err == nil && r.report.Why == "" {
			r.only = set
		}
	}
	if err != nil {
		return err
	}
	if r.only != nil {
		r.report.Looked = r.only.Bytes()
	} else {
		r.env.warn("%s: comparing every block: %s", r.opts.Target, r.report.Why)
		r.report.Looked = r.image.Size
	}
	r.journal, err = openJournal(r.opts.State, r.image, r.parent, &r.device.Info, r.report)
	return err
}

// changed returns what can be another than in the image, but for what it says
// in the report.
func (r *rollback) changed(ctx context.Context) (*cbt.Set, error) {
	set, why, err := r.since(ctx)
	if err != nil || why != "" {
		r.report.Why = why
		return nil, err
	}
	r.report.Written = set.Bytes()
	d, err := diff(ctx, r.reader, r.image, r.parent)
	if err != nil {
		// The image's own map is read again by the restore: if that is what
		// is damaged, it will say so.
		r.report.Why = err.Error()
		return nil, ctx.Err()
	}
	r.report.Differs = d.Bytes
	for _, e := range slices.Concat(d.Extents, r.parent.Unreadable, r.image.Unreadable) {
		set.Add(e)
	}
	if r.parent.LeftOut {
		before := set.Bytes()
		if err := r.leftOut(ctx, set); err != nil {
			r.report.Why = err.Error()
			return nil, ctx.Err()
		}
		r.report.LeftOut = set.Bytes() - before
	}
	return set, nil
}

// since asks the tracker what was written since the tracked image, by a view
// that is let go before anything is written.
func (r *rollback) since(ctx context.Context) (set *cbt.Set, why string, err error) {
	err = r.look(ctx, func(t cbt.Tracker) error {
		set, why, err = cbt.Since(ctx, t, r.parent.Tracker.Generation, r.image.Size)
		return err
	})
	if ctx.Err() != nil {
		return nil, "", context.Cause(ctx)
	}
	if err != nil {
		return nil, err.Error(), nil
	}
	return set, why, nil
}

// look opens the tracker, which begins a generation, for f.
func (r *rollback) look(ctx context.Context, f func(cbt.Tracker) error) (err error) {
	limited, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	consumer := snapshot.Consumer{Repository: fmt.Sprintf("%x", r.env.Repo.ID), Volume: r.image.Volume}
	view, err := r.provider.Take(limited, r.device, snapshot.Options{Consumer: consumer, Run: snapshot.ThisProcess(), BlockSize: int64(r.image.BlockSize)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	t, err := r.opener.Open(ctx, view, consumer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if _, err := t.Mark(ctx); err != nil {
		return err
	}
	return f(t)
}

// leftOut adds what is zero in the tracked image: it may have been free space
// that was not read, and hold anything.
func (r *rollback) leftOut(ctx context.Context, set *cbt.Set) error {
	bs, blocks := int64(r.parent.BlockSize), r.parent.Blocks()
	add := func(first, count int64) {
		set.Add(block.Extent{Offset: first * bs, Length: min(count, blocks-first) * bs})
	}
	if r.parent.Root.IsZero() {
		add(0, blocks)
		return nil
	}
	return r.reader.WalkAll(ctx, reader.MapOf(r.parent), 0, blocks, reader.Visitor{Page: func(n reader.Node, p *image.Page) error {
		span := int64(1)
		if n.Level > 0 {
			span = image.PageBlocks(n.Level - 1)
		}
		for i, id := range p.Entries {
			if at := n.First + int64(i)*span; id.IsZero() && at < blocks {
				add(at, span)
			}
		}
		return nil
	}})
}

// prove looks at the places where every writer leaves a trace, whatever the
// tracker says, and adds them to the set. What differs there and is not in the
// set already was missed.
func (r *rollback) prove(ctx context.Context, set *cbt.Set) error {
	places := canaries(r.parent.Device)
	known := cbt.NewSet(set.Size())
	known.Union(set)
	bs := int64(r.image.BlockSize)
	r.only = cbt.NewSet(set.Size())
	defer func() { r.only = nil }()
	for _, e := range places {
		set.Add(e)
		r.only.Add(e)
	}
	nothing := func(int64) {}
	return r.pass(ctx, 0, r.image.Blocks(), func(ctx context.Context, w window) error {
		return r.compare(ctx, w, comparison{isUntrusted, nothing, nothing, func(n int64, _ *reader.Ref) error {
			if e := (block.Extent{Offset: n * bs, Length: bs}); !known.Contains(e) {
				r.missed(e)
			}
			return nil
		}})
	})
}

func (r *rollback) missed(e block.Extent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Why = fmt.Sprintf("tracker %s missed a write at %v", r.parent.Tracker.History, e)
}

// end begins a new generation, so that what is written from now on is told from
// what the rollback wrote, and removes the journal.
func (r *rollback) end(ctx context.Context) error {
	err := r.look(ctx, func(cbt.Tracker) error { return nil })
	r.report.Generated = err == nil
	if err != nil {
		r.env.warn("%s: the tracker began no new generation: %v", r.opts.Target, err)
	}
	return r.journal.remove()
}

// rollbackText says what an in-place restore will look at, for the plan.
func rollbackText(r *rollback, why string) string {
	if r == nil {
		text := "compare every block, and write those that differ"
		if why != "" {
			text += " (no tracker: " + strings.TrimSpace(why) + ")"
		}
		return text
	}
	return fmt.Sprintf("compare what differs from image %.8s of %s and what tracker %s saw written since, and write what is another; with any doubt compare every block",
		r.parent.ID, r.parent.Time.Local().Format(time.RFC3339), r.parent.Tracker.History)
}
