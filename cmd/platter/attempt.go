package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"platter/internal/agent"
	"platter/internal/agent/child"
	"platter/internal/agent/launch"
)

// runner returns what makes the runs of jobs.
func (c *call) runner(log *slog.Logger) (agent.Runner, error) {
	if c.opts.launcher != "" {
		return &launch.Client{Socket: c.opts.launcher}, nil
	}
	return c.children(log)
}

// children makes each run a process that this one starts.
func (c *call) children(log *slog.Logger) (*child.Runner, error) {
	self, err := child.Self()
	if err != nil {
		return nil, err
	}
	return &child.Runner{
		Program: self, Environment: append(os.Environ(), "PLATTER_STATE="+c.opts.stateDir()),
		Absent: filepath.Join(c.opts.agentDir(), "no-catalog"), Log: log,
	}, nil
}

func runJobAttempt(ctx context.Context, c *call, _ []string) error {
	conn, err := net.FileConn(os.Stdin)
	if err != nil {
		return usagef("standard input is not a connection of the agent's (%v): systemd starts this, as platter-run.socket says", err)
	}
	os.Stdin.Close()
	runner, err := c.children(c.logger())
	if err != nil {
		return err
	}
	return launch.Serve(ctx, conn, c.ordered, runner)
}

// ordered is what the config says of a job that the agent wants to be run.
func (c *call) ordered(o launch.Order) (agent.Task, error) {
	path := c.opts.configFile()
	conf, err := loadOwned(path)
	if err != nil {
		return agent.Task{}, err
	}
	for _, j := range conf.Jobs {
		if j.Name == o.Job {
			return agent.Task{Run: o.Run, Job: j, Repository: conf.Repository(j.Repository), Config: path, Due: o.Due, Attempt: o.Attempt}, nil
		}
	}
	return agent.Task{}, fmt.Errorf("the config %s has no job %q any more: platter config reload", path, o.Job)
}
