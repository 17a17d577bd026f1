// Package agent runs jobs on a schedule, beside the disks.
//
// One goroutine, that of Run, decides everything: what is due, what may begin,
// what is tried again. What it has decided is on disk before a run begins, so
// that no run is lost by a crash. Every time that a job is due ends in a run,
// or in an event that says it was skipped or missed.
package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"platter/internal/agent/config"
	"platter/internal/agent/event"
)

// A Task is one attempt at a run of a job.
type Task struct {
	Run        string // 16 hex digits, the same for all attempts
	Job        *config.Job
	Repository *config.Repository // nil for that of the environment
	Config     string             // path of the config
	Due        time.Time          // zero if asked for by hand
	Attempt    int                // from 1
}

// A Result says how an attempt ended.
type Result struct {
	Exit   int      // status of the command; -1 if it was not started, or killed
	Error  string   // what went wrong, in a line
	Images []string // made, in hex
}

// A Runner does what jobs are about.
type Runner interface {
	// Run makes one attempt, and returns when it is over. When ctx ends it is
	// stopped in a way that lets a later one go on.
	Run(ctx context.Context, t Task, progress func(Progress)) Result
}

// Progress is a moment of a run. Sizes are in bytes.
type Progress struct {
	Job     string `json:"job"`
	Subject string `json:"subject,omitempty"`
	Phase   string `json:"phase,omitempty"`
	Done    int64  `json:"bytes_done"`
	Total   int64  `json:"bytes_total"` // 0 while unknown
	Stored  int64  `json:"bytes_stored"`
	Rate    int64  `json:"bytes_per_second"`
	Left    int64  `json:"seconds_left,omitempty"`
}

// Options are what an agent works with.
type Options struct {
	Config  string // path, as config.Load wants it
	State   string // directory for what must survive a restart
	Machine string // what tells this machine from others, for jitter
	Runner  Runner
	Log     *slog.Logger
	// Load reads the config; nil for config.Load.
	Load func(path string) (*config.Config, error)
	// Observe is told of every event; nil for nobody.
	Observe func(event.Event)
	// Now is the machine's clock; nil for time.Now.
	Now func() time.Time
	// Alive is called at least so often while all is well; it may be nil.
	Alive      func()
	AliveEvery time.Duration
}

// An Agent is one that runs. Its methods may be called by anybody while Run
// goes on.
type Agent struct {
	opts     Options
	config   *config.Config
	jobs     []*job // in the order of the config, then those that are gone from it
	paused   pause
	store    store
	requests chan func()
	ended    chan *run
	running  int
	begun    time.Time // the agent, by the machine's clock
	lastWall time.Time
	lastMono time.Time
	stopping bool
	size     int           // of the state when it was saved last, in bytes
	changed  bool          // the state, since it was saved
	trouble  string        // what keeps the state from being saved; "" while all is well
	over     chan struct{} // closed when Run returns
}

// pollEvery is how often the clock is looked at: it may be set, and timers do
// not see that, nor that the machine slept.
const pollEvery = 30 * time.Second

// Why a run was stopped.
var (
	errStopping = errors.New("the agent stops; the run goes on when it starts again")
	errWindow   = errors.New("its window closed; the run goes on when it opens")
	errPaused   = errors.New("paused; the run goes on when it is resumed")
	errByHand   = errors.New("stopped by hand")
	ErrTooLong  = errors.New("it took longer than stop-after allows")
)

// New reads the config and what an earlier agent left. Nothing runs yet.
func New(opts Options) (*Agent, error) {
	if opts.Load == nil {
		opts.Load = config.Load
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Observe == nil {
		opts.Observe = func(event.Event) {}
	}
	conf, err := opts.Load(opts.Config)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		opts: opts, store: store{dir: opts.State}, requests: make(chan func()), ended: make(chan *run), over: make(chan struct{}),
	}
	saved, damage := a.store.load()
	a.begun = a.now()
	a.lastWall, a.lastMono = a.begun, time.Now()
	a.paused = saved.Paused
	if damage != nil {
		a.tell(event.Event{Kind: event.Trouble, Error: damage.Error()})
	}
	a.take(conf, saved.Jobs)
	return a, nil
}

// now is the wall clock alone: differences of two count what was set.
func (a *Agent) now() time.Time { return a.opts.Now().Round(0) }

// Run runs jobs until ctx ends, then stops what runs and waits for it. The
// error says that what is to go on later could not be saved.
func (a *Agent) Run(ctx context.Context) error {
	defer close(a.over)
	for _, j := range a.jobs {
		a.resume(j)
	}
	alive := a.opts.AliveEvery
	if alive <= 0 || alive > pollEvery {
		alive = pollEvery
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return a.stop()
		case <-timer.C:
		case r := <-a.ended:
			a.finish(r)
		case f := <-a.requests:
			f()
		}
		a.plan()
		if a.opts.Alive != nil {
			a.opts.Alive()
		}
		timer.Reset(min(alive, a.wait()))
	}
}

// do has f called by the goroutine of Run.
func (a *Agent) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case a.requests <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-a.over:
		return errors.New("the agent has stopped")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop ends all that runs, and keeps what is to go on.
func (a *Agent) stop() error {
	a.stopping = true
	for _, j := range a.jobs {
		if j.run != nil {
			j.run.stop(errStopping)
		}
	}
	for a.running > 0 {
		a.finish(<-a.ended)
	}
	return a.save()
}

// plan tells of what is due, and begins what may begin.
func (a *Agent) plan() {
	now := a.now()
	a.watchClock(now)
	for _, j := range a.jobs {
		a.due(j, now)
		a.limit(j, now)
	}
	var ready []*job
	for _, j := range a.jobs {
		if j.Waiting != nil && !j.Waiting.At.After(now) {
			ready = append(ready, j)
		}
	}
	slices.SortStableFunc(ready, func(x, y *job) int { return x.Waiting.At.Compare(y.Waiting.At) })
	for _, j := range ready {
		if a.obstacle(j, now) == "" {
			a.begin(j, now)
		}
	}
	a.jobs = slices.DeleteFunc(a.jobs, func(j *job) bool { return j.gone && j.run == nil })
	a.keep()
}

// keep saves what must survive. An agent that cannot goes on: what it forgets
// by dying is due again for the next one. It tells of it once.
func (a *Agent) keep() {
	if !a.changed {
		return
	}
	text := ""
	if err := a.save(); err != nil {
		text = err.Error()
	}
	a.changed = text != ""
	if (text == "") != (a.trouble == "") {
		a.tell(event.Event{Kind: event.Trouble, Error: text})
	}
	a.trouble = text
}

// wait returns how long nothing will happen by itself.
func (a *Agent) wait() time.Duration {
	now, least := a.now(), pollEvery
	for _, j := range a.jobs {
		if !j.next.IsZero() && j.next.After(now) {
			least = min(least, j.next.Sub(now))
		}
		if j.Waiting != nil && j.Waiting.At.After(now) {
			least = min(least, j.Waiting.At.Sub(now))
		}
	}
	return max(least, time.Millisecond)
}

// watchClock tells when the clock was set: by the other clock, which nobody
// sets, another time would be due.
func (a *Agent) watchClock(now time.Time) {
	mono := time.Now()
	jump := now.Sub(a.lastWall) - mono.Sub(a.lastMono)
	a.lastWall, a.lastMono = now, mono
	if jump.Abs() <= time.Minute {
		return
	}
	text := fmt.Sprintf("the clock was set forward by %s, or the machine slept", jump.Round(time.Second))
	if jump < 0 {
		text = fmt.Sprintf("the clock was set back by %s", -jump.Round(time.Second))
	}
	a.tell(event.Event{Kind: event.Clock, Error: text})
	if jump < 0 {
		for _, j := range a.jobs {
			j.rewind(now)
			a.note(j)
		}
	}
}

// tell passes an event on, and writes it to the log.
func (a *Agent) tell(e event.Event) {
	e.At = a.now()
	a.opts.Observe(e)
	level := slog.LevelInfo
	if e.Kind != event.Started && (e.Error != "" || e.Exit != 0) {
		level = slog.LevelWarn
		if e.Final && e.Exit != 3 {
			level = slog.LevelError
		}
	}
	args := []any{"event", string(e.Kind)}
	add := func(key string, v any, there bool) {
		if there {
			args = append(args, key, v)
		}
	}
	add("job", e.Job, e.Job != "")
	add("run", e.Run, e.Run != "")
	add("due", e.Due, !e.Due.IsZero())
	add("count", e.Count, e.Count > 0)
	add("attempt", e.Attempt, e.Attempt > 1)
	add("exit", e.Exit, e.Kind == event.Finished)
	add("images", strings.Join(e.Images, " "), len(e.Images) > 0)
	add("duration_ms", e.Took.Milliseconds(), e.Took > 0)
	add("why", e.Error, e.Error != "" && e.Kind == event.Started)
	add("error", e.Error, e.Error != "" && e.Kind != event.Started)
	add("next", e.Next, !e.Next.IsZero())
	a.opts.Log.Log(context.Background(), level, "job", args...)
}

func newRunID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
