package main

import (
	"fmt"
	"strings"
	"time"

	"platter/internal/job"
	"platter/internal/quantity"
)

const (
	redrawEvery = 200 * time.Millisecond
	statusEvery = time.Second
	rateWindow  = 10 * time.Second // that a rate is averaged over
)

// A progress shows how far a job is: a line redrawn on a terminal, status
// objects with --json, else nothing. The job calls it from one goroutine at a
// time.
type progress struct {
	terminal *terminal
	now      func() time.Time
	shown    time.Time
	of       string   // job, subject and phase that samples belong to
	samples  []sample // of the last rateWindow, oldest first
}

type sample struct {
	at   time.Time
	done int64
}

// newProgress returns nil where nobody would see it.
func newProgress(t *terminal) func(job.Progress) {
	if t.quiet || !t.json && !t.live {
		return nil
	}
	p := &progress{terminal: t, now: time.Now}
	return p.update
}

func (p *progress) update(j job.Progress) {
	now, every := p.now(), redrawEvery
	if p.terminal.json {
		every = statusEvery
	}
	of := j.Job + "\x00" + j.Subject + "\x00" + j.Phase
	fresh := of != p.of || len(p.samples) > 0 && j.Done < p.samples[len(p.samples)-1].done
	if fresh {
		p.of, p.samples = of, nil
	}
	if now.Sub(p.shown) < every && len(p.samples) > 0 {
		return
	}
	p.samples = append(p.samples, sample{now, j.Done})
	for len(p.samples) > 2 && now.Sub(p.samples[0].at) > rateWindow {
		p.samples = p.samples[1:]
	}
	if now.Sub(p.shown) < every {
		return
	}
	p.shown = now
	rate := p.rate(j)
	if p.terminal.json {
		p.terminal.object("status", struct {
			job.Progress
			Rate int64 `json:"bytes_per_second"`
			Left int64 `json:"seconds_left,omitempty"`
		}{j, rate, int64(left(j, rate).Seconds())})
		return
	}
	p.terminal.redraw(progressLine(j, rate))
}

// rate is the bytes per second of the last rateWindow; at first, those since
// the work began.
func (p *progress) rate(j job.Progress) int64 {
	first, last := p.samples[0], p.samples[len(p.samples)-1]
	if took := last.at.Sub(first.at); took > 0 {
		return perSecond(last.done-first.done, took)
	}
	return perSecond(j.Done, j.Elapsed)
}

// left is the time that is left at this rate, 0 while unknown.
func left(j job.Progress, rate int64) time.Duration {
	if rate <= 0 || j.Done >= j.Total {
		return 0
	}
	seconds := float64(j.Total-j.Done) / float64(rate)
	return time.Duration(min(seconds, (999*time.Hour).Seconds())) * time.Second
}

// progressLine is what a terminal shows, the most telling first: a narrow one
// cuts off the end.
func progressLine(j job.Progress, rate int64) string {
	words := []string{j.Job}
	if j.Phase != "" && j.Phase != j.Job {
		words = append(words, j.Phase)
	}
	if j.Total > 0 {
		words = append(words, fmt.Sprintf("%5.1f %%", 100*float64(j.Done)/float64(j.Total)))
	} else {
		words = append(words, bytesText(j.Done))
	}
	words = append(words, bytesText(rate)+"/s")
	if d := left(j, rate); d > 0 {
		words = append(words, quantity.FormatSpan(d.Round(time.Second))+" left")
	}
	if j.Unchanged > 0 && j.Done > 0 {
		words = append(words, fmt.Sprintf("%.0f %% unchanged", 100*float64(j.Unchanged)/float64(j.Done)))
	}
	if j.Stored > 0 {
		words = append(words, bytesText(j.Stored)+" stored")
	}
	words = append(words, clean(j.Subject))
	return strings.TrimSpace(strings.Join(words, "  "))
}

// newCountProgress is newProgress for work that counts things, not bytes.
func newCountProgress(t *terminal, work, things string) func(done, total int) {
	if t.quiet || !t.json && !t.live {
		return nil
	}
	every, shown := redrawEvery, time.Time{}
	if t.json {
		every = statusEvery
	}
	return func(done, total int) {
		if now := time.Now(); now.Sub(shown) >= every {
			shown = now
			showCount(t, work, things, done, total)
		}
	}
}

func showCount(t *terminal, work, things string, done, total int) {
	if !t.json {
		t.redraw(fmt.Sprintf("%s  %5.1f %%  %d of %d %s", work, 100*float64(done)/float64(max(total, 1)), done, total, things))
		return
	}
	t.object("status", struct {
		Job   string `json:"job"`
		Done  int    `json:"done"`
		Total int    `json:"total"`
		Of    string `json:"of"`
	}{work, done, total, things})
}
