package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"platter/internal/agent/alert"
)

func runAlerts(_ context.Context, c *call, _ []string) error {
	list, err := alert.In(c.opts.stateDir(), nil).List()
	if err != nil {
		return err
	}
	var t table
	t.row("ID", "RAISED", "KIND", "OF", "STATE", "WHAT")
	for i := range list {
		a := &list[i]
		switch {
		case !a.Open() && !c.opts.all:
		case c.term.json:
			c.term.object("alert", a)
		default:
			t.row(a.ID, timeText(a.Raised), string(a.Kind), a.Subject, alertState(a), a.Text)
		}
	}
	switch {
	case c.term.json:
	case len(t.rows) == 1:
		c.term.notef("no alerts")
	default:
		c.term.table(t)
	}
	return nil
}

func alertState(a *alert.Alert) string {
	switch {
	case !a.Open() && a.By != "":
		return "over, acknowledged by " + a.By
	case !a.Open():
		return "over since " + timeText(a.Resolved)
	case a.Kind.Suspends():
		return "open, suspends pruning"
	case !a.Acked.IsZero():
		return "acknowledged by " + a.By
	}
	return "open"
}

func runAlertsAck(_ context.Context, c *call, args []string) error {
	var ids []int
	for _, text := range args {
		id, err := strconv.Atoi(text)
		if err != nil {
			return usagef("alerts ack: %q is no number of an alert", text)
		}
		ids = append(ids, id)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var missing []error
	_, err = c.desk().Update(func(u *alert.Update) {
		for _, id := range ids {
			if !u.Acknowledge(id, who(host)) {
				missing = append(missing, advise(fmt.Errorf("alerts ack: there is no open alert %d", id), "see: platter alerts"))
			}
		}
	})
	return errors.Join(append(missing, err)...)
}

// suspended returns what tells why pruning is suspended, and says so.
func (c *call) suspended() (func(volume string) string, error) {
	list, err := alert.In(c.opts.stateDir(), nil).List()
	if err != nil {
		return nil, advise(fmt.Errorf("prune: %w", err), "nothing is forgotten while nobody knows what is suspended; platter alerts reads the same file")
	}
	held := alert.Held(list)
	for volume, why := range held {
		c.term.notef("platter: pruning of %s is %s", strings.Replace(volume, alert.Everything, "all volumes", 1), why)
	}
	return func(volume string) string {
		if why := held[volume]; why != "" {
			return why
		}
		return held[alert.Everything]
	}, nil
}
