package job

import (
	"context"
	"fmt"

	"platter/cbt"
	"platter/cbt/full"
	"platter/image"
)

// changed asks the tracker what is to be compared, and sets down in the
// manifest how the next run may go on from here.
func (r *run) changed(ctx context.Context, t cbt.Tracker, m, parent *image.Manifest) (*cbt.Set, error) {
	g, err := t.Mark(ctx)
	if err != nil {
		return nil, fmt.Errorf("mark the history of tracker %s: %w", t.Name(), err)
	}
	m.Tracker.Name = full.Name
	if t.Name() != full.Name {
		m.Tracker.History, m.Tracker.Generation = t.Name(), g
	}
	if parent != nil {
		m.Tracker.Parent = parent.ID
	}
	if m.Tracker.Why = noParent(t, m, parent); m.Tracker.Why == "" && parent.LeftOut && r.opts.AllBlocks {
		m.Tracker.Why = "the image before left free space out"
	}
	if m.Tracker.Why != "" || r.opts.tracker() == full.Name {
		return cbt.Unknown(m.Size), nil
	}
	changed, why, err := cbt.Since(ctx, t, parent.Tracker.Generation, m.Size)
	if err != nil {
		return nil, err
	}
	if m.Tracker.Why = why; why == "" {
		m.Tracker.Name = t.Name()
	}
	// What could not be read then has to be read now.
	for _, e := range parent.Unreadable {
		changed.Add(e)
	}
	if why == "" {
		err = r.suspects(ctx, parent, changed)
	}
	return changed, err
}

// noParent says why an image cannot be tracked from the one before, "" if it
// can. Full compare needs no reason but that there is nothing to compare with.
func noParent(t cbt.Tracker, m, parent *image.Manifest) string {
	switch {
	case parent == nil:
		return "first image of the volume"
	case t.Name() == full.Name:
		return ""
	case parent.Fuzzy:
		return "the image before is fuzzy"
	case m.Fuzzy:
		return "the device is read while it is written to"
	case parent.Size != m.Size:
		return fmt.Sprintf("the device had %d bytes, and has %d", parent.Size, m.Size)
	case otherDevice(parent.Device, m.Device):
		return "another device: " + m.Device.Identity + " in place of " + parent.Device.Identity
	case parent.Missed():
		return "the tracker of the image before missed a write"
	case parent.Tracker.History == "":
		return "the image before was not tracked"
	case parent.Tracker.History != t.Name():
		return fmt.Sprintf("the image before was tracked by %s, this one is by %s", parent.Tracker.History, t.Name())
	}
	return ""
}

// keepHistory lets the tracker begin from the image that was just made. One
// that is fuzzy, or whose tracker is not to be trusted, is no beginning.
func (r *run) keepHistory(ctx context.Context, t cbt.Tracker, m *image.Manifest) {
	if m.Tracker.History == "" {
		return
	}
	if err := t.Commit(ctx, m.Tracker.Generation); err != nil {
		r.env.warn("the image is complete, but tracker %s keeps its old history: %v", t.Name(), err)
	}
}

// again goes on with one more pass over a device that could not be held still,
// and returns whether what was read is of one moment now.
func (i *imaging) again(ctx context.Context) (last bool, err error) {
	view, ok := i.s.view.(cbt.Converging)
	// A dry run has no map that a second pass could build upon.
	if !ok || i.opts.DryRun {
		return true, nil
	}
	// The map so far is where the next pass looks for what has not changed.
	if err := i.flush(); err != nil {
		return false, err
	}
	i.trustOwn()
	src, again, last, err := view.Pass(ctx)
	if err != nil {
		return false, err
	}
	before := *i.m
	p := &pass{run: i.run, src: src, m: i.m, parent: &before, changed: again, counts: new(counters)}
	if err := p.do(ctx); err != nil {
		return false, err
	}
	i.pass.add(p)
	if !last {
		return false, nil
	}
	i.m.Time = i.moment(i.s)
	if err := view.Still(); err != nil {
		i.m.Fuzzy = true
		i.m.Warnings = append(i.m.Warnings, err.Error())
	}
	return true, nil
}

// add counts what a later pass read, and forgets what it could read after all.
func (p *pass) add(later *pass) {
	p.counts.read.Add(later.counts.read.Load())
	p.counts.known.Add(later.counts.known.Load())
	p.counts.fresh.Add(later.counts.fresh.Load())
	p.unreadable = append(p.unreadable, later.unreadable...)
}
