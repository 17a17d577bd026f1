package job

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"platter/image/repo"
)

// A schedule is one life of a repository in which machines back up, forget,
// collect, verify and restore at once. It decides who does the next operation
// of the store, when time passes, who stops for two hours and who dies; all of
// it follows from the seed.
//
// Everything runs in a bubble of synctest: a step ends when every process
// waits, for its turn or for another of its own goroutines.
type schedule struct {
	*world
	t      *testing.T
	seed   uint64
	rng    *rand.Rand
	calm   bool // leases are renewed in time unless their process is stopped
	grace  time.Duration
	minAge time.Duration
	mutant *mutant // nil for the program as it is

	processes []*process
	steps     int
	trace     []happening
	problems  []string
	over      bool // what happens now is no problem any more
}

// A process is a program on a machine, up to its end or death.
type process struct {
	s       *schedule
	name    string
	machine *machine
	pid     int
	run     func(p *process) // the program
	begins  int              // after so many steps
	weight  int              // how often it gets its turn
	pending []*request       // operations that wait for their turn
	ops     int              // so far
	dies    int              // at this operation; 0 for never
	revives bool
	dead    bool
	done    bool
	stopped time.Duration // until then, by true time
	stalled int           // until then, by steps: others are all faster
	renewed time.Duration // its lease, last: when it asked for that, by true time
	late    bool          // it was stopped: its lease may have lapsed
	memory  *memo         // of a broken program
}

// A request is an operation of the store that waits for its turn.
type request struct {
	what string
	made time.Duration // by true time
	turn chan error
}

// errDead is what a dead process is told, if it were still there to listen.
var errDead = errors.New("the process is dead")

// step waits for this process's turn. An error means that the operation does
// not happen; after is set when it happens and nobody learns of it.
func (p *process) step(kind, name string) (after bool, err error) {
	if p.dead {
		return false, errDead
	}
	p.s.mu.Lock()
	r := &request{kind + " " + name, p.s.elapsed, make(chan error)}
	p.pending = append(p.pending, r)
	p.s.mu.Unlock()
	err = <-r.turn
	if errors.Is(err, errUnheard) {
		return true, nil
	}
	return false, err
}

// waiting returns the requests so far: a renewal may be coming.
func (p *process) waiting() []*request {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.pending
}

// none forgets the requests.
func (p *process) none() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.pending = nil
}

// errUnheard makes an operation the last of its process, with its effect.
var errUnheard = errors.New("died before the answer")

// play runs all processes to their end.
func (s *schedule) play() {
	for len(s.problems) == 0 {
		for _, p := range s.processes {
			if p.pid == 0 && p.begins <= s.steps {
				s.launch(p)
			}
		}
		synctest.Wait()
		if s.rng.IntN(40) == 0 {
			s.shake()
		}
		p := s.choose()
		if p == nil {
			if !s.rest() {
				break
			}
			continue
		}
		s.pass(p)
	}
	// After a problem the others still have to end.
	s.over = len(s.problems) > 0
	for s.busy() {
		for _, p := range s.processes {
			if p.pid == 0 {
				p.pid, p.done = -1, true
			}
			p.dead = true
			for _, r := range p.waiting() {
				r.turn <- errDead
			}
			p.none()
		}
		synctest.Wait()
	}
}

func (s *schedule) launch(p *process) {
	p.pid = len(s.trace) + 100 + len(s.processes)
	p.machine.alive[p.pid] = true
	p.weight = s.speed()
	go func() {
		p.run(p)
		p.machine.close(p.dead)
		s.mu.Lock()
		p.done = true
		s.mu.Unlock()
	}()
}

func (s *schedule) busy() bool {
	for _, p := range s.processes {
		if !p.done {
			return true
		}
	}
	return false
}

// shake changes who is fast, lets time pass, and stops a process now and then.
// One that stalls lets others do all that they have to do meanwhile, as from the
// first look of a collection to its last.
func (s *schedule) shake() {
	for _, p := range s.processes {
		p.weight = s.speed()
	}
	if s.rng.IntN(3) == 0 {
		s.processes[s.rng.IntN(len(s.processes))].stalled = s.steps + s.rng.IntN(400)
	}
	switch s.rng.IntN(12) {
	case 0:
		s.stop(s.processes[s.rng.IntN(len(s.processes))])
	case 1:
		s.stop(s.byName("collect1"))
	case 2:
		s.nap(s.processes[s.rng.IntN(len(s.processes))])
	case 3, 4, 5:
		s.wait(time.Duration(s.rng.Int64N(int64(4 * time.Minute))))
	}
}

func (s *schedule) speed() int { return []int{1, 1, 8, 64}[s.rng.IntN(4)] }

func (s *schedule) byName(name string) *process {
	for _, p := range s.processes {
		if p.name == name {
			return p
		}
	}
	panic(name)
}

// stop stops a process for two hours, or has its machine sleep, which stops
// its clocks too, all but the one that counts.
func (s *schedule) stop(p *process) {
	if p.done || p.stopped > s.elapsed || s.late() > 1 {
		return
	}
	p.late = true
	p.stopped = s.elapsed + 2*time.Hour
	p.machine.asleep = s.rng.IntN(2) == 0
	s.note(p.name, "stops for two hours, asleep: "+strconv.FormatBool(p.machine.asleep))
}

// nap stops a process for as long as its own lease outlasts, while others renew
// theirs once or twice: what it was reading of them is gone when it goes on.
func (s *schedule) nap(p *process) {
	const most = repo.LeaseTTL/2 - 2*time.Minute
	d := most - (s.elapsed - p.renewed)
	if !s.calm || p.done || p.stopped > s.elapsed || d < 0 || slices.ContainsFunc(p.waiting(), p.renews) {
		return
	}
	s.note(p.name, "naps")
	p.stopped = s.elapsed + d
	s.wait(d)
	s.renewals()
}

func (s *schedule) late() (n int) {
	for _, p := range s.processes {
		if p.late {
			n++
		}
	}
	return n
}

// wait lets time pass. Machines that are awake renew their leases meanwhile,
// unless the schedule is not calm.
func (s *schedule) wait(d time.Duration) {
	if d < time.Minute || !s.calm {
		s.advance(d)
		synctest.Wait()
		return
	}
	s.renewals()
	for d > 0 {
		step := min(d, 2*time.Minute)
		s.advance(step)
		synctest.Wait()
		s.renewals()
		d -= step
	}
}

// renewals gives renewals of leases their turn, and what follows from them.
func (s *schedule) renewals() {
	for again := true; again; {
		again = false
		for _, p := range s.processes {
			for i, r := range p.waiting() {
				if p.stopped > s.elapsed || !p.renews(r) {
					continue
				}
				again = true
				s.grant(p, i)
				break
			}
		}
	}
}

// renews reports whether a request belongs to a renewal.
func (p *process) renews(r *request) bool {
	return strings.HasPrefix(r.what, "put leases/") || strings.HasPrefix(r.what, "delete leases/")
}

// choose draws who is next; nil when nobody can.
func (s *schedule) choose() *process {
	can := func(p *process) bool { return len(p.waiting()) > 0 && p.stopped <= s.elapsed }
	if p := s.next(func(p *process) bool { return can(p) && p.stalled <= s.steps }); p != nil {
		return p
	}
	return s.next(can)
}

// next draws one of those that can, by their weights.
func (s *schedule) next(can func(*process) bool) *process {
	total := 0
	for _, p := range s.processes {
		if can(p) {
			total += p.weight
		}
	}
	if total == 0 {
		return nil
	}
	n := s.rng.IntN(total)
	for _, p := range s.processes {
		if !can(p) {
			continue
		}
		if n -= p.weight; n < 0 {
			return p
		}
	}
	panic("nobody drawn")
}

// rest is for when nobody can go on: time passes until one can.
func (s *schedule) rest() bool {
	for _, p := range s.processes {
		if p.stopped > s.elapsed && len(p.waiting()) > 0 {
			s.wait(min(p.stopped-s.elapsed, 3*time.Minute))
			return true
		}
	}
	for _, p := range s.processes {
		if p.pid == 0 {
			p.begins = s.steps
			return true
		}
	}
	if s.busy() {
		stacks := make([]byte, 1<<20)
		s.problem("nobody can go on: a deadlock\n%s", stacks[:runtime.Stack(stacks, true)])
	}
	return false
}

// pass lets a process do its next operation, or die of it.
func (s *schedule) pass(p *process) {
	s.advance(time.Duration(s.rng.Int64N(int64(200 * time.Millisecond))))
	s.grant(p, s.rng.IntN(len(p.waiting())))
}

func (s *schedule) grant(p *process, i int) {
	s.mu.Lock()
	r := p.pending[i]
	p.pending = append(p.pending[:i:i], p.pending[i+1:]...)
	s.mu.Unlock()
	p.ops++
	s.steps++
	if p.ops == p.dies {
		s.kill(p, r)
		return
	}
	s.note(p.name, r.what)
	if strings.HasPrefix(r.what, "put leases/") {
		p.renewed = r.made
	}
	if s.steps > 100_000 {
		s.problem("it does not end")
	}
	r.turn <- nil
	synctest.Wait()
	if m := s.mutant; m != nil && m.after != nil {
		m.after(s, p, r.what)
	}
}

// kill ends a process at an operation, which had its effect or had not. What
// else it asked for never happens.
func (s *schedule) kill(p *process, r *request) {
	effect := s.rng.IntN(2) == 0
	s.note(p.name, fmt.Sprintf("dies at %s, effect: %v", r.what, effect))
	p.dead = true
	delete(p.machine.alive, p.pid)
	if effect {
		r.turn <- errUnheard
	} else {
		r.turn <- errDead
	}
	for _, other := range p.waiting() {
		other.turn <- errDead
	}
	p.none()
	synctest.Wait()
	if p.revives {
		again := *p
		again.name, again.dead, again.done, again.dies, again.ops, again.pending, again.memory = p.name+"'", false, false, 0, 0, nil, nil
		s.processes = append(s.processes, &again)
		s.launch(&again)
	}
	synctest.Wait() // until it asks for something, too
}

// A happening is what a process did, or what befell it.
type happening struct {
	step      int
	when      time.Duration
	who, what string
}

func (s *schedule) note(who, what string) {
	s.trace = append(s.trace, happening{s.steps, s.elapsed, who, what})
}

// String cuts the random numbers of names.
func (h happening) String() string {
	return fmt.Sprintf("%5d %12v %-9s %s", h.step, h.when.Round(time.Millisecond), h.who, longHex.ReplaceAllString(h.what, "$1"))
}

var longHex = regexp.MustCompile(`\b([0-9a-f]{6})[0-9a-f]{26}\b`)

func (s *schedule) problem(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}
