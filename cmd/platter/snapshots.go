package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"platter/block"
	"platter/block/snapshot"
	"platter/block/snapshot/reflink"
)

// States of a snapshot, as people are shown them.
const (
	stateKept  = "kept"
	stateInUse = "in use"
	stateLeft  = "left behind"
)

// stateOf says what a snapshot is there for.
func stateOf(s snapshot.Snapshot) string {
	switch {
	case s.Kept:
		return stateKept
	case snapshot.Running(s.Run):
		return stateInUse
	}
	return stateLeft
}

// runSnapshots lists what Platter left on devices, and removes what dead runs
// left behind, or also what is kept.
func runSnapshots(ctx context.Context, c *call, args []string) error {
	var t table
	t.row("DEVICE", "SNAPSHOT", "BY", "TAKEN", "STATE")
	var problems []error
	for _, path := range args {
		all, err := snapshotsOf(ctx, path)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		for _, s := range all {
			state := stateOf(s.Snapshot)
			if c.opts.remove && (state == stateLeft || state == stateKept && c.opts.kept) {
				if err := s.by.Remove(ctx, s.Snapshot); err != nil {
					problems = append(problems, fmt.Errorf("remove %s: %w", s.Name, err))
				} else {
					state = "removed"
				}
			}
			taken := "-"
			if !s.Time.IsZero() {
				taken = timeText(s.Time)
			}
			t.row(path, s.Name, s.Method, taken, state)
			if c.term.json {
				c.term.object("snapshot", struct {
					Device string `json:"device"`
					snapshot.Snapshot
					State string `json:"state"`
				}{path, s.Snapshot, state})
			}
		}
	}
	if !c.term.json {
		c.term.table(t)
	}
	return errors.Join(problems...)
}

// A leftover is a snapshot that was found, and who can remove it.
type leftover struct {
	snapshot.Snapshot
	by snapshot.Provider
}

// snapshotsOf returns those of a device or file, or all copies of files in a
// folder, whether or not these are there still.
func snapshotsOf(ctx context.Context, path string) (all []leftover, err error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		list, err := reflink.InFolder(path)
		for _, s := range list {
			all = append(all, leftover{s, reflink.New()})
		}
		return all, err
	}
	d, err := block.Look(path)
	if err != nil {
		return nil, err
	}
	for _, p := range ways().Views {
		if !concerns(p.Name(), d.Kind) {
			continue
		}
		list, err := p.Snapshots(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("list %s snapshots of %s: %w", p.Name(), path, err)
		}
		for _, s := range list {
			all = append(all, leftover{s, p})
		}
	}
	return all, nil
}
