package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"platter/internal/agent/audit"
	"platter/internal/agent/config"
	"platter/internal/agent/history"
	"platter/internal/agent/watch"
)

// jobVar names the job of the config that this command line is a run of.
const jobVar = "PLATTER_JOB"

// audited are the commands that change or read what is stored, or who may.
var audited = []string{
	"init", "backup", "restore", "nbd", "mount", "export", "verify", "boot", "prune", "pin", "unpin", "undelete", "gc", "alerts ack",
	"key add", "key remove", "key rotate", "catalog rebuild", "tracker run", "tracker stop",
}

// recorded runs a command and keeps what the records of this machine are to
// say of it. A record that cannot be written keeps nobody from a backup or a
// restore.
func (c *call) recorded(ctx context.Context, row command, args []string) error {
	if c.opts.dryRun || !slices.Contains(audited, row.name) {
		return row.run(ctx, c, args)
	}
	ended := c.began(ctx, row, args)
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
func (c *call) began(ctx context.Context, row command, args []string) (ended func()) {
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
	told := func() {}
	if isRun {
		told = c.tell(ctx)
	}
	return func() {
		if isRun {
			c.kept(runs.End(c.record))
			told()
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

// deliverTime bounds how long the end of a run may be held up by servers that
// do not answer. What was not told then is told by the next run, or the agent.
const deliverTime = 15 * time.Second

// tell tells those of the config that a run began. It returns what makes
// alerts of its end, and tells those.
func (c *call) tell(ctx context.Context) (ended func()) {
	d := c.desk()
	deliver := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deliverTime)
		defer cancel()
		d.Deliver(ctx)
	}
	d.Began(c.record)
	done := make(chan struct{})
	go func() {
		defer close(done)
		deliver()
	}()
	return func() {
		<-done
		d.Ended(c.record)
		deliver()
	}
}

// desk makes alerts by the rules of the config. One that cannot be read is
// told of, and the default rules are taken.
func (c *call) desk() *watch.Desk {
	d := &watch.Desk{State: c.opts.stateDir(), Warn: func(s string) { c.term.notef("platter: %s", s) }}
	conf, err := config.Load(c.opts.configFile())
	switch {
	case err == nil:
		d.Alerts, d.Notifiers = conf.Alerts, conf.Notifiers
	case !errors.Is(err, fs.ErrNotExist):
		c.term.notef("platter: nobody is told of this run: %s", err)
	}
	return d
}
