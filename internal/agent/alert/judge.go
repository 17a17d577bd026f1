package alert

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"platter/internal/agent/config"
	"platter/internal/agent/history"
	"platter/retention"
)

// RuleOf returns the first rule that is for a volume.
func RuleOf(rules []config.Alert, volume string) config.Alert {
	for _, r := range rules {
		if len(r.Volumes) == 0 || slices.ContainsFunc(r.Volumes, func(p string) bool { return retention.Match(p, volume) }) {
			return r
		}
	}
	return config.DefaultAlert()
}

// AfterRun takes note of a run that has ended. Past are the runs before it,
// oldest first. Whether a run of a job failed is for the agent to say, which
// knows whether there will be another attempt.
func (u *Update) AfterRun(run *history.Run, past []history.Run, rules []config.Alert) {
	if run.Job == "" {
		u.Ended(subject(run), run.Kind, run.Outcome, run.Error)
	}
	switch run.Kind {
	case history.Backup:
		for _, v := range run.Volumes {
			u.image(v, past, RuleOf(rules, v.Name))
		}
	case history.Verify:
		u.verified(run)
	case history.Boot:
		u.booted(run)
	}
}

// subject is what names a run of the command line among others like it.
func subject(r *history.Run) string {
	return strings.TrimSpace(r.Kind + " " + strings.Join(r.Subjects, " "))
}

// Ended says how a run ended, after its last attempt. One that was interrupted
// by somebody says nothing.
func (u *Update) Ended(subject, kind string, outcome history.Outcome, problem string) {
	switch outcome {
	case history.Done:
		u.Resolve(Failed, subject)
	case history.Incomplete, history.Failed, history.Died:
		u.Raise(Condition{
			Failed, subject, fmt.Sprintf("%s: the %s ended as %s: %s", subject, kind, outcome, problem),
			"see `platter runs --failed`; the next one that goes well ends this",
		}, 0)
	}
}

// Died looks for runs of the command line that died, and were the last of
// their kind. Those of jobs the agent tells of.
func (u *Update) Died(runs []history.Run) {
	last := map[string]*history.Run{}
	for i := range runs {
		if runs[i].Job == "" {
			last[subject(&runs[i])] = &runs[i]
		}
	}
	for name, r := range last {
		if r.Outcome == history.Died {
			u.Ended(name, r.Kind, r.Outcome, "its process is gone; it began "+r.Start.Local().Format(time.RFC3339))
		}
	}
}

// exitDamage is the status of a verification that found damage.
const exitDamage = 13

func (u *Update) verified(r *history.Run) {
	switch {
	case r.Exit == exitDamage:
		u.Raise(Condition{
			Damaged, r.Repository, "stored data is damaged: " + r.Error,
			"see `platter verify` for the images that are; the next backup stores again what it meets. Keep the repository as it is, and look after its disk",
		}, 0)
	case r.Outcome == history.Done && len(r.Subjects) == 0:
		u.Resolve(Damaged, r.Repository)
	}
}

func (u *Update) booted(r *history.Run) {
	for _, v := range r.Volumes {
		switch r.Outcome {
		case history.Done:
			u.Resolve(Unbooted, v.Name)
		case history.Incomplete:
			u.Raise(Condition{Unbooted, v.Name, fmt.Sprintf("image %.8s of %s: no system came up on it", v.Image, v.Name), "look at its screen: `platter boot --picture FILE " + v.Name + "`"}, 0)
		}
	}
}

// Late looks for volumes whose last good image is too old, and for those where
// it is not, any more.
func (u *Update) Late(runs []history.Run, rules []config.Alert, now time.Time) {
	var late []string
	for _, g := range LastGood(runs) {
		rule := RuleOf(rules, g.Volume)
		if rule.LastGood == 0 || now.Sub(g.Time) <= rule.LastGood {
			continue
		}
		late = append(late, g.Volume)
		text := fmt.Sprintf("%s: the last good image is of %s, and should be no older than %s", g.Volume, g.Time.Local().Format(time.RFC3339), rule.LastGood)
		if g.Time.IsZero() {
			text = fmt.Sprintf("%s: there is no good image yet", g.Volume)
		}
		u.Raise(Condition{Late, g.Volume, text, "see `platter runs --volume " + g.Volume + "` for what became of its backups"}, rule.Repeat)
	}
	u.ResolveOthers(Late, late)
}

// A Good image is the last one of a volume that is complete.
type Good struct {
	Volume string
	Time   time.Time // when its run ended; zero for never
}

// LastGood returns the last good image of each volume, in order of their names.
func LastGood(runs []history.Run) (list []Good) {
	for _, r := range runs {
		if r.Kind != history.Backup {
			continue
		}
		for _, v := range r.Volumes {
			i := slices.IndexFunc(list, func(g Good) bool { return g.Volume == v.Name })
			if i < 0 {
				i = len(list)
				list = append(list, Good{Volume: v.Name})
			}
			if v.Image != "" && !v.Incomplete && !r.End.IsZero() {
				list[i].Time = r.End
			}
		}
	}
	slices.SortFunc(list, func(a, b Good) int { return strings.Compare(a.Volume, b.Volume) })
	return list
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
