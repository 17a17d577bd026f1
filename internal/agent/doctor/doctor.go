// Package doctor looks for what will go wrong with the backups of a machine,
// and says what to do about it.
//
// It changes nothing but for a lease of its own in the repository, by which it
// tries what this machine may do there.
package doctor

import (
	"context"
	"fmt"
	"time"

	"platter/image/repo"
	"platter/internal/agent/config"
)

// A Finding is something to be mended.
type Finding struct {
	Check  string `json:"check"`
	Text   string `json:"text"`
	Remedy string `json:"remedy"`
}

// A Check is what was looked at.
type Check struct {
	Name    string `json:"name"`
	Skipped string `json:"skipped,omitempty"` // why it was not
	Found   int    `json:"findings"`
}

// A Report is what was looked at, and what was found.
type Report struct {
	Checks   []Check   `json:"checks"`
	Findings []Finding `json:"findings"`
}

// A Patient is what is looked at.
type Patient struct {
	State    string         // folder
	Config   *config.Config // nil where there is none
	Files    []string       // of the config
	Secrets  []string       // files that hold some
	Location string         // of the repository
	Path     string         // its folder, where it has one
	Repo     *repo.Repo     // nil where it cannot be opened
	Problem  error          // why not
	Now      func() time.Time
}

// An exam is the work on one check.
type exam struct {
	*Patient
	ctx    context.Context
	check  *Check
	report *Report
}

// find adds a finding.
func (e *exam) find(remedy, format string, args ...any) {
	e.check.Found++
	e.report.Findings = append(e.report.Findings, Finding{e.check.Name, fmt.Sprintf(format, args...), remedy})
}

// skip says why a check could not be made.
func (e *exam) skip(format string, args ...any) { e.check.Skipped = fmt.Sprintf(format, args...) }

// Look makes all checks. What fails in one keeps none of the others from being
// made.
func Look(ctx context.Context, p *Patient) *Report {
	if p.Now == nil {
		p.Now = time.Now
	}
	r := &Report{Findings: []Finding{}}
	for _, c := range []struct {
		name string
		look func(*exam)
		repo bool // needs it open
	}{
		{"modes of files and folders", (*exam).modes, false},
		{"free space", (*exam).space, false},
		{"repository", (*exam).repository, false},
		{"rights in the repository", (*exam).rights, true},
		{"clock", (*exam).clock, true},
		{"leases", (*exam).leases, true},
		{"keys", (*exam).keys, true},
		{"tracer", (*exam).tracer, false},
		{"snapshots", (*exam).snapshots, false},
		{"copies of files", (*exam).copies, false},
		{"age of images", (*exam).images, false},
		{"verification", (*exam).verified, false},
		{"alerts", (*exam).alerts, false},
		{"audit log", (*exam).audit, false},
	} {
		if ctx.Err() != nil {
			break
		}
		e := &exam{p, ctx, &Check{Name: c.name}, r}
		if c.repo && p.Repo == nil {
			e.skip("the repository is not open")
		} else {
			c.look(e)
		}
		r.Checks = append(r.Checks, *e.check)
	}
	return r
}
