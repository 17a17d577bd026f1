// Package watch makes alerts of what runs on this machine, and has them told.
//
// A Desk serves one run of the command line or the agent as a whole: both keep
// their records in the state folder, and either may deliver what the other put
// into the outbox.
package watch

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"platter/internal/agent/alert"
	"platter/internal/agent/config"
	"platter/internal/agent/history"
	"platter/internal/agent/notify"
)

// A Desk knows where the records are and who wants to be told.
type Desk struct {
	State     string           // folder
	History   *history.History // of the folder; nil to open it
	Alerts    []config.Alert
	Notifiers []config.Notifier
	// Warn tells of what could not be kept or told.
	Warn func(string)
}

func (d *Desk) warn(err error) {
	if err != nil && d.Warn != nil {
		d.Warn(err.Error())
	}
}

func (d *Desk) history() *history.History {
	if d.History == nil {
		d.History = history.In(d.State)
	}
	return d.History
}

func (d *Desk) book() *alert.Book { return alert.In(d.State, d.tell) }

// Update lets change work on the alerts, and tells what came of it.
func (d *Desk) Update(change func(*alert.Update)) ([]alert.Change, error) {
	return d.book().Update(change)
}

// tell puts changes into the outbox, for people.
func (d *Desk) tell(changes []alert.Change) error {
	for i := range changes {
		if err := notify.In(d.State).Put(message(&changes[i]), d.Notifiers); err != nil {
			return err
		}
	}
	return nil
}

// message is a change in words.
func message(c *alert.Change) notify.Message {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	a := &c.Alert
	title := fmt.Sprintf("platter on %s: %s: %s", host, a.Kind, a.Subject)
	var body []string
	switch c.What {
	case alert.WasResolved:
		title = fmt.Sprintf("platter on %s: over: %s: %s", host, a.Kind, a.Subject)
		body = append(body, "This is over since "+c.Time.Format(time.RFC3339)+":", a.Text)
	case alert.Repeated:
		body = append(body, "This still holds:", a.Text)
	default:
		body = append(body, a.Text)
	}
	if a.Remedy != "" && c.What != alert.WasResolved {
		body = append(body, "What to do: "+a.Remedy+".")
	}
	if a.Kind.Suspends() && c.What != alert.WasResolved {
		body = append(body, fmt.Sprintf("Pruning of %s is suspended until: platter alerts ack %d", a.Subject, a.ID))
	}
	body = append(body, fmt.Sprintf("Alert %d, raised %s.", a.ID, a.Raised.Format(time.RFC3339)))
	data, err := json.Marshal(struct {
		Host string `json:"host"`
		*alert.Change
	}{host, c})
	if err != nil {
		data = nil
	}
	return notify.Message{
		ID: c.ID(), Title: oneLine(title), Body: strings.Join(body, "\n"), Urgent: c.What != alert.WasResolved, Data: data,
	}
}

// oneLine keeps what comes from disks from adding lines to a heading.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
}

// Began pings those who count runs.
func (d *Desk) Began(r *history.Run) { d.ping(r, notify.PingStart, "") }

// Ended makes alerts of a run that has ended, and pings.
func (d *Desk) Ended(r *history.Run) {
	if r.Outcome == history.Done {
		d.ping(r, notify.PingSuccess, "")
	} else {
		d.ping(r, notify.PingFail, fmt.Sprintf("%s: %s", r.Outcome, r.Error))
	}
	runs, err := d.history().Runs(history.Filter{})
	if err != nil {
		d.warn(err)
		return
	}
	var before []history.Run
	for _, old := range runs {
		if old.ID != r.ID && !old.Start.After(r.Start) {
			before = append(before, old)
		}
	}
	_, err = d.book().Update(func(u *alert.Update) {
		u.AfterRun(r, before, d.Alerts)
		u.Late(runs, d.Alerts, time.Now())
	})
	d.warn(err)
}

func (d *Desk) ping(r *history.Run, ping, body string) {
	d.warn(notify.In(d.State).Put(notify.Message{
		ID: "run-" + r.ID + "-" + ping, Ping: ping, Job: r.Job, Body: body,
	}, d.Notifiers))
}

// Look makes alerts of what time alone brings about: images that grow old, and
// runs that died.
func (d *Desk) Look() {
	runs, err := d.history().Runs(history.Filter{})
	if err != nil {
		d.warn(err)
		return
	}
	_, err = d.book().Update(func(u *alert.Update) {
		u.Died(runs)
		u.Late(runs, d.Alerts, time.Now())
	})
	d.warn(err)
}

// Deliver tells what waits in the outbox, and warns of what could not be told.
func (d *Desk) Deliver(ctx context.Context) {
	r, err := notify.In(d.State).Deliver(ctx, d.Notifiers)
	d.warn(err)
	if r == nil {
		return
	}
	for _, m := range r.Failed {
		d.warn(fmt.Errorf("notify %s: %s; it is tried again", m.Notifier, m.Problem))
	}
	d.givenUp(r)
}

// givenUp raises an alert of messages that nobody took: who looks at the
// alerts, or has another notifier, learns of it.
func (d *Desk) givenUp(r *notify.Report) {
	if len(r.GivenUp) == 0 && r.Sent == 0 {
		return
	}
	_, err := d.book().Update(func(u *alert.Update) {
		bad := map[string]bool{}
		for _, m := range r.GivenUp {
			bad[m.Notifier] = true
			u.Raise(alert.Condition{
				Kind: alert.Unsent, Subject: m.Notifier,
				Text:   fmt.Sprintf("a message to %s was given up after %d attempts: %s", m.Notifier, m.Attempts, m.Problem),
				Remedy: "see `platter alerts` for what it was, and mend the table notify." + m.Notifier + " of the config",
			}, 0)
		}
		if len(bad) == 0 && r.Waiting == 0 {
			u.ResolveOthers(alert.Unsent, nil)
		}
	})
	d.warn(err)
}
