package doctor

import (
	"time"

	"platter/internal/agent/alert"
	"platter/internal/agent/audit"
	"platter/internal/agent/history"
	"platter/internal/agent/notify"
)

// Ages that are too much where no rule of the config says otherwise.
const (
	oldImage        = 7 * 24 * time.Hour
	oldVerification = 30 * 24 * time.Hour
)

func (e *exam) runs() []history.Run {
	runs, err := history.In(e.State).Runs(history.Filter{})
	if err != nil {
		e.find("see the message", "%v", err)
	}
	return runs
}

func (e *exam) images() {
	good := alert.LastGood(e.runs())
	if len(good) == 0 {
		e.find("make one: platter backup, or a job in the config", "this machine has made no image")
	}
	for _, g := range good {
		limit := oldImage
		if e.Config != nil {
			if rule := alert.RuleOf(e.Config.Alerts, g.Volume); rule.LastGood > 0 {
				limit = rule.LastGood
			}
		}
		if age := e.Now().Sub(g.Time); age > limit {
			e.find("see platter runs --volume "+g.Volume, "%s: the last good image is %s old", g.Volume, age.Round(time.Hour))
		}
	}
}

func (e *exam) verified() {
	var last time.Time
	for _, r := range e.runs() {
		if r.Kind == history.Verify && r.Outcome == history.Done {
			last = r.End
		}
	}
	const remedy = "platter verify --read-data-subset 5%, or a job in the config that does"
	switch age := e.Now().Sub(last); {
	case last.IsZero():
		e.find(remedy, "nothing was verified from here")
	case age > oldVerification:
		e.find(remedy, "the last verification was %d days ago", int(age.Hours()/24))
	}
}

func (e *exam) alerts() {
	list, err := alert.In(e.State, nil).List()
	if err != nil {
		e.find("see the message", "%v", err)
	}
	for _, a := range list {
		if a.Open() && a.Acked.IsZero() {
			e.find("see platter alerts; when it is dealt with, platter alerts ack", "alert %d is open: %s", a.ID, a.Text)
		}
	}
	waiting, err := notify.In(e.State).Waiting()
	if err != nil {
		e.find("see the message", "%v", err)
	}
	for _, m := range waiting {
		if m.Attempts > 3 {
			e.find("mend the table notify."+m.Notifier+" of the config", "a message to %s was not taken in %d attempts: %s", m.Notifier, m.Attempts, m.Problem)
		}
	}
}

func (e *exam) audit() {
	r, err := audit.In(e.State).Verify()
	if err != nil {
		e.find("see the message", "%v", err)
		return
	}
	if len(r.Problems) > 0 {
		e.find("see platter audit --verify; keep a copy of the log", "it was tampered with, or damaged: %s", r.Problems[0].Text)
	}
}
