package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/block"
	"platter/block/snapshot"
	"platter/cbt"
	"platter/cbt/full"
	passes "platter/cbt/live"
	"platter/image"
)

// takeLimit bounds the time to take one still view. Whatever stands still
// meanwhile, applications wait for it.
const takeLimit = time.Minute

// Names returns what --tracker takes.
func (w Ways) Names() []string {
	names := []string{"auto", full.Name}
	for _, t := range w.Trackers {
		if !slices.Contains(names, t.Name()) {
			names = append(names, t.Name())
		}
	}
	return names
}

func (o *BackupOptions) tracker() string {
	if o.Tracker == "" {
		return "auto"
	}
	return o.Tracker
}

// A way is how one device may be imaged.
type way struct {
	provider snapshot.Provider // nil for the device itself
	opener   cbt.Opener        // nil to compare every block
	fit      snapshot.Fit
}

func (w way) method() string {
	if w.provider == nil {
		return snapshot.Direct
	}
	return w.provider.Name()
}

func (w way) tracker() string {
	if w.opener == nil {
		return full.Name
	}
	return w.opener.Name()
}

// choose returns the ways that fit a device, the best one first, and those
// better than the best that do not fit, with the reasons. live allows a device
// that is in use to be read as it is.
func (w Ways) choose(ctx context.Context, d block.Device, tracker string, live bool) (fit []way, passed []image.Passed) {
	direct := snapshot.FitsDirect(d)
	if tracker == full.Name && direct.OK {
		return []way{{fit: direct}}, nil
	}
	for _, p := range w.Views {
		opener, ok := w.opener(p.Name(), tracker)
		if !ok {
			continue
		}
		f := p.Fits(ctx, d)
		if f.OK {
			fit = append(fit, way{p, opener, f})
		} else if len(fit) == 0 && f.Why != "" {
			passed = append(passed, image.Passed{Way: p.Name(), Why: f.Why})
		}
	}
	if tracker != "auto" && tracker != full.Name {
		return fit, passed
	}
	if direct.OK || live && d.Kind != block.KindVM {
		fit = append(fit, way{fit: direct})
	} else if len(fit) == 0 && d.Kind != block.KindVM {
		passed = append(passed, image.Passed{Way: snapshot.Direct, Why: d.Why})
	}
	return fit, passed
}

// opener returns the tracker for views of a method; ok is false where views of
// that method are of no use to who wants that tracker.
func (w Ways) opener(method, tracker string) (t cbt.Opener, ok bool) {
	if tracker == full.Name {
		return nil, true
	}
	for _, t := range w.Trackers {
		if t.Method() == method && (tracker == "auto" || tracker == t.Name()) {
			return t, true
		}
	}
	return nil, tracker == "auto"
}

// Find describes the device of a name: a path, or what a provider knows.
func (w Ways) Find(ctx context.Context, name string) (block.Device, error) {
	for _, p := range w.Views {
		if l, ok := p.(snapshot.Looker); ok {
			if d, mine, err := l.Look(ctx, name); mine {
				return d, err
			}
		}
	}
	return block.Look(name)
}

// split replaces names that stand for several devices, which are then imaged
// together.
func (o *BackupOptions) split(ctx context.Context) error {
	var all []string
	for _, name := range o.Devices {
		parts := []string{name}
		for _, p := range o.Ways.Views {
			l, ok := p.(snapshot.Splitter)
			if !ok {
				continue
			}
			several, err := l.Split(ctx, name)
			if err != nil {
				return err
			}
			if len(several) > 0 {
				parts = several
				o.Together = true
			}
		}
		all = append(all, parts...)
	}
	o.Devices = all
	return nil
}

// A subject is one device of a run: what it is, the image before, and the
// still view once it is taken.
type subject struct {
	path     string
	device   block.Device
	volume   string
	consumer snapshot.Consumer
	parent   *image.Manifest // nil for none
	ways     []way           // that fit, the best first
	passed   []image.Passed
	way      way // that the view was taken by
	view     snapshot.View
	together int       // how many views are to be of one moment; 0 where each has its own
	moment   time.Time // theirs, once there is one
	notes    []string  // for the image
	release  func()    // called once the device need not be still any more; nil for none
}

// subject looks at the i-th device, and changes nothing.
func (r *run) subject(ctx context.Context, i int) (*subject, error) {
	s := new(subject)
	if r.opts.Sources != nil {
		s.device = block.Device{Info: r.opts.Sources[i].Info(), How: block.Still}
		s.view = snapshot.DirectView(r.opts.Sources[i])
	} else {
		var err error
		if s.device, err = r.opts.Ways.Find(ctx, r.opts.Devices[i]); err != nil {
			return nil, err
		}
	}
	s.path = s.device.Path
	err := r.identify(ctx, s)
	if err != nil && s.view != nil {
		err = errors.Join(err, s.view.Close())
	}
	return s, err
}

func (r *run) identify(ctx context.Context, s *subject) (err error) {
	if s.device.How == block.Unreadable {
		_, err := snapshot.OpenDirect(s.path, true)
		return err
	}
	if s.volume, err = volumeName(r.opts.Volume, r.env.Host, s.device.Name); err != nil {
		return err
	}
	if s.parent, err = r.parent(ctx, s.volume, s.device.Info); err != nil {
		return err
	}
	s.consumer = snapshot.Consumer{Repository: fmt.Sprintf("%x", r.env.Repo.ID), Volume: s.volume}
	if s.view == nil {
		r.choose(ctx, s)
	}
	return ctx.Err()
}

// choose sets down the ways that fit. Where every block is to be compared, and a
// tracker has a history of the volume, that tracker comes first all the same, so
// that its history goes on from this image.
func (r *run) choose(ctx context.Context, s *subject) {
	s.ways, s.passed = r.opts.Ways.choose(ctx, s.device, r.opts.tracker(), r.opts.Live)
	if r.opts.tracker() == full.Name && s.parent != nil && s.parent.Tracker.History != "" {
		tracked, _ := r.opts.Ways.choose(ctx, s.device, s.parent.Tracker.History, r.opts.Live)
		s.ways = append(tracked, s.ways...)
	}
}

// hold takes a still view of a device by the best way that works. One that
// fits and then fails costs the next one its turn, and the reason is kept.
func (r *run) hold(ctx context.Context, s *subject) error {
	if s.view != nil {
		return nil
	}
	r.clean(ctx, s)
	for _, w := range s.ways {
		view, err := r.take(ctx, s, w)
		if err == nil {
			s.way, s.view = w, view
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("back up %s: %w", s.path, context.Cause(ctx))
		}
		if errors.Is(err, errHook) {
			return fmt.Errorf("back up %s: %w", s.path, err)
		}
		if w.provider == nil {
			return err
		}
		if !errors.Is(err, snapshot.ErrUnfit) {
			r.env.warn("%s: no still view by %s: %v", s.path, w.method(), err)
		}
		s.passed = append(s.passed, image.Passed{Way: w.method(), Why: err.Error()})
	}
	return r.unheld(s)
}

// take takes a view by one way, between the hooks. A device that is read itself
// has to be still until it is read, one that is copied while it is written to
// when the rest of it is read.
func (r *run) take(ctx context.Context, s *subject, w way) (view snapshot.View, err error) {
	if err := r.checkSelf(s, w); err != nil {
		return nil, err
	}
	if w.method() == passes.Method {
		if view, err = r.takeNow(ctx, s, w); err == nil {
			passes.Around(view, func(ctx context.Context) error { return r.before(ctx, s) }, func(ctx context.Context, err error) { r.after(ctx, err, s) })
		}
		return view, err
	}
	if err = r.before(ctx, s); err == nil {
		view, err = r.takeNow(ctx, s, w)
	}
	if err == nil && w.provider == nil {
		s.release = func() { r.after(ctx, nil, s) }
		return view, nil
	}
	r.after(ctx, err, s)
	return view, err
}

func (r *run) takeNow(ctx context.Context, s *subject, w way) (snapshot.View, error) {
	if w.provider == nil {
		return snapshot.OpenDirect(s.path, r.opts.Live)
	}
	ctx, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	return w.provider.Take(ctx, s.device, r.options(s, w))
}

func (r *run) options(s *subject, w way) snapshot.Options {
	return snapshot.Options{
		Consumer: s.consumer, Run: snapshot.ThisProcess(), BlockSize: int64(r.env.Repo.Config.BlockSize),
		Base: s.base(r.opts.Ways, w.method()), Together: s.together,
	}
}

// unheld is the error for a device that nothing holds still.
func (r *run) unheld(s *subject) error {
	var reasons []string
	for _, p := range s.passed {
		if p.Way != snapshot.Direct {
			reasons = append(reasons, p.Way+": "+p.Why)
		}
	}
	if t := r.opts.tracker(); t != "auto" && t != full.Name {
		return fmt.Errorf("back up %s: tracker %s does not fit: %s", s.path, t, strings.Join(reasons, "; "))
	}
	if s.device.Kind == block.KindVM {
		return fmt.Errorf("back up %s: no still view: %s", s.path, strings.Join(reasons, "; "))
	}
	// Opening it says who uses it, and what can be done.
	view, err := snapshot.OpenDirect(s.path, false)
	if err == nil {
		// Whoever used it a moment ago is gone.
		s.way, s.view = way{}, view
		return nil
	}
	if len(reasons) > 0 {
		err = fmt.Errorf("%w (no still view: %s)", err, strings.Join(reasons, "; "))
	}
	return err
}

// clean removes what dead runs left of this device's snapshots. What cannot be
// removed is told, and is in nobody's way.
func (r *run) clean(ctx context.Context, s *subject) {
	if r.opts.DryRun {
		return
	}
	for _, w := range s.ways {
		if w.provider == nil {
			continue
		}
		removed, err := snapshot.Clean(ctx, w.provider, s.device, s.consumer, s.base(r.opts.Ways, w.method()))
		for _, old := range removed {
			r.env.warn("%s: removed %s, which no image is compared with any more", s.path, old.Name)
		}
		if err != nil && ctx.Err() == nil {
			r.env.warn("%v", err)
		}
	}
}

// base is the ID of the snapshot that the parent image was made from.
func (s *subject) base(ways Ways, method string) string {
	if s.parent == nil {
		return ""
	}
	for _, t := range ways.Trackers {
		if t.Method() == method && t.Name() == s.parent.Tracker.History {
			return t.Base(s.parent.Tracker.Generation)
		}
	}
	return ""
}

// letGo says that the device need not be still any more.
func (s *subject) letGo() {
	if s.release != nil {
		s.release()
		s.release = nil
	}
}

// track opens the tracker of the subject's way. One that cannot be opened is
// no reason not to make an image.
func (s *subject) track(ctx context.Context) (cbt.Tracker, error) {
	size := s.view.Info().Size
	if s.way.opener == nil {
		return full.New(size), nil
	}
	t, err := s.way.opener.Open(ctx, s.view, s.consumer)
	if err == nil {
		return t, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s.passed = append(s.passed, image.Passed{Way: s.way.tracker(), Why: err.Error()})
	return full.New(size), nil
}

func (s *subject) close(env *Env) {
	s.letGo()
	if err := s.view.Close(); err != nil {
		env.warn("%s: %v", s.path, err)
	}
}
