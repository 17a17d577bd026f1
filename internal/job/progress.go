package job

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"
)

// progressEvery is how often a job reports where it is.
const progressEvery = 200 * time.Millisecond

// report calls env.Progress until stop is called, and once more then.
func (env *Env) report(job, subject, phase string, total int64, c *counters, stored func() int64) (stop func()) {
	if env.Progress == nil {
		return func() {}
	}
	start := time.Now()
	tell := func() {
		env.Progress(Progress{
			Job: job, Subject: subject, Phase: phase, Done: c.done.Load(), Total: total,
			Unchanged: c.unchanged.Load(), Stored: stored(), Elapsed: time.Since(start),
		})
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				tell()
			case <-quit:
				tell()
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

func (env *Env) warn(format string, args ...any) {
	if env.Warn != nil {
		env.Warn(fmt.Sprintf(format, args...))
	}
}

// A throttle bounds bytes per second; nil does not.
type throttle struct{ limiter *rate.Limiter }

func newThrottle(bytesPerSecond int64) *throttle {
	if bytesPerSecond <= 0 {
		return nil
	}
	burst := int(min(max(bytesPerSecond/4, 64<<10), 64<<20))
	return &throttle{rate.NewLimiter(rate.Limit(bytesPerSecond), burst)}
}

// wait waits until n bytes may pass.
func (t *throttle) wait(ctx context.Context, n int) error {
	if t == nil {
		return nil
	}
	for burst := t.limiter.Burst(); n > 0; n -= burst {
		if err := t.limiter.WaitN(ctx, min(n, burst)); err != nil {
			return err
		}
	}
	return nil
}
