package agent

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"platter/internal/agent/config"
	"platter/internal/agent/event"
	"platter/internal/agent/schedule"
)

// A job is one of the config, and what the agent knows of it.
type job struct {
	kept
	conf *config.Job
	repo *config.Repository
	next time.Time // that it is due by its schedule; zero for never
	run  *run      // nil while it does not run
	gone bool      // from the config
	text []byte    // kept, as it is saved; nil since it has changed
}

// note is called after what is kept of a job was changed.
func (a *Agent) note(j *job) { j.text, a.changed = nil, true }

// kept is what survives a restart.
type kept struct {
	// Handled: every time that the job was due until then has been told of.
	Handled  time.Time `json:"handled"`
	Schedule string    `json:"schedule"` // that Handled is about, with its zone
	Waiting  *waiting  `json:"waiting,omitempty"`
	Running  *waiting  `json:"running,omitempty"`
	Paused   pause     `json:"paused,omitzero"`
	Last     *Last     `json:"last,omitempty"`
}

// A waiting run is due, or will be tried again.
type waiting struct {
	Run     string    `json:"run"`
	Due     time.Time `json:"due,omitzero"`      // by the schedule; zero if asked for by hand
	At      time.Time `json:"at"`                // it begins no earlier
	Since   time.Time `json:"since,omitzero"`    // its first attempt began; zero before, and after it was interrupted
	Attempt int       `json:"attempt"`           // the next one, from 1
	Hand    bool      `json:"by_hand,omitempty"` // pauses and windows do not count
	Why     string    `json:"why,omitempty"`
}

// Last is how the last run ended.
type Last struct {
	Run    string        `json:"run"`
	Start  time.Time     `json:"start"`
	End    time.Time     `json:"end"`
	Took   time.Duration `json:"took_ns"` // the last attempt
	Exit   int           `json:"exit"`
	Error  string        `json:"error,omitempty"`
	Images []string      `json:"images,omitempty"`
	// Good is when a run ended with all done.
	Good time.Time `json:"good,omitzero"`
}

// A pause keeps runs from beginning.
type pause struct {
	On    bool      `json:"on"`
	Until time.Time `json:"until,omitzero"` // zero for until it is ended
}

func (p pause) active(now time.Time) bool { return p.On && (p.Until.IsZero() || now.Before(p.Until)) }

// A run is an attempt that goes on.
type run struct {
	job      *job
	conf     *config.Job // the job's when it began
	uses     uses
	task     waiting
	begun    time.Time // by the machine's clock
	mono     time.Time
	stop     context.CancelCauseFunc
	ctx      context.Context
	result   Result
	progress atomic.Pointer[Progress]
}

const (
	firstPause = time.Minute // between two attempts
	mostPause  = time.Hour
	// late is how much later than it was due a run is said to be caught up.
	late = 2 * time.Minute
	// maxMissed bounds how many times due are counted one by one.
	maxMissed = 10_000
)

// take takes over a config; jobs that are not in it any more end when their
// run does.
func (a *Agent) take(conf *config.Config, saved map[string]kept) {
	now := a.now()
	old := map[string]*job{}
	before := a.jobs
	for _, j := range before {
		old[j.conf.Name] = j
	}
	a.config, a.jobs, a.changed = conf, nil, true
	for _, c := range conf.Jobs {
		j := old[c.Name]
		if j == nil {
			j = &job{kept: saved[c.Name]}
		}
		delete(old, c.Name)
		j.conf, j.repo, j.gone = c, conf.Repository(c.Repository), false
		j.rewind(now)
		a.note(j)
		if text := c.Schedule.String() + " " + c.Zone.String(); j.Handled.IsZero() || j.Schedule != text {
			j.Handled, j.Schedule = now, text
		}
		j.reckon()
		a.jobs = append(a.jobs, j)
	}
	for _, j := range before {
		if old[j.conf.Name] == nil {
			continue
		}
		j.gone, j.next = true, time.Time{}
		if j.Waiting != nil {
			a.skip(j, j.Waiting.Due, j.Waiting.Due, 1, "the job is no longer in the config")
			j.Waiting = nil
		}
		a.jobs = append(a.jobs, j)
	}
	for name, k := range saved {
		if i := a.find(name); i == nil && (k.Waiting != nil || k.Running != nil) {
			a.tell(event.Event{Kind: event.Skipped, Job: name, Count: 1, Error: "the job is no longer in the config"})
		}
	}
}

func (a *Agent) find(name string) *job {
	for _, j := range a.jobs {
		if j.conf.Name == name {
			return j
		}
	}
	return nil
}

// reckon finds out when the job is due next.
func (j *job) reckon() { j.next = j.conf.Schedule.Next(j.Handled, j.conf.Zone) }

// jitter is this machine's for the job.
func (a *Agent) jitter(j *job) time.Duration {
	return schedule.Jitter(*j.conf.Jitter, a.opts.Machine, j.conf.Name)
}

// resume takes up what a former agent left. One that died cannot have told how
// its runs ended.
func (a *Agent) resume(j *job) {
	was := j.Running
	if was == nil {
		return
	}
	j.Running = nil
	a.note(j)
	r := &run{job: j, conf: j.conf, task: *was, begun: was.At, result: Result{Exit: -1, Error: "the agent, or the machine, died during the run"}}
	a.conclude(r, a.now())
}

// rewind is for a clock that was set back. A time that was dealt with comes
// again; only where another one comes first is it no longer counted as done.
func (j *job) rewind(now time.Time) {
	if j.Handled.After(now) {
		if n := j.conf.Schedule.Next(now, j.conf.Zone); !n.IsZero() && n.Before(j.Handled) {
			j.Handled = now
			j.reckon()
		}
	}
}

// due tells of the times that have come since the last look.
func (a *Agent) due(j *job, now time.Time) {
	if j.next.IsZero() || j.next.After(now) {
		return
	}
	first, last, count := j.next, j.next, 0
	var before time.Time // the one before the last
	for n := j.next; !n.IsZero() && !n.After(now); n = j.conf.Schedule.Next(n, j.conf.Zone) {
		before, last = last, n
		if count++; count == maxMissed {
			last = now
			break
		}
	}
	j.Handled = last
	a.note(j)
	j.reckon()
	if j.run != nil {
		a.skip(j, first, last, count, fmt.Sprintf("the run of %s has not ended", a.text(j.run.task.Due, j.run.begun)))
		return
	}
	if j.Waiting != nil {
		a.skip(j, first, last, count, fmt.Sprintf("the run of %s has not begun: %s", a.text(j.Waiting.Due, j.Waiting.At), orElse(a.obstacle(j, now), j.Waiting.Why)))
		return
	}
	at, why := last.Add(a.jitter(j)), ""
	if now.Sub(last) > late {
		if at.Before(now) {
			at = now.Add(a.jitter(j))
		}
		why = "caught up"
	}
	if count > 1 {
		a.tell(j.event(event.Event{Kind: event.Missed, Due: first, Last: before, Count: count - 1, Error: "nobody was there to begin it"}))
	}
	j.Waiting = &waiting{Run: newRunID(), Due: last, At: at, Attempt: 1, Why: why}
}

func (a *Agent) skip(j *job, first, last time.Time, count int, why string) {
	a.tell(j.event(event.Event{Kind: event.Skipped, Due: first, Last: last, Count: count, Error: why}))
}

// text is a time for people: when it was due, or when it began.
func (a *Agent) text(due, otherwise time.Time) string {
	if due.IsZero() {
		due = otherwise
	}
	return due.In(a.config.Agent.Zone).Format("2006-01-02 15:04")
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (j *job) event(e event.Event) event.Event {
	e.Job, e.Does, e.Devices, e.Volumes = j.conf.Name, j.conf.Kind, j.conf.Devices, j.conf.Volumes
	return e
}

// limit stops a run whose window has closed, and bounds how far away a waiting
// one may be: the clock may have been set back.
func (a *Agent) limit(j *job, now time.Time) {
	if j.run != nil && !j.run.task.Hand && j.conf.StopAtEnd && !j.conf.Window.Open(now, j.conf.Zone) {
		j.run.stop(errWindow)
	}
	if w := j.Waiting; w != nil {
		if most := now.Add(2*mostPause + a.jitter(j)); w.At.After(most) {
			w.At = now
			a.note(j)
		}
	}
}

// obstacle says why what waits may not begin now; "" if it may.
func (a *Agent) obstacle(j *job, now time.Time) string {
	switch {
	case a.stopping:
		return "the agent stops"
	case j.run != nil:
		return "it runs"
	case j.Waiting != nil && j.Waiting.Hand:
	case a.paused.active(now):
		return "all jobs are paused"
	case j.Paused.active(now):
		return "the job is paused"
	case !j.conf.Window.Open(now, j.conf.Zone):
		return "its window " + j.conf.Window.String() + " is closed"
	}
	if a.running >= a.config.Agent.AtOnce {
		return fmt.Sprintf("%d runs go on already", a.running)
	}
	return a.taken(j)
}

// taken says which run has what a job needs to itself; "" for none.
func (a *Agent) taken(j *job) string {
	catalog := catalogOf(j.conf, j.repo)
	for _, other := range a.jobs {
		if other.run != nil && catalog != "" && other.run.uses.catalog == catalog {
			return "job " + other.conf.Name + " uses the same catalog"
		}
	}
	devices := devicesOf(j.conf)
	for _, other := range a.jobs {
		if other.run == nil {
			continue
		}
		for _, d := range devices {
			if slices.Contains(other.run.uses.devices, d) {
				return "job " + other.conf.Name + " reads the same device, " + d
			}
		}
	}
	return ""
}

// begin starts what waits, after it is on disk that it runs.
func (a *Agent) begin(j *job, now time.Time) {
	w := *j.Waiting
	if w.Since.IsZero() {
		w.Since = now
	}
	j.Waiting, j.Running = nil, &w
	a.note(j)
	a.keep()
	ctx, stop := context.WithCancelCause(context.Background())
	r := &run{job: j, conf: j.conf, uses: usesOf(j.conf, j.repo), task: w, begun: now, mono: time.Now(), ctx: ctx, stop: stop}
	if j.conf.StopAfter > 0 {
		timer := time.AfterFunc(j.conf.StopAfter, func() { stop(ErrTooLong) })
		context.AfterFunc(ctx, func() { timer.Stop() })
	}
	j.run = r
	a.running++
	a.tell(j.event(event.Event{Kind: event.Started, Due: w.Due, Run: w.Run, Attempt: w.Attempt, Error: w.Why}))
	task := Task{Run: w.Run, Job: j.conf, Repository: j.repo, Config: a.opts.Config, Due: w.Due, Attempt: w.Attempt}
	go func() {
		r.result = a.opts.Runner.Run(ctx, task, func(p Progress) { r.progress.Store(&p) })
		a.ended <- r
	}()
}

// finish is for an attempt that has ended by itself or was stopped.
func (a *Agent) finish(r *run) {
	a.running--
	a.note(r.job)
	r.job.run, r.job.Running = nil, nil
	now := a.now()
	cause := context.Cause(r.ctx)
	r.stop(nil)
	if cause != nil && r.result.Exit != 0 {
		r.result.Error = cause.Error()
	}
	byHand := cause == errByHand && r.result.Exit != 0
	interrupted := cause != nil && cause != ErrTooLong && !byHand && r.result.Exit != 0
	switch {
	case interrupted && !r.job.gone:
		w := r.task
		w.At, w.Since, w.Why = now, time.Time{}, cause.Error()
		r.job.Waiting = &w
		a.tellFinished(r, false, time.Time{})
	case interrupted, byHand:
		r.task.Attempt = max(r.task.Attempt, r.conf.Attempts)
		a.conclude(r, now)
	default:
		a.conclude(r, now)
	}
}

// conclude decides whether there will be another attempt.
func (a *Agent) conclude(r *run, now time.Time) {
	j, w := r.job, r.task
	again := now.Add(pauseAfter(w.Attempt))
	failed := r.result.Exit != 0 && r.result.Exit != incomplete
	if failed && !lasting(r.result.Exit) && w.Attempt < r.conf.Attempts && again.Before(w.Since.Add(r.conf.GiveUpAfter)) && !j.gone {
		w.Attempt++
		w.At, w.Why = again, "another attempt after: "+r.result.Error
		j.Waiting = &w
		a.tellFinished(r, false, again)
		return
	}
	last := &Last{Run: w.Run, Start: r.begun, End: now, Took: r.took(), Exit: r.result.Exit, Error: r.result.Error, Images: r.result.Images}
	if j.Last != nil {
		last.Good = j.Last.Good
	}
	if !failed {
		last.Good = now
	}
	j.Last = last
	a.tellFinished(r, true, j.next)
}

func (a *Agent) tellFinished(r *run, final bool, next time.Time) {
	a.tell(r.job.event(event.Event{
		Kind: event.Finished, Due: r.task.Due, Run: r.task.Run, Attempt: r.task.Attempt, Exit: r.result.Exit, Error: r.result.Error,
		Images: r.result.Images, Took: r.took(), Final: final, Next: next,
	}))
}

func (r *run) took() time.Duration {
	if r.mono.IsZero() {
		return 0
	}
	return time.Since(r.mono)
}

// Exit statuses of the command line that decide here; README.md has them all.
const incomplete = 3

// lasting are failures that another attempt would meet again: a command line
// that cannot be meant, wrong keys, damage, a target that was refused.
func lasting(exit int) bool { return exit == 2 || exit == 12 || exit == 13 || exit == 14 }

func pauseAfter(attempt int) time.Duration {
	d := firstPause << min(attempt-1, 10)
	return min(d, mostPause)
}
