package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"platter/internal/job"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func TestProgressIsRedrawnAtMostFiveTimesASecond(t *testing.T) {
	term, out, errs := screen()
	c := &clock{time.Unix(1000, 0)}
	p := &progress{terminal: term, now: c.now}
	for i := range 1001 { // one second
		p.update(job.Progress{Job: "backup", Done: int64(i), Total: 2000})
		c.t = c.t.Add(time.Millisecond)
	}
	if got := strings.Count(errs.String(), "\r"); got != 6 {
		t.Errorf("drawn %d times from 0 s to 1 s, want 6", got)
	}
	if out.Len() > 0 {
		t.Errorf("stdout got %q", out)
	}
}

func TestProgressTellsRateShareAndTimeLeft(t *testing.T) {
	term, _, errs := screen()
	c := &clock{time.Unix(1000, 0)}
	p := &progress{terminal: term, now: c.now}
	for i := range int64(31) { // 1 MiB/s for 20 s, then 2 MiB/s
		done := i * mib
		if i > 20 {
			done = (2*i - 20) * mib
		}
		p.update(job.Progress{Job: "backup", Phase: "read", Subject: "web1/\x1bdisk", Done: done, Total: 50 * mib, Unchanged: done / 2, Stored: 3 * mib})
		c.t = c.t.Add(time.Second)
	}
	lines := strings.Split(errs.String(), "\r")
	got := strings.TrimSuffix(lines[len(lines)-1], "\x1b[K")
	want := `backup  read   80.0 %  2.0 MiB/s  5s left  50 % unchanged  3.0 MiB stored  web1`
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if strings.Contains(got, "\x1b") {
		t.Error("the subject's escape reached the screen")
	}
}

func TestProgressInJSONIsAStatusASecond(t *testing.T) {
	term, out, errs := screen()
	term.json = true
	c := &clock{time.Unix(1000, 0)}
	p := &progress{terminal: term, now: c.now}
	for i := range 21 { // two seconds
		p.update(job.Progress{Job: "verify", Done: int64(i) * 100, Total: 4000})
		c.t = c.t.Add(100 * time.Millisecond)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || errs.Len() > 0 {
		t.Fatalf("got %d lines, want 3, and %q on stderr:\n%s", len(lines), errs, out)
	}
	var got struct {
		Type string `json:"message_type"`
		Done int64  `json:"bytes_done"`
		Rate int64  `json:"bytes_per_second"`
		Left int64  `json:"seconds_left"`
	}
	if err := json.Unmarshal([]byte(lines[2]), &got); err != nil || got.Type != "status" || got.Done != 2000 || got.Rate != 1000 || got.Left != 2 {
		t.Errorf("got %+v from %s, %v", got, lines[2], err)
	}
}

func TestProgressIsSilentWhereNobodyLooks(t *testing.T) {
	for _, term := range []*terminal{{}, {quiet: true, live: true}, {quiet: true, json: true}} {
		if newProgress(term) != nil {
			t.Errorf("json %v, quiet %v, terminal %v: progress is shown", term.json, term.quiet, term.live)
		}
	}
}
