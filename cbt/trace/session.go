package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"platter/block"
	"platter/cbt"
)

// A Session is a run of one consumer over one device. It is a cbt.Tracker: its
// still view is the device at the moment the session or the last Next began.
// That moment is one at which nobody writes to the device, or the caller copies
// what Recent says once more, as live imaging does.
type Session struct {
	tracer   *Tracer
	place    place
	consumer consumerKey
	began    string
	kept     history  // what was there when the session began
	own      history  // what it began, the last of which the programs write to
	inFlight *os.File // of the disk, in sysfs
	text     [64]byte // of that
	drained  bool     // all that is in flight was queued since the session began
}

var _ cbt.Tracker = (*Session)(nil)

// Session begins a run of a consumer, which is one volume in one repository,
// over a disk or partition. If the tracer has no history of the disk that goes
// on, one begins, and Began says why.
func (t *Tracer) Session(path, consumer string) (*Session, error) {
	p, err := lookUp(path)
	if err != nil {
		return nil, err
	}
	s := &Session{tracer: t, place: p, consumer: keyOf(consumer, p.key)}
	if s.inFlight, err = os.Open(filepath.Join(p.dir, "inflight")); err != nil {
		return nil, fmt.Errorf("trace %s: %w", path, err)
	}
	err = t.locked(func() (err error) {
		if s.kept, s.began, err = t.watch(p.disk); err != nil {
			return err
		}
		if err := s.next(); err != nil {
			return err
		}
		return s.register()
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace %s: %w", path, err), s.Close())
	}
	return s, nil
}

// register makes a new consumer known, so that nobody drops what it will need.
func (s *Session) register() error {
	var r consumerRecord
	err := s.tracer.consumers.Lookup(s.consumer, &r)
	if err == nil && r.History == s.last().get(bodyHistory) {
		return nil
	}
	r = consumerRecord{s.last().number(), s.last().get(bodyHistory)}
	err = s.tracer.consumers.Put(s.consumer, r)
	if errors.Is(err, ebpf.ErrKeyExist) || err == nil {
		return nil
	}
	// With too many consumers this one goes without a record: its history may
	// be gone the next time, which it will be told.
	return nil
}

// Name is "trace".
func (s *Session) Name() string { return Name }

// Began says why the history of the disk began with this session, "" if it is
// older.
func (s *Session) Began() string { return s.began }

func (s *Session) last() *generation { return s.own.last() }

// Next begins a generation: the view is from now on the device as it is now.
func (s *Session) Next() error {
	return s.tracer.locked(s.next)
}

// next begins a generation. The caller holds the lock.
func (s *Session) next() error {
	if len(s.own) > 0 {
		if err := s.join(); err != nil {
			return err
		}
	}
	after := s.kept
	if len(s.own) > 0 {
		after = s.own
	}
	g, err := s.tracer.begin(s.place.disk, after.last(), after.last().get(bodyHistory))
	if err != nil {
		return err
	}
	s.own = append(s.own, g)
	return nil
}

// join takes in what generations others began.
func (s *Session) join() error {
	present, err := s.tracer.present(s.place.key)
	if err != nil {
		return err
	}
	if present == nil {
		return fmt.Errorf("disk %s is not watched any more: %w", s.place.name, cbt.ErrHistoryLost)
	}
	switch {
	case present.get(bodyHistory) != s.last().get(bodyHistory):
		err = fmt.Errorf("the history of %s began anew: %w", s.place.name, cbt.ErrHistoryLost)
	case present.number() != s.last().number():
		err = s.catchUp(present.number())
	case present.get(headNonce) != s.last().get(headNonce):
		err = fmt.Errorf("generation %d of %s is another one: %w", present.number(), s.place.name, cbt.ErrHistoryLost)
	}
	return errors.Join(err, present.Close())
}

// catchUp takes in the generations that others began up to number n.
func (s *Session) catchUp(n uint64) error {
	for i := s.last().number() + 1; i <= n; i++ {
		g, err := s.tracer.load(s.place.key, i)
		if err != nil {
			return err
		}
		s.own = append(s.own, g)
	}
	return nil
}

// Mark returns the generation of the view.
func (s *Session) Mark(context.Context) (cbt.Generation, error) {
	g := s.last()
	return stamp{
		Version: version, Tracer: s.tracer.id, Boot: s.tracer.boot, History: g.get(bodyHistory),
		Nonce: g.get(headNonce), Number: g.number(), Disk: s.place.key, Seq: s.place.seq,
		Offset: s.place.Offset, Length: s.place.Length,
	}.encode(), nil
}

// Changed returns what was marked between a generation and the view.
func (s *Session) Changed(_ context.Context, since cbt.Generation) (*cbt.Set, error) {
	from, err := s.from(since)
	if err != nil {
		return nil, err
	}
	all := append(append(history{}, s.kept...), s.own...)
	var members history
	for _, g := range all[:len(all)-1] {
		if g.number() >= from.Number {
			members = append(members, g)
		}
	}
	if len(members) == 0 || members[0].number() != from.Number || members[0].get(headNonce) != from.Nonce {
		return nil, lost("the tracer does not keep generation %d any more", from.Number)
	}
	for i, g := range append(slices.Clone(members[1:]), s.last()) {
		if g.get(bodyBefore) != members[i].get(bodyLast) {
			return nil, lost("what came after generation %d is gone", members[i].number())
		}
	}
	if err := s.vouch(members); err != nil {
		return nil, err
	}
	set := cbt.NewSet(s.place.Length)
	for _, g := range members {
		s.add(set, g)
	}
	return set, nil
}

func lost(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), cbt.ErrHistoryLost)
}

// from returns what a generation says if it is of this history.
func (s *Session) from(since cbt.Generation) (stamp, error) {
	from, err := decodeStamp(since)
	switch {
	case err != nil:
		return from, lost("%v", err)
	case from.Boot != s.tracer.boot:
		return from, lost("the machine was started anew since")
	case from.Tracer != s.tracer.id:
		return from, lost("the tracer was stopped since")
	case s.began != "" && from.History != s.last().get(bodyHistory):
		return from, lost("%s", s.began)
	case from.Disk != s.place.key || from.Seq != s.place.seq:
		return from, lost("the generation is of another disk, %s", keyText(from.Disk))
	case from.Offset != s.place.Offset || from.Length != s.place.Length:
		return from, lost("the generation is of %d bytes at %d of the disk, this is %d at %d",
			from.Length, from.Offset, s.place.Length, s.place.Offset)
	case from.History != s.last().get(bodyHistory):
		return from, lost("the generation is of a history that has ended")
	case from.Number >= s.last().number():
		return from, lost("generation %d is not before this one, %d", from.Number, s.last().number())
	}
	return from, nil
}

// vouch returns an error if anything may have gone by unseen since the first of
// the generations began.
func (s *Session) vouch(members history) error {
	for _, g := range append(members, s.last()) {
		if why := g.loss(); why != "" {
			return lost("%s", why)
		}
	}
	misses, err := s.tracer.misses()
	if err != nil {
		return lost("%v", err)
	}
	if n := misses - members[0].get(headMisses); n > 0 {
		return lost("%d events went by while a program was busy", n)
	}
	var events uint64
	for _, g := range append(members, s.last()) {
		events += g.get(headEvents)
	}
	if n := s.place.written() - members[0].get(headWritten); n > 0 && events == 0 {
		return lost("the kernel counted %d sectors written, and the tracer saw none", n)
	}
	return nil
}

// add puts into set what of the device is marked in g.
func (s *Session) add(set *cbt.Set, g *generation) {
	g.each(func(e block.Extent) bool {
		e.Offset -= s.place.Offset
		set.Add(e)
		return true
	})
}

// Commit says that the consumer has an image of generation g, and needs
// nothing that is older.
func (s *Session) Commit(_ context.Context, g cbt.Generation) error {
	at, err := decodeStamp(g)
	if err != nil {
		return fmt.Errorf("commit to the tracer: %w", err)
	}
	return s.tracer.locked(func() error {
		h, err := s.tracer.history(s.place.key)
		if err != nil || len(h) == 0 {
			return errors.Join(err, h.Close())
		}
		defer h.Close()
		if h.last().get(bodyHistory) != at.History || s.tracer.id != at.Tracer {
			return nil // there is nothing left to give up
		}
		if err := s.tracer.consumers.Put(s.consumer, consumerRecord{at.Number, at.History}); err != nil {
			return fmt.Errorf("note the consumer's generation: %w", err)
		}
		return s.tracer.prune(s.place.key, h)
	})
}

// Close ends the session. What it began and did not commit stays for the next.
func (s *Session) Close() error {
	return errors.Join(s.kept.Close(), s.own.Close(), s.inFlight.Close())
}
