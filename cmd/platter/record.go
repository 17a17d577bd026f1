package main

import (
	"context"
	"os"
	"slices"

	"platter/internal/agent/audit"
	"platter/internal/agent/history"
)

// jobVar names the job of the config that this command line is a run of.
const jobVar = "PLATTER_JOB"

// audited are the commands that change or read what is stored, or who may.
var audited = []string{
	"init", "backup", "restore", "nbd", "mount", "export", "verify", "boot", "prune", "pin", "unpin", "undelete", "gc",
	"key add", "key remove", "key rotate", "catalog rebuild", "tracker run", "tracker stop",
}

// recorded runs a command and keeps what the records of this machine are to
// say of it. A record that cannot be written keeps nobody from a backup or a
// restore.
func (c *call) recorded(ctx context.Context, row command, args []string) error {
	if c.opts.dryRun || !slices.Contains(audited, row.name) {
		return row.run(ctx, c, args)
	}
	ended := c.began(row, args)
	err := row.run(ctx, c, args)
	c.record.Exit, c.record.Outcome = status(ctx, err), outcome(status(ctx, err))
	if err != nil {
		c.record.Error = oneLine(ctx, err)
	}
	c.term.clear()
	ended()
	return err
}

// began keeps that a command begins. It returns what keeps that it ended, with
// what the command noted in c.record.
func (c *call) began(row command, args []string) (ended func()) {
	isRun := slices.Contains(history.Kinds(), row.name)
	c.record = &history.Run{Kind: row.name, Job: os.Getenv(jobVar), Subjects: args, Repository: c.opts.repo}
	runs := history.In(c.opts.stateDir())
	if isRun {
		r, err := runs.Begin(*c.record)
		isRun = c.kept(err)
		c.record = r
	}
	log := audit.In(c.opts.stateDir())
	isLogged := c.kept(log.Add(c.entry(row, audit.Began)))
	return func() {
		if isRun {
			c.kept(runs.End(c.record))
		}
		if isLogged {
			c.kept(log.Add(c.entry(row, audit.Ended)))
		}
	}
}

// kept tells of a record that could not be written.
func (c *call) kept(err error) bool {
	if err != nil {
		c.term.notef("platter: what is done here is not recorded: %s", err)
	}
	return err == nil
}

func (c *call) entry(row command, phase string) audit.Entry {
	e := audit.Entry{Act: row.name, Phase: phase, Repository: c.record.Repository, Subjects: c.record.Subjects, Run: c.record.ID}
	for _, v := range c.record.Volumes {
		e.Images = append(e.Images, v.Name+" "+v.Image)
	}
	if phase == audit.Ended {
		e.Outcome = string(c.record.Outcome)
	}
	return e
}

// outcome is what an exit status says of a run.
func outcome(status int) history.Outcome {
	switch status {
	case exitDone:
		return history.Done
	case exitIncomplete:
		return history.Incomplete
	case exitInterrupted:
		return history.Interrupted
	}
	return history.Failed
}
