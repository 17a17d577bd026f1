package agent

import (
	"context"
	"errors"
	"time"
)

// ErrNoJob means that the config has no job of a name.
var ErrNoJob = errors.New("there is no job")

// A Status is how an agent is at one moment.
type Status struct {
	Time    time.Time   `json:"time"` // by the agent's clock
	Begun   time.Time   `json:"begun"`
	Config  []string    `json:"config"` // files
	Paused  *Pause      `json:"paused,omitempty"`
	Trouble string      `json:"trouble,omitempty"`
	Jobs    []JobStatus `json:"jobs"`
}

// A Pause says until when nothing begins.
type Pause struct {
	Until time.Time `json:"until,omitzero"` // zero for until it is ended
}

// States of jobs.
const (
	Idle    = "idle"
	Waiting = "waiting"
	Running = "running"
	Paused  = "paused"
)

// A JobStatus is how a job is.
type JobStatus struct {
	Name     string    `json:"name"`
	Kind     string    `json:"kind"`
	State    string    `json:"state"`
	Schedule string    `json:"schedule,omitempty"`
	Devices  []string  `json:"devices,omitempty"`
	Volumes  []string  `json:"volumes,omitempty"`
	Next     time.Time `json:"next,omitzero"` // by its schedule
	Paused   *Pause    `json:"paused,omitempty"`
	Run      *RunState `json:"run,omitempty"` // that goes on or waits
	Last     *Last     `json:"last,omitempty"`
}

// A RunState is a run that goes on, or one that waits.
type RunState struct {
	ID       string    `json:"id"`
	Due      time.Time `json:"due,omitzero"`
	At       time.Time `json:"at"` // it began, or will not begin before
	Attempt  int       `json:"attempt"`
	Why      string    `json:"why,omitempty"`      // this attempt
	Obstacle string    `json:"obstacle,omitempty"` // what it waits for, beside the time
	Progress *Progress `json:"progress,omitempty"`
}

// Status returns how all is now.
func (a *Agent) Status(ctx context.Context) (s Status, err error) {
	err = a.do(ctx, func() {
		now := a.now()
		s = Status{Time: now, Begun: a.begun, Config: a.config.Files, Trouble: a.trouble, Paused: a.paused.status(now), Jobs: []JobStatus{}}
		for _, j := range a.jobs {
			s.Jobs = append(s.Jobs, a.jobStatus(j, now))
		}
	})
	return s, err
}

func (p pause) status(now time.Time) *Pause {
	if !p.active(now) {
		return nil
	}
	return &Pause{p.Until}
}

func (a *Agent) jobStatus(j *job, now time.Time) JobStatus {
	s := JobStatus{
		Name: j.conf.Name, Kind: j.conf.Kind, State: Idle, Schedule: j.conf.Schedule.String(), Devices: j.conf.Devices, Volumes: j.conf.Volumes,
		Next: j.next, Paused: j.Paused.status(now), Last: j.Last,
	}
	if s.Paused != nil || a.paused.active(now) {
		s.State = Paused
	}
	switch {
	case j.run != nil:
		t := j.run.task
		s.State = Running
		s.Run = &RunState{ID: t.Run, Due: t.Due, At: j.run.begun, Attempt: t.Attempt, Why: t.Why, Progress: j.run.progress.Load()}
	case j.Waiting != nil:
		t := j.Waiting
		if s.State == Idle {
			s.State = Waiting
		}
		s.Run = &RunState{ID: t.Run, Due: t.Due, At: t.At, Attempt: t.Attempt, Why: t.Why, Obstacle: a.obstacle(j, now)}
	}
	return s
}
