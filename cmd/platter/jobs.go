package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"platter/internal/agent"
	"platter/internal/agent/socket"
	"platter/internal/quantity"
)

// ask returns who asks the agent.
func (c *call) ask() *socket.Client { return socket.NewClient(c.opts.socketFile()) }

// adviseAgent adds to an error of asking the agent what to do.
func adviseAgent(err error) error {
	switch {
	case errors.Is(err, socket.ErrNoAgent):
		return advise(err, "is it running? systemctl status platter-agent")
	case errors.Is(err, agent.ErrNoJob):
		return advise(usagef("%s", err), "platter job list shows those there are")
	}
	return err
}

func runJobList(ctx context.Context, c *call, _ []string) error {
	s, err := c.ask().Status(ctx)
	if err != nil {
		return adviseAgent(err)
	}
	if c.term.json {
		c.term.object("agent", s)
		return nil
	}
	c.term.table(jobTable(&s))
	if s.Paused != nil {
		c.term.notef("all jobs are paused%s", untilText(s.Paused))
	}
	if s.Trouble != "" {
		c.term.notef("the agent cannot save what it must remember: %s", s.Trouble)
	}
	return nil
}

// jobTable lists jobs, a line each.
func jobTable(s *agent.Status) (t table) {
	t.row("JOB", "DOES", "STATE", "NEXT", "LAST", "TOOK", "NOTES")
	for i := range s.Jobs {
		j := &s.Jobs[i]
		last, took := "", ""
		if j.Last != nil {
			last, took = timeText(j.Last.End), tookText(j.Last.Took)
		}
		t.row(j.Name, j.Kind, j.State, nextText(j), last, took, jobNotes(j))
	}
	return t
}

func nextText(j *agent.JobStatus) string {
	switch {
	case j.Run != nil && j.State != agent.Running:
		return timeText(j.Run.At)
	case j.Next.IsZero():
		return "when asked"
	}
	return timeText(j.Next)
}

// jobNotes are what a person should know of a job at a glance.
func jobNotes(j *agent.JobStatus) string {
	var list []string
	if j.Paused != nil {
		list = append(list, "paused"+untilText(j.Paused))
	}
	if r := j.Run; r != nil {
		if r.Attempt > 1 {
			list = append(list, fmt.Sprintf("attempt %d", r.Attempt))
		}
		for _, text := range []string{r.Why, r.Obstacle} {
			if text != "" {
				list = append(list, text)
			}
		}
	} else if l := j.Last; l != nil && l.Exit != 0 {
		list = append(list, fmt.Sprintf("status %d: %s", l.Exit, l.Error))
		if !l.Good.IsZero() {
			list = append(list, "last good "+timeText(l.Good))
		}
	}
	return strings.Join(list, ", ")
}

func untilText(p *agent.Pause) string {
	if p.Until.IsZero() {
		return ""
	}
	return " until " + timeText(p.Until)
}

// eachJob asks the agent something of each job that is named, and then says
// what was done.
func (c *call) eachJob(jobs []string, ask func(job string) error, did string) error {
	for _, name := range jobs {
		if err := ask(name); err != nil {
			return adviseAgent(err)
		}
		if name == "" {
			name = "every job"
		} else {
			name = "job " + name
		}
		c.term.summaryf("%s: %s\n", name, did)
	}
	return nil
}

// orAll is what is named, or "" for all.
func orAll(jobs []string) []string {
	if len(jobs) == 0 {
		return []string{""}
	}
	return jobs
}

func runJobRun(ctx context.Context, c *call, args []string) error {
	return c.eachJob(args, func(job string) error { return c.ask().RunNow(ctx, job) }, "runs as soon as nothing is in its way")
}

func runJobStop(ctx context.Context, c *call, args []string) error {
	return c.eachJob(args, func(job string) error { return c.ask().StopRun(ctx, job) }, "its run is told to stop")
}

func runJobPause(ctx context.Context, c *call, args []string) error {
	var until time.Time
	did := "paused, until platter job resume"
	if c.opts.pauseFor > 0 {
		until = time.Now().Add(c.opts.pauseFor)
		did = "paused for " + quantity.FormatSpan(c.opts.pauseFor)
	}
	return c.eachJob(orAll(args), func(job string) error { return c.ask().Pause(ctx, job, until, c.opts.stopRuns) }, did)
}

func runJobResume(ctx context.Context, c *call, args []string) error {
	return c.eachJob(orAll(args), func(job string) error { return c.ask().Resume(ctx, job) }, "goes on")
}

func runConfigReload(ctx context.Context, c *call, _ []string) error {
	if err := c.ask().Reload(ctx); err != nil {
		return adviseAgent(err)
	}
	c.term.summaryf("the agent has read its config again\n")
	return nil
}
