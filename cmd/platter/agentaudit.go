package main

import (
	"context"
	"time"

	"platter/internal/agent/audit"
	"platter/internal/agent/socket"
)

// audit logs what the agent was told, and by whom. What its runs do is logged
// by each of them.
func (s *service) audit(ctx context.Context, act string, subjects ...string) {
	who := audit.Me()
	who.Peer = socket.Peer(ctx)
	if err := audit.In(s.call.opts.stateDir()).Add(audit.Entry{Act: act, Who: who, Subjects: subjects}); err != nil {
		s.log.Warn(err.Error())
	}
}

// RunNow starts a run of a job by hand.
func (s *service) RunNow(ctx context.Context, job string) error {
	s.audit(ctx, "job run", job)
	return s.Agent.RunNow(ctx, job)
}

// StopRun stops a run of a job.
func (s *service) StopRun(ctx context.Context, job string) error {
	s.audit(ctx, "job stop", job)
	return s.Agent.StopRun(ctx, job)
}

// Pause keeps jobs from being run.
func (s *service) Pause(ctx context.Context, job string, until time.Time, stop bool) error {
	s.audit(ctx, "job pause", job)
	return s.Agent.Pause(ctx, job, until, stop)
}

// Resume ends a pause.
func (s *service) Resume(ctx context.Context, job string) error {
	s.audit(ctx, "job resume", job)
	return s.Agent.Resume(ctx, job)
}
