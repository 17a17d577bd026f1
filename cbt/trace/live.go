package trace

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"platter/block"
	"platter/cbt"
)

// Between returns what was marked in the generations from one number to before
// another. What is older than the session is not among it.
func (s *Session) Between(from, to uint64) *cbt.Set {
	return s.union(slices.DeleteFunc(slices.Clone(s.own), func(g *generation) bool {
		return g.number() < from || g.number() >= to
	}))
}

// Since is Between from a number to now.
func (s *Session) Since(from uint64) *cbt.Set { return s.Between(from, s.Number()+1) }

// Number is that of the generation that goes on.
func (s *Session) Number() uint64 { return s.last().number() }

func (s *Session) union(members history) *cbt.Set {
	set := cbt.NewSet(s.place.Length)
	for _, g := range members {
		s.add(set, g)
	}
	return set
}

// Hold keeps others from beginning generations until release is called, as
// long as disks are frozen. All sessions are of one tracer; each goes on with
// the generation that its disk is in.
func Hold(sessions ...*Session) (release func() error, err error) {
	held, err := lock(sessions[0].tracer.dir)
	if err != nil {
		return nil, err
	}
	for _, s := range sessions {
		if err = s.join(); err != nil {
			return nil, errors.Join(err, held.Close())
		}
	}
	return held.Close, nil
}

// Residue appends to list what Since returns, and reports whether it had room
// for all. It allocates nothing. Extents may overlap, and are of the device.
func (s *Session) Residue(from uint64, list []block.Extent) (_ []block.Extent, ok bool) {
	for _, g := range s.own {
		if g.number() < from {
			continue
		}
		if !g.each(func(e block.Extent) bool {
			e.Offset -= s.place.Offset
			end := min(e.End(), s.place.Length)
			if e.Offset = max(e.Offset, 0); e.Offset >= end {
				return true
			}
			if len(list) == cap(list) {
				return false
			}
			list = append(list, block.Extent{Offset: e.Offset, Length: end - e.Offset})
			return true
		}) {
			return list, false
		}
	}
	return list, true
}

// Within reports whether all that is marked in the generation that goes on
// lies in the extents of the device, as far as its unit tells.
func (s *Session) Within(extents []block.Extent) bool {
	unit := s.last().unit()
	return s.last().each(func(e block.Extent) bool {
		e.Offset -= s.place.Offset
		return slices.ContainsFunc(extents, func(in block.Extent) bool {
			return e.Offset+unit > in.Offset && e.End()-unit < in.End()
		})
	})
}

// NextHeld is Next while Hold lasts.
func (s *Session) NextHeld() error { return s.next() }

// Events returns how often anything of the disk was marked in the generation
// that goes on.
func (s *Session) Events() uint64 { return s.last().get(headEvents) }

// Whole returns an error wrapping cbt.ErrHistoryLost if anything may have gone
// by unseen since the session began.
func (s *Session) Whole() error { return s.vouch(s.own[:1:1]) }

// InFlight returns how many writes are on their way to the disk, at least one
// with an error. A request counts from when its driver gets it: one that waits
// before that will be marked when the driver does.
func (s *Session) InFlight() (int, error) {
	for _, g := range s.own {
		if g.get(headAdrift) > 0 {
			return 1, errAdrift
		}
	}
	if !s.Counted() {
		return 1, errUncounted
	}
	if !s.place.bios {
		return s.kernelInFlight()
	}
	n, err := s.flights()
	if err != nil || n > 0 {
		return max(n, 1), err
	}
	if !s.place.counts {
		return 0, nil
	}
	return s.kernelInFlight()
}

// Counted reports whether InFlight can tell: the kernel counts, or the tracer
// does from a moment on at which nothing was in flight.
func (s *Session) Counted() bool { return s.place.counts || s.drained }

// Drained says that since the session began there was such a moment.
func (s *Session) Drained() { s.drained = s.place.bios }

var (
	errAdrift    = errors.New("the tracer lost track of what is in flight")
	errUncounted = errors.New("the kernel does not count what is in flight: echo 1 > /sys/block/DISK/queue/iostats")
	errInFlight  = errors.New("read what is in flight: not two numbers")
)

// flights counts the bios that were queued for the disk and are not done.
func (s *Session) flights() (n int, err error) {
	var bio uint64
	var flight [flightBytes / 8]uint64
	all := s.tracer.flights.Iterate()
	for all.Next(&bio, &flight) {
		if uint32(flight[0]) == s.place.key {
			n++
		}
	}
	return n, all.Err()
}

// kernelInFlight returns how many writes the kernel says are with the driver:
// the second number of the file. It asks for no memory.
func (s *Session) kernelInFlight() (int, error) {
	n, err := s.inFlight.ReadAt(s.text[:], 0)
	if err != nil && err != io.EOF {
		return 1, fmt.Errorf("read what is in flight: %w", err)
	}
	numbers, value, digits := 0, 0, false
	for _, c := range s.text[:n] {
		switch {
		case c >= '0' && c <= '9':
			if !digits {
				numbers, value = numbers+1, 0
			}
			value, digits = value*10+int(c-'0'), true
		default:
			digits = false
		}
	}
	if numbers != 2 {
		return 1, errInFlight
	}
	return value, nil
}
