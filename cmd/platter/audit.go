package main

import (
	"context"
	"fmt"
	"strings"

	"platter/internal/agent/audit"
)

func runAudit(_ context.Context, c *call, _ []string) error {
	log := audit.In(c.opts.stateDir())
	if c.opts.verifyLog {
		return c.verifyLog(log)
	}
	list, err := log.Entries()
	if err != nil {
		return err
	}
	var t table
	t.row("SEQ", "TIME", "WHO", "ACT", "OF", "OUTCOME")
	for i := range list {
		e := &list[i]
		if c.term.json {
			c.term.object("audit", e)
			continue
		}
		t.row(e.Seq, timeText(e.Time), whoText(e.Who), e.Act, strings.Join(append(e.Subjects, e.Images...), " "), orElse(e.Outcome, e.Phase))
	}
	if len(t.rows) > 1 {
		c.term.table(t)
	}
	return nil
}

// whoText is who it was at a glance: behind sudo, the person there.
func whoText(w audit.Who) string {
	text := orElse(w.User, fmt.Sprint("uid ", w.UID))
	if w.Sudo != "" {
		text = w.Sudo + " as " + text
	}
	for _, more := range []string{w.Peer, w.Job} {
		if more != "" {
			text += ", " + more
		}
	}
	return text
}

func (c *call) verifyLog(log *audit.Log) error {
	r, err := log.Verify()
	if err != nil {
		return err
	}
	if c.term.json {
		c.term.object("summary", r)
	} else {
		for _, p := range r.Problems {
			c.term.printf("%s:%d: %s\n", p.File, p.Line, p.Text)
		}
		c.term.summaryf("%d entries are as they were written; the last one is %d, hash %s\n", r.Entries, r.Head.Seq, r.Head.Hash)
		if !r.Journal {
			c.term.summaryf("  the journal has no head to compare with; compare this one with one that was kept elsewhere\n")
		}
	}
	if len(r.Problems) == 0 {
		return nil
	}
	return advise(fmt.Errorf("audit: the log was tampered with, or damaged, in %s", plural(len(r.Problems), "place")),
		"keep a copy of it as it is; entries that were sent to the journal or to another machine tell what is missing")
}
