package watch

import (
	"context"
	"fmt"
	"sync"
	"time"

	"platter/internal/agent/alert"
	"platter/internal/agent/config"
	"platter/internal/agent/event"
	"platter/internal/agent/history"
	"platter/internal/agent/metrics"
)

// A Watch looks after the records beside the agent: it makes alerts of what
// time brings about and of what becomes of jobs, delivers messages, and offers
// metrics.
type Watch struct {
	State   string // folder
	Version string // of the program
	Config  func() *config.Config
	Warn    func(string)

	once sync.Once
	runs *history.History
}

// lookEvery is how often records are looked at and messages are delivered.
const lookEvery = time.Minute

func (w *Watch) desk() *Desk {
	conf := w.Config()
	return &Desk{State: w.State, History: w.history(), Alerts: conf.Alerts, Notifiers: conf.Notifiers, Warn: w.Warn}
}

// Run looks at once and then every minute, until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	var servers sync.WaitGroup
	defer servers.Wait()
	listens, stop := "", func() {}
	defer func() { stop() }()
	for ctx.Err() == nil {
		w.look(ctx)
		if to := w.Config().Metrics.Listen; to != listens {
			stop()
			servers.Wait()
			listens, stop = to, w.serve(ctx, &servers, to)
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookEvery):
		}
	}
}

func (w *Watch) look(ctx context.Context) {
	d := w.desk()
	d.Look()
	d.Deliver(ctx)
	if path := w.Config().Metrics.File; path != "" {
		d.warn(w.source().WriteFile(path))
	}
}

func (w *Watch) source() *metrics.Source {
	return &metrics.Source{State: w.State, History: w.history(), Version: w.Version}
}

// history is one for all, which reads its file only when it has changed.
func (w *Watch) history() *history.History {
	w.once.Do(func() { w.runs = history.In(w.State) })
	return w.runs
}

// serve offers the metrics at an address until stop is called.
func (w *Watch) serve(ctx context.Context, servers *sync.WaitGroup, address string) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	if address != "" {
		servers.Go(func() { w.desk().warn(w.source().Serve(ctx, address)) })
	}
	return stop
}

// Observe makes alerts of what the agent tells of its jobs.
func (w *Watch) Observe(e event.Event) {
	d := w.desk()
	_, err := d.book().Update(func(u *alert.Update) { observe(u, &e) })
	d.warn(err)
}

func observe(u *alert.Update, e *event.Event) {
	job := "job " + e.Job
	switch {
	case e.Kind == event.Finished && e.Final:
		u.Ended(job, e.Does, outcome(e.Exit), e.Error)
		if e.Exit == 0 {
			u.Resolve(alert.Skipped, job)
		}
	case e.Kind == event.Skipped:
		u.Raise(alert.Condition{
			Kind: alert.Skipped, Subject: job, Text: fmt.Sprintf("%s: %d runs that were due were not made: %s", job, e.Count, e.Error),
			Remedy: "the next run that goes well ends this; where runs take longer than the time between them, let them be due less often",
		}, 0)
	case e.Kind == event.Clock:
		u.Raise(alert.Condition{
			Kind: alert.Clock, Subject: alert.Everything, Text: "this machine's clock was set: " + e.Error,
			Remedy: "see that the date is right, and have it set by NTP: what is kept for days and weeks goes by dates",
		}, 0)
	}
}

// outcome is what the exit status of a run says of it.
func outcome(exit int) history.Outcome {
	switch exit {
	case 0:
		return history.Done
	case 3:
		return history.Incomplete
	case 130:
		return history.Interrupted
	}
	return history.Failed
}
