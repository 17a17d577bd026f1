// Package zfs takes still views of ZFS volumes (zvols): snapshots.
//
// Snapshots are named POOL/NAME@platter-ID and have user properties that say for
// whom and by which process they were taken. One that is kept has a hold named
// platter, without which nobody removes it by mistake. Of the volume itself one
// property is changed, for the moment in which a snapshot's device is opened:
// snapdev, which then is what it was. What ZFS knows is asked of its tools each
// time; this package remembers nothing.
package zfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/block"
	"platter/block/command"
	"platter/block/freeze"
	"platter/block/snapshot"
)

// Method is the name of Provider.
const Method = "zfs"

const (
	namePrefix = "@" + snapshot.Prefix + "-"
	hold       = snapshot.Prefix
)

// freezeLimit is for how long a filesystem on the volume is held at most, while
// ZFS makes the snapshot. One that is let go before only has a journal to replay.
const freezeLimit = 20 * time.Second

// Provider takes snapshots of ZFS volumes.
type Provider struct{}

// Name implements snapshot.Provider.
func (Provider) Name() string { return Method }

// Fits implements snapshot.Provider.
func (Provider) Fits(ctx context.Context, d block.Device) snapshot.Fit {
	volume, err := name(d)
	if err != nil {
		return snapshot.Fit{Why: err.Error()}
	}
	if why := unfit(ctx, volume); why != "" {
		return snapshot.Fit{Why: why}
	}
	return snapshot.Fit{
		OK: true, Why: "the volume " + volume + " of ZFS",
		Cost: "what is overwritten until the next image stays in the pool",
	}
}

// Take implements snapshot.Provider.
func (Provider) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	volume, err := name(d)
	if err != nil {
		return nil, err
	}
	if why := unfit(ctx, volume); why != "" {
		return nil, fmt.Errorf("%s: %w", why, snapshot.ErrUnfit)
	}
	w := &View{volume: volume, id: snapshot.NewID(), taken: time.Now(), consumer: o.Consumer.Tag()}
	if err := w.take(ctx, d, o.Run); err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", volume, err)
	}
	return w, nil
}

// Snapshots implements snapshot.Provider.
func (Provider) Snapshots(ctx context.Context, d block.Device) ([]snapshot.Snapshot, error) {
	volume, err := name(d)
	if errors.Is(err, snapshot.ErrUnfit) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := list(ctx, volume, true)
	if err != nil {
		return nil, err
	}
	var ours []snapshot.Snapshot
	for _, v := range all[1:] {
		if s, ok := describe(v); ok {
			ours = append(ours, s)
		}
	}
	return ours, nil
}

// Remove implements snapshot.Provider. What a run left that died while the
// volume's snapshots were shown as devices is set right too.
func (Provider) Remove(ctx context.Context, s snapshot.Snapshot) error {
	volume, _, _ := strings.Cut(s.Name, "@")
	all, err := list(ctx, volume, true)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(v *Volume) bool { return v.Name == s.Name })
	if i < 0 {
		return nil
	}
	if _, ok := describe(all[i]); !ok {
		return fmt.Errorf("remove %s: it is no snapshot of Platter's", s.Name)
	}
	if mark := all[i].snapdev; mark != "" && !all[i].held {
		now, err := snapdev(ctx, volume)
		if err == nil && now == (shown{"visible", "local"}) {
			err = hide(ctx, volume, mark)
		}
		if err != nil {
			return err
		}
	}
	return remove(ctx, all[i])
}

// describe returns what the properties of a snapshot say, if it is one of ours.
func describe(v *Volume) (snapshot.Snapshot, bool) {
	_, id, named := strings.Cut(v.Name, namePrefix)
	s := snapshot.Snapshot{Method: Method, Name: v.Name, ID: id, Tag: v.consumer, Run: v.run, Kept: v.held, Time: v.taken}
	return s, named && v.consumer != "" && v.run != ""
}

// A View is an open snapshot of a volume.
type View struct {
	snapshot.Holed
	id       string
	taken    time.Time
	consumer string
	volume   string    // POOL/NAME
	all      []*Volume // when it had been taken
	kept     bool
}

// name is that of the snapshot.
func (w *View) name() string { return w.volume + namePrefix + w.id }

// take makes the snapshot and opens it. Volumes are one process's at a time: what
// their snapdev is would not be known otherwise.
func (w *View) take(ctx context.Context, d block.Device, run string) (err error) {
	unlock, err := snapshot.Lock(ctx, lockName(w.volume))
	if err != nil {
		return err
	}
	defer unlock()
	before, err := snapdev(ctx, w.volume)
	if err != nil {
		return err
	}
	args := []string{"snapshot", "-o", userConsumer + "=" + w.consumer, "-o", userRun + "=" + run}
	if mark := before.mark(); mark != "" {
		args = append(args, "-o", userSnapdev+"="+mark)
	}
	if err := frozen(d.Path, func() error { _, err := command.Run(ctx, "zfs", append(args, w.name())...); return err }); err != nil {
		return errors.Join(w.advise(err), w.forget(ctx))
	}
	if err := w.open(ctx, d, before); err != nil {
		return errors.Join(err, w.forget(ctx))
	}
	return nil
}

// lockName is the name of a file.
func lockName(volume string) string {
	return "platter-zvol-" + snapshot.Consumer{Volume: volume}.Tag()
}

// frozen calls do while the filesystems on a device are frozen, as far as they can
// be: the snapshot is of one moment in any case.
func frozen(path string, do func() error) error {
	on, err := block.StackedOn(path)
	if err != nil {
		return err
	}
	if len(on.Filesystems) == 0 {
		return do()
	}
	f, err := freeze.Open(on.Filesystems, freezeLimit)
	if err != nil {
		return err
	}
	if err = f.Freeze(); err != nil {
		return errors.Join(do(), f.Close())
	}
	err = do()
	if _, e := f.Thaw(); !errors.Is(e, freeze.ErrLate) {
		err = errors.Join(err, e)
	}
	return errors.Join(err, f.Close())
}

// advise adds what to do where ZFS only says what is wrong.
func (w *View) advise(err error) error {
	if strings.Contains(err.Error(), "out of space") {
		return fmt.Errorf("%w: a volume with a reservation needs as much free as it holds: add a disk (zpool add), or zfs set refreservation=none %s", err, w.volume)
	}
	return err
}

// open opens the snapshot's device, which is there only while snapdev says so, or
// somebody has it open.
func (w *View) open(ctx context.Context, d block.Device, before shown) (err error) {
	if mark := before.mark(); mark != "" {
		defer func() { err = errors.Join(err, hide(context.WithoutCancel(ctx), w.volume, mark)) }()
		if _, err := command.Run(ctx, "zfs", "set", "snapdev=visible", w.volume); err != nil {
			return err
		}
	}
	path, err := device(ctx, w.name())
	if err != nil {
		return err
	}
	if w.all, err = list(ctx, w.volume, true); err != nil {
		return err
	}
	if w.Volume() == nil {
		return fmt.Errorf("snapshot %s is gone", w.name())
	}
	// Whoever else uses it cannot write to it.
	src, err := block.Open(path, block.OpenOptions{Live: true})
	if err != nil {
		return err
	}
	if got := block.Zvol(path); got != w.name() {
		return errors.Join(fmt.Errorf("%s was the device of %s, and is of %q", path, w.name(), got), src.Close())
	}
	w.Source = snapshot.As(d.Info, src)
	return nil
}

// forget removes a snapshot that may have been made, whatever ended the run.
func (w *View) forget(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	all, err := list(ctx, w.volume, true)
	if err != nil {
		return err
	}
	w.all = all
	if v := w.Volume(); v != nil {
		return remove(ctx, v)
	}
	return nil
}

// busyFor is for how long a snapshot may be busy: whoever looks at each new
// device, as udev does, has it open for a moment.
const busyFor = 5 * time.Second

// remove destroys a snapshot of ours.
func remove(ctx context.Context, v *Volume) error {
	if v.held {
		if _, err := command.Run(ctx, "zfs", "release", hold, v.Name); err != nil && !strings.Contains(err.Error(), "no such tag") {
			return err
		}
	}
	for until := time.Now().Add(busyFor); ; {
		_, err := command.Run(ctx, "zfs", "destroy", v.Name)
		switch {
		case err == nil || strings.Contains(err.Error(), "could not find any snapshots to destroy") || strings.Contains(err.Error(), "does not exist"):
			return nil
		case !strings.Contains(err.Error(), "busy") || time.Now().After(until):
			return fmt.Errorf("%w (zfs holds %s, and lsof of its device, say who keeps it)", err, v.Name)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Method implements snapshot.View.
func (w *View) Method() string { return Method }

// ID implements snapshot.View.
func (w *View) ID() string { return w.id }

// Taken implements snapshot.View.
func (w *View) Taken() time.Time { return w.taken }

// Volume describes the snapshot, Origin what it is of.
func (w *View) Volume() *Volume { return w.Sibling(w.id) }

// Origin describes the volume as it was when the view was taken.
func (w *View) Origin() *Volume { return w.all[0] }

// Sibling returns the snapshot of an ID that was there when the view was taken,
// nil if there was none.
func (w *View) Sibling(id string) *Volume {
	for _, v := range w.all {
		if v.Name == w.volume+namePrefix+id {
			return v
		}
	}
	return nil
}

// Keep implements snapshot.View. What it replaces are those that were there
// when it was taken: younger ones are of a run that began later.
func (w *View) Keep(ctx context.Context) error {
	if _, err := command.Run(ctx, "zfs", "hold", hold, w.name()); err != nil {
		return fmt.Errorf("keep the snapshot %s: %w", w.name(), err)
	}
	w.kept = true
	var problems []error
	for _, v := range w.all {
		s, ok := describe(v)
		if !ok || s.ID == w.id || s.Tag != w.consumer || !s.Kept && snapshot.Running(s.Run) {
			continue
		}
		if err := remove(ctx, v); err != nil {
			problems = append(problems, fmt.Errorf("remove what snapshot %s replaces: %w", w.name(), err))
		}
	}
	return errors.Join(problems...)
}

// Close implements snapshot.View.
func (w *View) Close() error {
	err := w.Source.Close()
	ctx := context.Background()
	if !w.kept {
		return errors.Join(err, remove(ctx, w.Volume()))
	}
	return errors.Join(err, w.putAway(ctx))
}

// putAway removes the device of a kept snapshot: nobody needs it, and it has the
// filesystem's UUID a second time.
func (w *View) putAway(ctx context.Context) error {
	unlock, err := snapshot.Lock(ctx, lockName(w.volume))
	if err != nil {
		return err
	}
	defer unlock()
	now, err := snapdev(ctx, w.volume)
	if err != nil || now.mark() == "" {
		return err
	}
	return hide(ctx, w.volume, now.mark())
}

// Of returns the ZFS snapshot that a view is, if it is one.
func Of(v snapshot.View) (*View, bool) {
	w, ok := v.(*View)
	return w, ok
}
