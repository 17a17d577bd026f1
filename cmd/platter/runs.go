package main

import (
	"context"
	"strings"

	"platter/internal/agent/history"
)

func runRuns(_ context.Context, c *call, _ []string) error {
	runs, err := history.In(c.opts.stateDir()).Runs(history.Filter{Volume: c.opts.volume, Failed: c.opts.failed})
	if err != nil {
		return err
	}
	if c.term.json {
		for i := range runs {
			c.term.object("run", runs[i])
		}
		return nil
	}
	if len(runs) == 0 {
		c.term.notef("no runs")
		return nil
	}
	var t table
	t.row("ID", "START", "RUN", "OF", "OUTCOME", "TOOK", "READ", "STORED", "NOTES")
	for i := range runs {
		r := &runs[i]
		t.row(r.ID[:min(shortID, len(r.ID))], timeText(r.Start), r.Kind, runOf(r), string(r.Outcome), runTook(r), bytesText(r.Read), bytesText(r.Stored), runNotes(r))
	}
	c.term.table(t)
	return nil
}

// runOf is what a run was about: the volumes where they are known.
func runOf(r *history.Run) string {
	var names []string
	for _, v := range r.Volumes {
		names = append(names, v.Name)
	}
	if len(names) == 0 {
		names = r.Subjects
	}
	if len(names) > 3 {
		return strings.Join(names[:3], " ") + " and " + plural(len(names)-3, "other")
	}
	return strings.Join(names, " ")
}

func runTook(r *history.Run) string {
	if r.End.IsZero() {
		return ""
	}
	return tookText(r.End.Sub(r.Start))
}

// runNotes say why a run failed, or else why it read more than it might have.
func runNotes(r *history.Run) string {
	var list []string
	if r.Job != "" {
		list = append(list, "job "+r.Job)
	}
	if r.Error != "" {
		return strings.Join(append(list, r.Error), ", ")
	}
	for _, v := range r.Volumes {
		if v.Why != "" {
			list = append(list, "every block: "+v.Why)
		}
	}
	return strings.Join(list, ", ")
}
