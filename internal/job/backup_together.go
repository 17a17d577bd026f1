package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"platter/block"
	"platter/block/snapshot"
	"platter/block/snapshot/lvm"
	passes "platter/cbt/live"
	"platter/image"
)

// jointTries is how often devices are brought to one moment before a run gives
// up.
const jointTries = 5

// together images all devices as they were at one moment. If one of them cannot
// be had, there is an image of none.
func (r *run) together(ctx context.Context) ([]*BackupReport, error) {
	reports, err := r.gather(ctx)
	if errors.Is(err, errCollected) && len(reports) == 0 && ctx.Err() == nil {
		r.env.warn("%v: once more, under a new lease", err)
		if err = r.restart(ctx); err == nil {
			reports, err = r.gather(ctx)
		}
	}
	r.withheld(ctx, reports)
	return reports, err
}

func (r *run) gather(ctx context.Context) (_ []*BackupReport, err error) {
	g := &gathering{run: r}
	defer func() { g.close(ctx, err) }()
	if err := g.look(ctx); err != nil {
		return nil, err
	}
	if err := g.approach(ctx); err != nil {
		return nil, err
	}
	if err := g.read(ctx); err != nil {
		return nil, err
	}
	return g.finish(ctx)
}

// A gathering is some devices of a run on their way to one moment.
type gathering struct {
	*run
	list   []*subject
	images []*imaging // in the order of list; nil while there is no view
	joint  *passes.Joint
	moment passes.Moment
	// waiting: what --after does is still to be done.
	waiting bool
}

// look finds out what the devices are, and by which way each is held still.
func (g *gathering) look(ctx context.Context) error {
	for n := range g.opts.count() {
		s, err := g.subject(ctx, n)
		if err != nil {
			return err
		}
		s.together = g.opts.count()
		g.list, g.images = append(g.list, s), append(g.images, nil)
	}
	if err := g.apart(); err != nil {
		return err
	}
	for _, s := range g.list {
		if s.view != nil {
			continue
		}
		g.clean(ctx, s)
		if err := s.unfreeze(); err != nil {
			return err
		}
		if len(s.ways) == 0 {
			if err := g.unheld(s); err != nil {
				return err
			}
			continue
		}
		s.way = s.ways[0]
		if s.way.provider == nil && s.device.How != block.Still {
			return fmt.Errorf("back up %s: nothing holds it still while it is in use, so that it cannot be imaged together with others: leave out --live or --together", s.path)
		}
		if err := g.checkSelf(s, s.way); err != nil {
			return fmt.Errorf("back up %s: %w", s.path, err)
		}
	}
	return nil
}

// unfreeze leaves out the ways that freeze filesystems by themselves, which
// cannot be done twice at a time.
func (s *subject) unfreeze() error {
	for len(s.ways) > 0 {
		method := s.ways[0].method()
		if method != lvm.MethodThin && method != lvm.MethodThick {
			return nil
		}
		on, err := block.StackedOn(s.path)
		if err != nil {
			return err
		}
		if len(on.Filesystems) == 0 {
			return nil
		}
		s.passed = append(s.passed, image.Passed{Way: method, Why: "LVM freezes filesystems by itself, and cannot while they are held for one moment with others"})
		s.ways = s.ways[1:]
	}
	return nil
}

// apart refuses devices that cannot stand still together.
func (g *gathering) apart() error {
	for i, s := range g.list {
		for _, t := range g.list[:i] {
			if s.volume == t.volume {
				return fmt.Errorf("back up %s and %s together: %w: both are volume %s", t.path, s.path, ErrUsage, s.volume)
			}
			if (s.device.Kind == block.KindVM) != (t.device.Kind == block.KindVM) {
				return fmt.Errorf("back up %s and %s together: %w: disks of a virtual machine stand still together with each other alone: image them in a run of their own", t.path, s.path, ErrUsage)
			}
			if s.device.Kind == block.KindVM && len(s.ways) > 0 && len(t.ways) > 0 && s.ways[0].method() != t.ways[0].method() {
				return fmt.Errorf("back up %s and %s together: %w: name disks of one virtual machine in one way", t.path, s.path, ErrUsage)
			}
			if s.view == nil && s.device.Kind != block.KindVM {
				if err := nested(s.device, t.device); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// nested refuses two devices one of which lies on the other, or both on one
// disk.
func nested(a, b block.Device) error {
	if a.Disk != "" && (a.Disk == b.Path || a.Disk == b.Disk) || b.Disk != "" && b.Disk == a.Path {
		disk := a.Disk
		if disk == "" {
			disk = a.Path
		}
		return fmt.Errorf("back up %s and %s together: %w: they are parts of one disk: name %s", b.Path, a.Path, ErrUsage, disk)
	}
	for _, pair := range [][2]block.Device{{a, b}, {b, a}} {
		on, file := pair[0], pair[1]
		if on.Kind == block.KindFile || file.Kind != block.KindFile {
			continue
		}
		carries, err := block.Carries(on.Path, file.Path)
		if err != nil {
			return err
		}
		if carries {
			return fmt.Errorf("back up %s and %s together: %w: the file lies on the device, and is in its image", on.Path, file.Path, ErrUsage)
		}
	}
	return nil
}

// approach images what is copied while it is written to, and goes on with it
// until all devices are held still for one moment.
func (g *gathering) approach(ctx context.Context) error {
	var moving []snapshot.View
	for n, s := range g.list {
		if s.view != nil || !moves(s, s.way) {
			continue
		}
		view, err := g.takeNow(ctx, s, s.way)
		if err != nil {
			return fmt.Errorf("back up %s: %w", s.path, err)
		}
		s.view = view
		moving = append(moving, view)
		if g.images[n], err = g.prepare(ctx, s); err != nil {
			return err
		}
	}
	g.joint = passes.Join(moving...)
	for _, i := range g.images {
		if i != nil {
			if err := i.step(func() error { return i.read(ctx) }); err != nil {
				return err
			}
		}
	}
	for try := 1; ; try++ {
		for !g.joint.Near() {
			if err := g.pass(ctx); err != nil {
				return err
			}
		}
		err := g.hold(ctx)
		if err == nil || !errors.Is(err, passes.ErrAgain) || try == jointTries || ctx.Err() != nil {
			return err
		}
	}
}

// pass goes on with one pass over each of the devices that are written to.
func (g *gathering) pass(ctx context.Context) error {
	for _, i := range g.images {
		if i == nil {
			continue
		}
		err := i.step(func() error { _, err := i.again(ctx); return err })
		if err != nil {
			return err
		}
		if i.m.Fuzzy {
			return fmt.Errorf("back up %s together with others: %w", i.s.path, i.s.view.(interface{ Still() error }).Still())
		}
	}
	return nil
}

// hold is the moment, between the hooks.
func (g *gathering) hold(ctx context.Context) error {
	err := g.before(ctx, g.list...)
	g.waiting = true
	if err == nil {
		err = g.still(ctx)
	}
	if err != nil {
		g.letGo(ctx, err)
		return fmt.Errorf("no one moment of %d devices: %w", len(g.list), err)
	}
	at := g.env.Repo.Machine.Now().Add(-time.Since(g.moment.Time)).UTC()
	for _, s := range g.list {
		s.moment = at
	}
	if !g.unread() {
		g.letGo(ctx, nil)
	}
	return nil
}

// unread reports whether a device that is read itself, and so has to be still
// until it is, has not been read.
func (g *gathering) unread() bool {
	for n, s := range g.list {
		if s.way.provider == nil && g.images[n] == nil {
			return true
		}
	}
	return false
}

// letGo says that the devices need not be still any more, or that they were in
// vain.
func (g *gathering) letGo(ctx context.Context, outcome error) {
	if g.waiting {
		g.waiting = false
		g.after(ctx, outcome, g.list...)
	}
}

// still holds all devices for a moment in which views are taken of those that
// have none. If one cannot be taken, or the moment is none, those that were are
// given up.
func (g *gathering) still(ctx context.Context) error {
	var due []*subject
	var devices []string // with filesystems to be held
	for _, s := range g.list {
		if s.view != nil {
			continue
		}
		due = append(due, s)
		if s.way.provider != nil && s.device.Kind != block.KindFile && s.device.Kind != block.KindVM {
			devices = append(devices, s.path)
		}
	}
	take := func(ctx context.Context) error { return g.take(ctx, due) }
	var err error
	if g.joint.Len() == 0 && len(devices) == 0 {
		err = take(ctx)
		g.moment = passes.Moment{Time: time.Now()}
	} else {
		g.moment, err = g.joint.Moment(ctx, devices, take)
	}
	if err == nil {
		return nil
	}
	for _, s := range due {
		if s.view != nil {
			err = errors.Join(err, s.view.Close())
			s.view = nil
		}
	}
	return err
}

// take takes views, those of one method that can take several at once together.
func (g *gathering) take(ctx context.Context, due []*subject) error {
	ctx, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	for len(due) > 0 {
		s := due[0]
		joint, ok := s.way.provider.(snapshot.Joint)
		if !ok {
			view, err := g.takeNow(ctx, s, s.way)
			if err != nil {
				return fmt.Errorf("back up %s: %w", s.path, err)
			}
			s.view, due = view, due[1:]
			continue
		}
		var same, rest []*subject
		var devices []block.Device
		var options []snapshot.Options
		for _, t := range due {
			if t.way.method() != s.way.method() {
				rest = append(rest, t)
				continue
			}
			same, devices, options = append(same, t), append(devices, t.device), append(options, g.options(t, t.way))
		}
		views, err := joint.TakeAll(ctx, devices, options)
		if err != nil {
			return err
		}
		for n, t := range same {
			t.view = views[n]
		}
		due = rest
	}
	return nil
}

// read reads what the views hold: what has to be still until then first.
func (g *gathering) read(ctx context.Context) error {
	for _, itself := range []bool{true, false} {
		for n, s := range g.list {
			if (s.way.provider == nil) != itself {
				continue
			}
			if err := g.image(ctx, n); err != nil {
				return err
			}
		}
		g.letGo(ctx, nil)
	}
	return nil
}

// image reads one view to its end.
func (g *gathering) image(ctx context.Context, n int) (err error) {
	i := g.images[n]
	if i == nil {
		if i, err = g.prepare(ctx, g.list[n]); err != nil {
			return err
		}
		g.images[n] = i
		err = i.step(func() error { return i.read(ctx) })
	} else {
		err = i.step(func() error { _, err := i.again(ctx); return err })
	}
	if err != nil {
		return err
	}
	return i.conclude()
}

// finish makes all images exist, now that there is nothing left to fail but the
// store.
func (g *gathering) finish(ctx context.Context) ([]*BackupReport, error) {
	var reports []*BackupReport
	for _, i := range g.images {
		report, err := i.finish(ctx)
		if err != nil {
			return reports, err
		}
		report.Together, report.Frozen = true, max(report.Frozen, g.moment.Frozen)
		reports = append(reports, report)
	}
	return reports, nil
}

func (g *gathering) close(ctx context.Context, outcome error) {
	g.letGo(ctx, outcome)
	for n, s := range g.list {
		if i := g.images[n]; i != nil {
			if err := i.tracker.Close(); err != nil {
				g.env.warn("%s: %v", s.path, err)
			}
		}
		if s.view != nil {
			s.close(g.env)
		}
	}
}
