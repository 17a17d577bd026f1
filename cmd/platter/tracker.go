package main

import (
	"context"
	"errors"
	"fmt"

	"platter/block"
	"platter/cbt/trace"
)

// runTrackerRun starts the tracer, or finds it running, and has it watch disks.
func runTrackerRun(_ context.Context, c *call, args []string) error {
	t, started, err := trace.Run(trace.DefaultDir)
	if err != nil {
		return adviseTracer(err)
	}
	defer t.Close()
	if started {
		c.term.summaryf("the tracer is running; it goes on until platter tracker stop or a reboot\n")
	} else {
		c.term.summaryf("the tracer was running already\n")
	}
	if err := t.Sweep(); err != nil {
		return err
	}
	if len(args) == 0 {
		if args, err = disks(); err != nil {
			return err
		}
	}
	var problems []error
	for _, path := range args {
		began, err := t.Watch(path)
		problems = append(problems, err)
		if err == nil && began != "" {
			c.term.summaryf("%s: a history begins: %s\n", path, began)
		}
	}
	return errors.Join(problems...)
}

// disks returns the disks that a machine's backups may be of.
func disks() ([]string, error) {
	devices, err := block.Devices()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var paths []string
	for _, d := range devices {
		if d.Kind == block.KindDisk {
			paths = append(paths, d.Path)
		}
	}
	return paths, nil
}

func runTrackerStatus(_ context.Context, c *call, _ []string) error {
	t, err := trace.Open(trace.DefaultDir)
	if err != nil {
		return adviseTracer(err)
	}
	defer t.Close()
	s, err := t.Status()
	if err != nil {
		return err
	}
	if c.term.json {
		c.term.object("tracker", s)
		return nil
	}
	rows := table{}
	rows.row("DISK", "SIZE", "UNIT", "CONSUMERS", "GENERATIONS", "MEMORY", "MARKED NOW", "HISTORY")
	for _, d := range s.Disks {
		rows.row(d.Disk, bytesText(d.Size), bytesText(d.Unit), fmt.Sprint(d.Consumers), fmt.Sprint(d.Generations),
			bytesText(d.Memory), bytesText(d.Marked), orElse(d.Lost, "good"))
	}
	c.term.table(rows)
	if s.Missed > 0 {
		c.term.notef("platter: %d events went by unseen: images whose history has one are compared in full", s.Missed)
	}
	if !s.Resizes {
		c.term.notef("platter: this kernel does not tell of resizes: one is noticed by the next write or run, unless the size is by then what it was")
	}
	return nil
}

func runTrackerStop(_ context.Context, c *call, _ []string) error {
	if err := trace.Stop(trace.DefaultDir); err != nil {
		return adviseTracer(err)
	}
	c.term.summaryf("the tracer is stopped; the next image of each disk is compared in full\n")
	return nil
}

// adviseTracer adds what can be done.
func adviseTracer(err error) error {
	if errors.Is(err, trace.ErrStopped) {
		return advise(errors.New("no tracer is running"), "start it: platter tracker run")
	}
	return fmt.Errorf("tracer: %w", err)
}
