package repo

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

// LeaseTTL is how long a lease holds after its last renewal, by the store's
// clock. The holder renews at a quarter of it, and stops trusting it at half.
const LeaseTTL = 20 * time.Minute

// Kinds of lease.
const (
	LeaseBackup  = "backup"
	LeaseCollect = "collect"
	LeasePrune   = "prune"
)

// A Lease says who is writing to or collecting a repository. Each renewal is a
// new object; the newest of a run counts.
type Lease struct {
	Run  string `json:"run"` // hex
	Kind string `json:"kind"`
	// Epoch of the newest list of condemned segments that the holder had read
	// before its work began: what was condemned later, it may be using.
	Epoch uint64 `json:"epoch"`
	Host  string `json:"host"`
	Boot  string `json:"boot"` // boot ID of the holder's kernel
	PID   int    `json:"pid"`
	Birth uint64 `json:"birth"` // start of the process, clock ticks since boot
	// Renewed is by the store's own clock, taken from the object.
	Renewed time.Time   `json:"-"`
	Name    string      `json:"-"` // of the newest object
	Writer  keys.Writer `json:"-"` // who signed it; zero when it cannot be read
}

// A Holder keeps a Lease of this process alive until Release.
type Holder struct {
	repo      *Repo
	lease     Lease
	Condemned *Condemned // as read after the lease was written: all of it counts as absent
	mu        sync.Mutex
	seq       int
	written   []string      // objects of the lease that are there, oldest first
	renewed   time.Duration // by the machine's uptime
	lapsed    bool
	stop      func()
	done      chan struct{}
}

// Acquire takes a lease for a run. Work that relies on it begins afterwards.
func (r *Repo) Acquire(ctx context.Context, kind string, run [16]byte) (*Holder, error) {
	before, err := r.NewestCondemned(ctx)
	if err != nil {
		return nil, fmt.Errorf("take lease: %w", err)
	}
	h := &Holder{repo: r, done: make(chan struct{})}
	h.lease = r.Machine.Process()
	h.lease.Run, h.lease.Kind, h.lease.Epoch = hex.EncodeToString(run[:]), kind, before.Epoch
	if err := h.renew(ctx); err != nil {
		h.drop(context.WithoutCancel(ctx)) // its object may be there all the same
		return nil, fmt.Errorf("take lease: %w", err)
	}
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	ticks, stopTicks := r.Machine.Tick(LeaseTTL / 4)
	h.stop = func() { stop(); stopTicks() }
	go h.keep(keep, ticks)
	// Read again what was condemned while the lease was not there yet.
	if h.Condemned, err = r.NewestCondemned(ctx); err != nil {
		h.Release(ctx)
		return nil, fmt.Errorf("take lease: %w", err)
	}
	return h, nil
}

// Epoch returns the epoch after which condemned segments may be in use here.
func (h *Holder) Epoch() uint64 { return h.lease.Epoch }

// Valid reports whether the lease was renewed in time ever since it was taken.
// One that was not, even once, may have been taken for dead, and what it
// protected may be gone: it is never valid again.
func (h *Holder) Valid() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lapsed = h.lapsed || h.repo.Machine.Uptime()-h.renewed >= LeaseTTL/2
	return !h.lapsed
}

// Release gives the lease up.
func (h *Holder) Release(ctx context.Context) {
	h.stop()
	<-h.done
	// Where the store is gone: a lease runs out by itself.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	h.drop(ctx)
}

func (h *Holder) keep(ctx context.Context, ticks <-chan time.Time) {
	defer close(h.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			// A renewal that fails shows in Valid, and the next tick tries again.
			_ = h.renew(ctx)
		}
	}
}

// renew writes the next object of the lease, then removes the one before the
// last: whoever lists leases meanwhile finds one of those that stay.
func (h *Holder) renew(ctx context.Context) error {
	start := h.repo.Machine.Uptime()
	h.mu.Lock()
	h.seq++
	name := leaseName(h.lease.Run, h.seq)
	h.mu.Unlock()
	object, _, err := h.repo.Keys.Seal(keys.KindLease, name, h.lease)
	if err != nil {
		return err
	}
	if err := h.repo.Store.Put(ctx, name, object); err != nil {
		return err
	}
	h.mu.Lock()
	h.lapsed = h.lapsed || len(h.written) > 0 && start-h.renewed >= LeaseTTL/2
	h.renewed = start
	h.written = append(h.written, name)
	var old string
	if len(h.written) > 2 {
		old, h.written = h.written[0], h.written[1:]
	}
	h.mu.Unlock()
	if old != "" {
		_ = h.repo.Store.Delete(ctx, old)
	}
	return nil
}

// drop removes the objects of the lease, also those that a renewal may have
// left.
func (h *Holder) drop(ctx context.Context) {
	_ = h.repo.Store.List(ctx, "leases/", func(o store.Info) error {
		if strings.HasPrefix(o.Name, "leases/"+h.lease.Run+"-") {
			return h.repo.Store.Delete(ctx, o.Name)
		}
		return nil
	})
}

func leaseName(run string, seq int) string { return fmt.Sprintf("leases/%s-%08x", run, seq) }

// Leases returns the newest lease of every run that may still be at work, and
// the names of objects left by runs that are not. One that cannot be read is of
// somebody who may be using anything, until it is as old as a lease gets. One
// that nobody with a key of this repository wrote is left over, and so is a
// collector's of a writer that may not collect.
func (r *Repo) Leases(ctx context.Context) (live []Lease, stale []string, err error) {
	now, err := r.Store.Now(ctx)
	if err != nil {
		return nil, nil, err
	}
	newest, stale, err := r.listLeases(ctx)
	var dead []string
	for _, l := range newest {
		switch {
		case now.Sub(l.Renewed) > LeaseTTL:
			stale = append(stale, l.Name)
		case r.Machine.Gone(&l):
			dead = append(dead, l.Name)
		default:
			live = append(live, l)
		}
	}
	if err == nil {
		err = r.land(ctx, dead)
	}
	return live, append(stale, dead...), err
}

// An owner has a lease: nobody renews another's.
type owner struct {
	run    string
	writer keys.Writer
}

// listLeases returns the newest lease of each owner, and what is left of older
// ones. A run of which all that was listed is gone when it is read was released
// meanwhile, or renewed twice by then: to tell which, it lists again.
func (r *Repo) listLeases(ctx context.Context) (newest map[owner]Lease, stale []string, err error) {
	var gone map[string]string // the name listed last, by run
	list := func(o store.Info) error {
		l, err := r.lease(ctx, o)
		switch {
		case errors.Is(err, store.ErrNotFound):
			gone[runOf(o.Name)] = o.Name
			return nil
		case errors.Is(err, keys.ErrForged):
			stale = append(stale, o.Name)
			return nil
		case err != nil:
			return err
		}
		by := owner{l.Run, l.Writer}
		if old, ok := newest[by]; ok {
			stale = append(stale, old.Name)
		}
		newest[by] = *l // names are listed in order, so later ones are newer
		return nil
	}
	for {
		before := gone
		newest, stale, gone = map[owner]Lease{}, nil, map[string]string{}
		err = r.Store.List(ctx, "leases/", list)
		for by := range newest {
			delete(gone, by.run)
		}
		if err != nil || len(gone) == 0 {
			return newest, stale, err
		}
		for run, name := range gone {
			if before[run] == name {
				return nil, nil, fmt.Errorf("%s is listed again and again, and not found: %w", name, image.ErrCorrupt)
			}
		}
	}
}

// runOf returns the run that a lease's name tells of.
func runOf(name string) string {
	run, _, _ := strings.Cut(strings.TrimPrefix(name, "leases/"), "-")
	return run
}

// land waits until what processes asked for that died a moment ago has come to
// the store: a manifest may be on its way, and what it stands on must not be
// taken for unused. Whoever lists manifests after leases then sees it.
func (r *Repo) land(ctx context.Context, dead []string) error {
	remote, ok := r.Store.(store.Remote)
	dead = slices.DeleteFunc(slices.Clone(dead), func(name string) bool {
		_, done := r.landed.Load(name)
		return done
	})
	if !ok || len(dead) == 0 {
		return nil
	}
	timer := time.NewTimer(remote.Flight())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, name := range dead {
		r.landed.Store(name, true)
	}
	return nil
}

func (r *Repo) lease(ctx context.Context, o store.Info) (*Lease, error) {
	object, err := Object(ctx, r.Store, keys.KindLease, o.Name)
	if err != nil {
		return nil, err
	}
	l := new(Lease)
	s, err := r.Keys.Open(keys.KindLease, o.Name, object, l)
	switch {
	case errors.Is(err, keys.ErrForged):
		return nil, err
	case errors.Is(err, image.ErrCorrupt):
		l = &Lease{Run: o.Name, Kind: LeaseBackup}
	case err != nil:
		return nil, err
	case !strings.HasPrefix(o.Name, "leases/"+l.Run+"-") || l.Kind == LeaseCollect && !s.Writer.MayCollect():
		return nil, fmt.Errorf("%s: writer %.16s: %w", o.Name, s.Writer, keys.ErrForged)
	}
	l.Renewed, l.Name, l.Writer = o.Modified, o.Name, s.Writer
	return l, nil
}
