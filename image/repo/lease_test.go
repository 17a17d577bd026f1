package repo

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

func acquire(t testing.TB, r *Repo, kind string, run byte) *Holder {
	t.Helper()
	h, err := r.Acquire(context.Background(), kind, [16]byte{run})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// putLease writes a lease as another process would.
func putLease(t testing.TB, r *Repo, l Lease, seq int) string {
	t.Helper()
	name := leaseName(l.Run, seq)
	object, _, err := r.Keys.Seal(keys.KindLease, name, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Store.Put(t.Context(), name, object); err != nil {
		t.Fatal(err)
	}
	return name
}

func leases(t testing.TB, r *Repo) (live, stale []string) {
	t.Helper()
	list, stale, err := r.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		live = append(live, l.Name)
	}
	slices.Sort(live)
	slices.Sort(stale)
	return live, stale
}

func TestLeaseIsThereUntilReleased(t *testing.T) {
	r, st := newRepo(t)
	h := acquire(t, r, LeaseBackup, 1)
	list, stale, err := r.Leases(t.Context())
	if err != nil || len(list) != 1 || len(stale) != 0 {
		t.Fatalf("live %v, stale %v, %v; want one live", list, stale, err)
	}
	me := thisMachine{}.Process()
	if l := list[0]; l.Kind != LeaseBackup || l.PID != os.Getpid() || l.Host != me.Host || l.Boot != me.Boot || l.Birth != me.Birth || !strings.HasPrefix(l.Run, "01") {
		t.Errorf("lease %+v", l)
	}
	if !h.Valid() || h.Epoch() != 0 || len(h.Condemned.Segments) != 0 {
		t.Errorf("valid %v, epoch %d", h.Valid(), h.Epoch())
	}
	h.Release(t.Context())
	for name := range contents(t, st) {
		if strings.HasPrefix(name, "leases/") {
			t.Errorf("%s is left", name)
		}
	}
}

func TestRenewalsLeaveNoMomentWithoutALease(t *testing.T) {
	// A listing that begins before a renewal and reads its names after it must
	// find the lease all the same.
	r, st := newRepo(t)
	h := acquire(t, r, LeaseBackup, 1)
	defer h.Release(t.Context())
	for n := range 5 {
		r.Store = &midway{Store: st, act: func() {
			if err := h.renew(t.Context()); err != nil {
				t.Error(err)
			}
		}}
		live, _ := leases(t, r)
		r.Store = st
		if len(live) != 1 {
			t.Fatalf("renewal %d: %d leases seen by a listing that runs meanwhile, want 1", n, len(live))
		}
		if live, stale := leases(t, r); len(live) != 1 || len(stale) > 1 {
			t.Fatalf("renewal %d: live %v, stale %v", n, live, stale)
		}
	}
}

// D17: whoever is stopped between the listing and the reading of leases for so
// long that they were renewed twice must find them all the same.
func TestLeasesRenewedTwiceMeanwhileAreSeen(t *testing.T) {
	r, st := newRepo(t)
	h := acquire(t, r, LeaseBackup, 1)
	defer h.Release(t.Context())
	twice := sync.OnceFunc(func() {
		for range 3 {
			if err := h.renew(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	r.Store = hasty{st, twice}
	defer func() { r.Store = st }()
	if live, _ := leases(t, r); len(live) != 1 {
		t.Errorf("%d leases seen, want 1", len(live))
	}
}

// hasty does something after each listing, before anything of it is told.
type hasty struct {
	store.Store
	act func()
}

func (h hasty) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	var list []store.Info
	err := h.Store.List(ctx, prefix, func(o store.Info) error { list = append(list, o); return nil })
	h.act()
	for _, o := range list {
		err = errors.Join(err, f(o))
	}
	return err
}

// midway does something between the listing of names and the first of them.
type midway struct {
	store.Store
	act func()
}

func (m *midway) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	var names []store.Info
	if err := m.Store.List(ctx, prefix, func(o store.Info) error { names = append(names, o); return nil }); err != nil {
		return err
	}
	m.act()
	for _, o := range names {
		o, err := m.Store.Head(ctx, o.Name)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err == nil {
			err = f(o)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func TestRenewalThatFails(t *testing.T) {
	r, st := newRepo(t)
	h := acquire(t, r, LeaseBackup, 1)
	defer h.Release(t.Context())
	r.Store = hooked{st, func(string) error { return store.ErrNotDurable }}
	for range 3 {
		if err := h.renew(t.Context()); !errors.Is(err, store.ErrNotDurable) {
			t.Fatal(err)
		}
	}
	r.Store = st
	if live, _ := leases(t, r); len(live) != 1 {
		t.Errorf("live %v after renewals that failed, want the first", live)
	}
	for range 2 {
		if err := h.renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if live, stale := leases(t, r); len(live) != 1 || len(stale) != 1 {
		t.Errorf("live %v, stale %v, want one each", live, stale)
	}
}

// uptimeOnly is a machine that was up for as long as a test says.
type uptimeOnly struct {
	Machine
	uptime *atomic.Int64
}

func (m uptimeOnly) Uptime() time.Duration { return time.Duration(m.uptime.Load()) }

func TestLapsedLeaseStaysInvalid(t *testing.T) {
	for name, tt := range map[string]struct {
		pauses []time.Duration // each is followed by a renewal
		want   bool
	}{
		"renewed in time":       {[]time.Duration{LeaseTTL / 4, LeaseTTL / 4, LeaseTTL / 2 * 9 / 10}, true},
		"renewed at half":       {[]time.Duration{LeaseTTL / 4, LeaseTTL / 2}, false},
		"renewed after a sleep": {[]time.Duration{72 * time.Hour, LeaseTTL / 4, LeaseTTL / 4}, false},
	} {
		r, _ := newRepo(t)
		h := acquire(t, r, LeaseBackup, 1)
		var now atomic.Int64
		now.Store(int64(h.renewed))
		r.Machine = uptimeOnly{thisMachine{}, &now}
		for _, pause := range tt.pauses {
			now.Add(int64(pause))
			if err := h.renew(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.Valid(); got != tt.want {
			t.Errorf("%s: valid %v, want %v", name, got, tt.want)
		}
		now.Add(int64(LeaseTTL / 2))
		if h.Valid() {
			t.Errorf("%s: valid without a renewal for half its time", name)
		}
		if err := h.renew(t.Context()); err != nil || h.Valid() {
			t.Errorf("%s: valid again after it lapsed (%v)", name, err)
		}
		h.Release(t.Context())
	}
}

func TestUptimeMovesOn(t *testing.T) {
	var m thisMachine
	a := m.Uptime()
	for m.Uptime() == a {
	}
	if b := m.Uptime(); b < a {
		t.Errorf("%v, then %v", a, b)
	}
}

// gonePID is the ID of a process that has ended.
func gonePID(t *testing.T) int {
	t.Helper()
	c := exec.Command("/bin/true")
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	return c.Process.Pid
}

func TestDeadAndExpiredLeases(t *testing.T) {
	me := thisMachine{}.Process()
	other := func(change func(*Lease)) Lease {
		l := me
		l.Run, l.Kind = strings.Repeat("ab", 16), LeaseBackup
		change(&l)
		return l
	}
	dead := gonePID(t)
	for name, tt := range map[string]struct {
		lease Lease
		age   time.Duration
		live  bool
	}{
		"ours":                              {other(func(*Lease) {}), 0, true},
		"ours, as old as can be":            {other(func(*Lease) {}), LeaseTTL, true},
		"ours, expired":                     {other(func(*Lease) {}), LeaseTTL + 1, false},
		"of a process that is gone":         {other(func(l *Lease) { l.PID = dead }), 0, false},
		"of a process before us of this ID": {other(func(l *Lease) { l.Birth-- }), 0, false},
		"gone, of another boot":             {other(func(l *Lease) { l.PID, l.Boot = dead, "x" }), 0, true},
		"gone, of another host":             {other(func(l *Lease) { l.PID, l.Host = dead, "x" }), 0, true},
		"another host, expired":             {other(func(l *Lease) { l.PID, l.Host = dead, "x" }), LeaseTTL + 1, false},
	} {
		r, st := newRepo(t)
		putLease(t, r, tt.lease, 1)
		st.Advance(tt.age)
		live, stale := leases(t, r)
		if len(live)+len(stale) != 1 || (len(live) == 1) != tt.live {
			t.Errorf("%s: live %v, stale %v, want live %v", name, live, stale, tt.live)
		}
	}
}

func TestTheNewestObjectOfALeaseCounts(t *testing.T) {
	r, st := newRepo(t)
	l := thisMachine{}.Process()
	l.Run = strings.Repeat("ab", 16)
	first := putLease(t, r, l, 0xf)
	st.Advance(LeaseTTL)
	second := putLease(t, r, l, 0x10)
	st.Advance(LeaseTTL)
	if live, stale := leases(t, r); !slices.Equal(live, []string{second}) || !slices.Equal(stale, []string{first}) {
		t.Errorf("live %v, stale %v, want the second and the first", live, stale)
	}
	st.Advance(time.Hour)
	if live, stale := leases(t, r); len(live) != 0 || len(stale) != 2 {
		t.Errorf("live %v, stale %v, want both stale", live, stale)
	}
}

func TestUnreadableLeaseHoldsAsLongAsAnother(t *testing.T) {
	// Nobody knows whose it is, nor since when: somebody may be using anything.
	r, st := newRepo(t)
	name := "leases/" + strings.Repeat("cd", 16) + "-00000001"
	st.Replace(name, []byte("damaged"))
	live, stale, err := r.Leases(t.Context())
	if err != nil || len(live) != 1 || live[0].Name != name || live[0].Kind != LeaseBackup || live[0].Epoch != 0 || len(stale) != 0 {
		t.Errorf("got %+v, stale %v, %v; want it alive, of epoch 0", live, stale, err)
	}
	st.Advance(LeaseTTL + 1)
	if live, stale := leases(t, r); len(live) != 0 || !slices.Equal(stale, []string{name}) {
		t.Errorf("after its time: live %v, stale %v", live, stale)
	}
}

func TestAcquireFailsWithItsStore(t *testing.T) {
	r, st := newRepo(t)
	r.Store = hooked{st, func(string) error { return store.ErrFull }}
	if _, err := r.Acquire(t.Context(), LeaseBackup, [16]byte{1}); !errors.Is(err, store.ErrFull) {
		t.Errorf("got %v, want full", err)
	}
	if live, stale := leases(t, r); len(live)+len(stale) != 0 {
		t.Errorf("live %v, stale %v are left", live, stale)
	}
}

func TestAcquireReadsTheListAgain(t *testing.T) {
	// A list published between the first look and the lease counts as known,
	// and its epoch as later than the lease.
	r, st := newRepo(t)
	s := CondemnedSegment{Segment: image.SegmentID{1}, Epoch: 1}
	r.Store = hooked{st, func(name string) error {
		if strings.HasPrefix(name, "leases/") {
			plain := *r
			plain.Store = st
			return plain.PublishCondemned(t.Context(), &Condemned{Epoch: 1, Segments: []CondemnedSegment{s}})
		}
		return nil
	}}
	h := acquire(t, r, LeaseBackup, 1)
	defer h.Release(t.Context())
	if !h.Condemned.IDs()[s.Segment] || h.Epoch() != 0 {
		t.Errorf("condemned %v, epoch %d; want the segment, and 0", h.Condemned.IDs(), h.Epoch())
	}
}

// A distant store is one that requests reach late.
type distant struct {
	store.Store
	waited *atomic.Int64
}

func (d distant) Flight() time.Duration {
	d.waited.Add(1)
	return time.Millisecond
}

// D17: a process that died may have a manifest on its way. It is waited for,
// once, before anybody looks at manifests.
func TestRequestsOfTheDeadAreWaitedFor(t *testing.T) {
	r, st := newRepo(t)
	var waited atomic.Int64
	r.Store = distant{st, &waited}
	l := r.Machine.Process()
	l.Run, l.Kind, l.PID, l.Birth = strings.Repeat("ab", 16), LeaseBackup, 1<<22+1, 1 // above what the kernel gives
	name := putLease(t, r, l, 1)
	for range 3 {
		if live, stale := leases(t, r); len(live) != 0 || !slices.Equal(stale, []string{name}) {
			t.Errorf("live %q, stale %q, want only %q stale", live, stale, name)
		}
	}
	if waited.Load() != 1 {
		t.Errorf("waited %d times, want once", waited.Load())
	}
}
