package config

import (
	"time"
)

// An Agent is what holds for all jobs.
type Agent struct {
	// AtOnce is how many runs may go on at the same time. Of those that share
	// a catalog, a repository's unless told otherwise, only one ever does.
	AtOnce     int
	Zone       *time.Location // of schedules and windows
	Jitter     time.Duration
	Repository string // of jobs that name none; "" for that of the environment
}

const defaultAtOnce = 2

// agent is the table [agent].
type agent struct {
	AtOnce     *int   `toml:"runs-at-once"`
	TimeZone   *zone  `toml:"time-zone"`
	Jitter     *span  `toml:"jitter"`
	Repository string `toml:"repository"`
}

func (a *agent) settings(f *file) (Agent, error) {
	s := Agent{AtOnce: defaultAtOnce, Zone: time.Local, Repository: a.Repository}
	if a.TimeZone != nil {
		s.Zone = a.TimeZone.Location
	}
	if a.Jitter != nil {
		s.Jitter = time.Duration(*a.Jitter)
	}
	if a.AtOnce != nil {
		s.AtOnce = *a.AtOnce
	}
	if s.AtOnce < 1 || s.AtOnce > 64 {
		return s, f.problem([]string{"agent", "runs-at-once"}, "agent.runs-at-once: want a number from 1 to 64")
	}
	return s, nil
}
