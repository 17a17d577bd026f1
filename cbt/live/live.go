// Package live images devices that are written to and have nothing underneath
// that could hold them still: disks and partitions with mounted filesystems.
//
// All of the device is copied while the tracer marks what is written; then what
// was marked is copied again, and again, while it gets less. At the end the
// filesystems are frozen for a moment, until nothing is on its way to the disk
// and the rest is read into memory. Then the copy is what the disk was in that
// moment. See docs/tracking.md.
package live

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"platter/block"
	"platter/block/snapshot"
	"platter/cbt"
	"platter/cbt/trace"
)

// Method is the name of these views in manifests and reports.
const Method = "live"

const (
	// freezeLimit is how long filesystems stand still at most.
	freezeLimit = 10 * time.Second
	// drainLimit is how long to wait, frozen, for what is in flight.
	drainLimit = 3 * time.Second
	// freezeBytes is what can be read into memory meanwhile, of all devices that
	// stand still together, and minFreezeBytes of each.
	freezeBytes    = 32 << 20
	minFreezeBytes = 8 << 20
)

// A Provider takes such views. It is safe for concurrent use.
type Provider struct {
	dir    string
	buffer int
	method string
}

// New returns the provider that works with the tracer in dir, trace.DefaultDir
// for that of the machine.
func New(dir string) *Provider { return &Provider{dir, freezeBytes, Method} }

// As returns a provider of the same views under another name, for a tracker
// that has a history of its own.
func (p *Provider) As(method string) *Provider { return &Provider{p.dir, p.buffer, method} }

// Name is "live", or what As was told.
func (p *Provider) Name() string { return p.method }

// Fits says that any block device does which is in use; one that is not is
// read as it is, unless the tracer can tell what changed.
func (p *Provider) Fits(_ context.Context, d block.Device) snapshot.Fit {
	switch {
	case d.Kind == block.KindFile:
		return snapshot.Fit{Why: "files are no disks"}
	case os.Geteuid() != 0:
		return snapshot.Fit{Why: "the tracer needs root"}
	}
	t, err := trace.Open(p.dir)
	switch {
	case err == nil:
		_ = t.Close()
		return snapshot.Fit{OK: true, Why: "the tracer is running", Cost: cost(d)}
	case !errors.Is(err, trace.ErrStopped):
		return snapshot.Fit{Why: err.Error()}
	case d.How != block.Live:
		return snapshot.Fit{Why: err.Error()}
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return snapshot.Fit{Why: "the kernel lacks what the tracer needs (BTF)"}
	}
	return snapshot.Fit{OK: true, Why: "a tracer is started for the run", Cost: cost(d)}
}

func cost(d block.Device) string {
	if d.How != block.Live {
		return ""
	}
	return "filesystems are frozen for a moment at the end"
}

// Take begins to watch the device. The view is of one moment only after the
// last of its passes.
func (p *Provider) Take(ctx context.Context, d block.Device, o snapshot.Options) (_ snapshot.View, err error) {
	v := &view{method: p.method, path: d.Path, dir: p.dir, taken: time.Now(), unit: o.BlockSize}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close())
		}
	}()
	if v.tracer, v.started, err = trace.Run(p.dir); err != nil {
		return nil, fmt.Errorf("%w: %w", snapshot.ErrUnfit, err)
	}
	if v.started {
		v.notes = append(v.notes, "a tracer was started for this run only; with one that runs all the time the next image reads only what changed: platter tracker run")
	}
	if v.session, err = v.tracer.Session(d.Path, o.Consumer.Repository+"\x00"+o.Consumer.Volume); err != nil {
		return nil, err
	}
	if v.Source, err = block.Open(d.Path, block.OpenOptions{Live: true}); err != nil {
		return nil, err
	}
	if err := v.hold.open(v.Source, max(minFreezeBytes, p.buffer/max(1, o.Together)), o.BlockSize); err != nil {
		return nil, err
	}
	if err := v.begin(ctx); err != nil {
		return nil, err
	}
	v.moment = v.session.Number()
	return v, ctx.Err()
}

// Snapshots finds none: such views leave nothing behind.
func (p *Provider) Snapshots(context.Context, block.Device) ([]snapshot.Snapshot, error) {
	return nil, nil
}

// Remove has nothing to remove.
func (p *Provider) Remove(context.Context, snapshot.Snapshot) error { return nil }

// view is a device that is copied while it is written to.
type view struct {
	block.Source
	method  string
	path    string
	dir     string
	tracer  *trace.Tracer
	started bool
	session *trace.Session
	hold    residue
	unit    int64
	moment  uint64 // generation that the view's moment is in
	landed  uint64 // generation in which nothing was in flight, the last that was seen
	taken   time.Time
	round   round
	still   error
	frozen  time.Duration
	events  uint64 // seen when the rest was read
	joint   bool   // its moment is one that others share
	notes   []string
	before  func(context.Context) error // runs before each freeze that ends the passes; nil for none
	after   func(context.Context, error)
	atRest  func() // for tests: the device is frozen, and read
}

var _ cbt.Converging = (*view)(nil)

func (v *view) Method() string   { return v.method }
func (v *view) ID() string       { return "" }
func (v *view) Taken() time.Time { return v.taken }
func (v *view) Still() error     { return v.still }
func (v *view) Check() error     { return v.Source.Check() }

// Frozen is how long filesystems stood still for the view.
func (v *view) Frozen() time.Duration { return v.frozen }

// Notes are what the run's report should say of how the view came about.
func (v *view) Notes() []string { return v.notes }

// Around has a view of this package call before ahead of its moment, and after
// when the moment is over, with the error if there was none: more than once,
// where the device did not come to rest. An error of before ends the copy.
func Around(s snapshot.View, before func(context.Context) error, after func(context.Context, error)) {
	if v, ok := s.(*view); ok {
		v.before, v.after = before, after
	}
}

// Keep cannot: there is no snapshot.
func (v *view) Keep(context.Context) error {
	return fmt.Errorf("keep a view of %s: %w", v.path, errors.ErrUnsupported)
}

// Written returns what was marked since the moment of the view.
func (v *view) Written(context.Context) (*cbt.Set, error) {
	return v.session.Since(v.moment), v.session.Whole()
}

// Close ends the view, and the tracer that was started for it.
func (v *view) Close() error {
	var errs []error
	if v.Source != nil {
		errs = append(errs, v.Source.Close())
	}
	if v.session != nil {
		errs = append(errs, v.session.Close())
	}
	errs = append(errs, v.hold.close())
	if v.tracer != nil {
		errs = append(errs, v.tracer.Close())
	}
	if v.started {
		errs = append(errs, trace.Stop(v.dir))
	}
	return errors.Join(errs...)
}

// Opener opens the tracer with such views.
type Opener struct{}

// Name is that of the tracer.
func (Opener) Name() string { return trace.Name }

// Method is that of the views.
func (Opener) Method() string { return Method }

// Base is "": generations are in the kernel.
func (Opener) Base(cbt.Generation) string { return "" }

// Open returns the tracer's session of the view.
func (Opener) Open(_ context.Context, v snapshot.View, _ snapshot.Consumer) (cbt.Tracker, error) {
	l, ok := v.(*view)
	if !ok {
		return nil, fmt.Errorf("open the tracer with a view by %s: %w", v.Method(), errors.ErrUnsupported)
	}
	return borrowed{l.session}, nil
}

// borrowed is a session that the view closes.
type borrowed struct{ *trace.Session }

func (borrowed) Close() error { return nil }
