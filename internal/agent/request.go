package agent

import (
	"context"
	"fmt"
	"time"
)

// RunNow has a job run as soon as nothing is in its way, whatever its schedule,
// its window and pauses say.
func (a *Agent) RunNow(ctx context.Context, name string) error {
	return a.withJob(ctx, name, func(j *job) error {
		if j.run != nil {
			return fmt.Errorf("job %s runs already, since %s", name, a.text(time.Time{}, j.run.begun))
		}
		if j.Waiting == nil {
			j.Waiting = &waiting{Run: newRunID(), Attempt: 1, Why: "asked for by hand"}
		}
		j.Waiting.At, j.Waiting.Hand = a.now(), true
		return nil
	})
}

// StopRun stops the run of a job, or takes back one that waits. It is not
// tried again.
func (a *Agent) StopRun(ctx context.Context, name string) error {
	return a.withJob(ctx, name, func(j *job) error {
		switch {
		case j.run != nil:
			j.run.stop(errByHand)
		case j.Waiting != nil:
			a.skip(j, j.Waiting.Due, j.Waiting.Due, 1, errByHand.Error())
			j.Waiting = nil
		default:
			return fmt.Errorf("job %s does not run, and nothing of it waits", name)
		}
		return nil
	})
}

// Pause keeps runs of a job, or of all if the name is empty, from beginning,
// until a time or, if that is zero, until Resume. With stop those that go on
// are stopped too, to go on later.
func (a *Agent) Pause(ctx context.Context, name string, until time.Time, stop bool) error {
	p := pause{On: true, Until: until}
	return a.withJobs(ctx, name, &a.paused, p, func(j *job) {
		if name != "" {
			j.Paused = p
		}
		if stop && j.run != nil {
			j.run.stop(errPaused)
		}
	})
}

// Resume ends the pause of a job, or if the name is empty that of all jobs and
// of each.
func (a *Agent) Resume(ctx context.Context, name string) error {
	return a.withJobs(ctx, name, &a.paused, pause{}, func(j *job) { j.Paused = pause{} })
}

// Reload reads the config again. If anything is wrong with it, all stays as it
// was. Runs that go on are left alone.
func (a *Agent) Reload(ctx context.Context) error {
	conf, err := a.opts.Load(a.opts.Config)
	if err != nil {
		return err
	}
	return a.do(ctx, func() { a.take(conf, nil) })
}

func (a *Agent) withJob(ctx context.Context, name string, f func(*job) error) (err error) {
	bad := a.do(ctx, func() {
		if j := a.find(name); j == nil || j.gone {
			err = fmt.Errorf("%w %q", ErrNoJob, name)
		} else {
			err = f(j)
			a.note(j)
		}
	})
	if bad != nil {
		return bad
	}
	return err
}

// withJobs is withJob for one or, if the name is empty, each: then the pause of
// all is set too.
func (a *Agent) withJobs(ctx context.Context, name string, all *pause, to pause, f func(*job)) error {
	if name != "" {
		return a.withJob(ctx, name, func(j *job) error { f(j); return nil })
	}
	return a.do(ctx, func() {
		*all = to
		for _, j := range a.jobs {
			f(j)
			a.note(j)
		}
	})
}
