package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"platter/internal/agent"
	"platter/internal/agent/alert"
	"platter/internal/agent/config"
	"platter/internal/agent/event"
	"platter/internal/agent/history"
	"platter/internal/agent/watch"
)

// A month is what an agent and those who watch over it go through, in a bubble
// of synctest, and what the alerts of it must be.
type month struct {
	*testing.T
	dir    string
	conf   *config.Config
	watch  *watch.Watch
	offset time.Duration // of the machine's clock from the bubble's
	start  time.Time
	end    func(crash bool)

	good map[string]history.Run // the last of each job that went well
	open map[string]bool        // what is wrong, by kind and subject
	want map[string]int         // how often it went wrong
	runs int                    // that have ended
}

// outages are runs that fail on some days, by the name of a job or repository.
var outages = map[string]struct {
	from, to float64 // days
	exit     int
}{
	"r1":   {2.2, 4.3, 1}, // its store is dead
	"r3":   {6, 7.8, 1},
	"r5":   {15, 16.5, 1},  // its disk is full
	"r6":   {20, 21.4, 12}, // its password was changed
	"v017": {5, 8, 1},      // the device is gone
	"v100": {9, 11.5, 13},
	"v112": {3, 4.5, 3}, "v150": {11, 14, -1},
}

func monthOfAlerts() string {
	var b strings.Builder
	b.WriteString("[agent]\nruns-at-once = 4\n[alert.all]\nlast-good-image = \"36h\"\n")
	for r := range 8 {
		fmt.Fprintf(&b, "[repository.r%d]\nlocation = \"/r%d\"\n", r, r)
	}
	schedules := []string{"daily 02:30|Europe/Berlin", "daily 01:30|America/New_York", "every 20h|UTC", "30 2 * * *|America/New_York"}
	for v := range 200 {
		schedule, zone, _ := strings.Cut(schedules[v%len(schedules)], "|")
		fmt.Fprintf(&b, "[job.v%03d]\nrepository = \"r%d\"\ndevices = [\"/dev/vg/v%03d\"]\nschedule = %q\ntime-zone = %q\njitter = \"1h\"\nattempts = 2\n",
			v, v/25, v, schedule, zone)
	}
	return b.String()
}

func (m *month) now() time.Time { return time.Now().Add(m.offset).Round(0) }

// Run is one attempt at a run.
func (m *month) Run(ctx context.Context, t agent.Task, _ func(agent.Progress)) agent.Result {
	select {
	case <-time.After(5 * time.Minute):
	case <-ctx.Done():
		return agent.Result{Exit: 130}
	}
	day := m.now().Sub(m.start).Hours() / 24
	for _, name := range []string{t.Job.Name, t.Repository.Name} {
		if f, ok := outages[name]; ok && day > f.from && day < f.to {
			return agent.Result{Exit: f.exit, Error: "it failed"}
		}
	}
	return agent.Result{}
}

// is notes that something is wrong, or is not any more.
func (m *month) is(wrong bool, kind alert.Kind, subject string) {
	key := string(kind) + " " + subject
	if wrong && !m.open[key] {
		m.want[key]++
	}
	m.open[key] = wrong
}

// hear has alerts made of what the agent tells, and notes what they must be.
func (m *month) hear(e event.Event) {
	if e.Kind == event.Started {
		return
	}
	m.watch.Observe(e)
	job := "job " + e.Job
	switch {
	case e.Kind == event.Clock:
		m.want["clock *"]++
	case e.Kind == event.Skipped:
		m.is(true, alert.Skipped, job)
	case e.Kind == event.Finished && e.Final:
		m.runs++
		m.is(e.Exit != 0, alert.Failed, job)
		if e.Exit == 0 {
			m.is(false, alert.Skipped, job)
			m.good[e.Job] = history.Run{Kind: history.Backup, End: m.now(), Volumes: []history.Volume{{Name: e.Job, Image: "aa"}}}
		}
	}
}

// look is what the agent does every minute: images grow old.
func (m *month) look() {
	runs, now := slices.Collect(maps.Values(m.good)), m.now()
	if _, err := alert.In(m.dir, nil).Update(func(u *alert.Update) { u.Late(runs, m.conf.Alerts, now) }); err != nil {
		m.Error(err)
	}
	for name, r := range m.good {
		m.is(now.Sub(r.End) > 36*time.Hour, alert.Late, name)
	}
}

// begin starts an agent.
func (m *month) begin() {
	dead := false
	a, err := agent.New(agent.Options{
		State: m.dir, Runner: m, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: m.now,
		Load: func(string) (*config.Config, error) { return m.conf, nil },
		Observe: func(e event.Event) {
			if !dead {
				m.hear(e)
			}
		},
	})
	if err != nil {
		m.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	m.end = func(crash bool) {
		state := filepath.Join(m.dir, "agent.json")
		b, err := os.ReadFile(state)
		if err != nil {
			m.Fatal(err)
		}
		dead = crash
		cancel()
		if err := <-done; err != nil {
			m.Error(err)
		}
		if crash { // what it wrote after the crash it never did
			if err := os.WriteFile(state, b, 0o600); err != nil {
				m.Fatal(err)
			}
		}
	}
	synctest.Wait()
}

// lives lets time go by.
func (m *month) lives(d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); {
		time.Sleep(min(time.Hour, time.Until(until)))
		synctest.Wait()
		m.look()
	}
}

// sets sets the clock. Somebody sees the alert and says that it is right.
func (m *month) sets(by time.Duration) {
	m.offset += by
	m.lives(time.Minute)
	list, err := alert.In(m.dir, nil).List()
	if err != nil {
		m.Fatal(err)
	}
	for _, a := range list {
		if a.Kind == alert.Clock && a.Open() {
			if _, err := alert.In(m.dir, nil).Update(func(u *alert.Update) { u.Acknowledge(a.ID, "root") }); err != nil {
				m.Error(err)
			}
		}
	}
}

// TestAlertsOfAMonthAreRaisedOnceAndResolved: dead stores, a full disk, a device
// that is gone, damage, crashes, downtime, clocks that are set and that change
// for winter, each of which many runs of 200 volumes meet.
func TestAlertsOfAMonthAreRaisedOnceAndResolved(t *testing.T) {
	if testing.Short() {
		t.Skip("ten seconds of a month")
	}
	dir, err := os.MkdirTemp("/dev/shm", "platter-alerts-*") // where syncing takes no time
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "platter.toml")
	if err := os.WriteFile(path, []byte(monthOfAlerts()), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		m := &month{
			T: t, dir: dir, conf: conf, good: map[string]history.Run{}, open: map[string]bool{}, want: map[string]int{},
			start: time.Date(2026, 10, 10, 0, 0, 0, 0, time.UTC),
			watch: &watch.Watch{State: dir, Config: func() *config.Config { return conf }, Warn: func(s string) { t.Error(s) }},
		}
		m.offset = time.Until(m.start)
		m.live()
		m.check()
	})
}

func (m *month) live() {
	const day = 24 * time.Hour
	m.begin()
	m.lives(2*day + 2*time.Hour)
	m.end(true)
	time.Sleep(time.Minute)
	m.begin()
	m.lives(2*day + 5*time.Hour)
	m.end(false)
	time.Sleep(40 * time.Hour) // off over a weekend
	m.begin()
	m.lives(3 * day)
	m.sets(3 * time.Hour)
	m.lives(3 * day)
	m.sets(-2 * time.Hour)
	m.lives(2 * day)
	m.end(true)
	m.offset -= 26 * time.Hour // the clock is wrong when the machine comes back,
	m.begin()
	m.lives(time.Hour)
	m.sets(26 * time.Hour) // until somebody sees it
	m.lives(day)
	m.end(false)
	m.begin()
	m.lives(m.start.Add(31 * day).Sub(m.now()))
	m.end(false)
}

// check compares the alerts there were with those there must have been.
func (m *month) check() {
	list, err := alert.In(m.dir, nil).List()
	if err != nil {
		m.Fatal(err)
	}
	raised, kinds := map[string]int{}, map[alert.Kind]int{}
	for _, a := range list {
		raised[string(a.Kind)+" "+a.Subject]++
		kinds[a.Kind]++
		if a.Open() {
			m.Errorf("it is over, and still open: %+v", a)
		}
	}
	for key, n := range m.want {
		if raised[key] != n {
			m.Errorf("%s: %d times, and %d alerts were raised", key, n, raised[key])
		}
		delete(raised, key)
	}
	if len(raised) > 0 {
		m.Errorf("alerts without a reason: %v", raised)
	}
	m.Logf("%d runs, alerts: %v", m.runs, kinds)
	if m.runs < 5000 || kinds[alert.Late] < 50 || kinds[alert.Failed] < 100 || kinds[alert.Clock] != 3 {
		m.Errorf("%d runs, alerts: %v", m.runs, kinds)
	}
}
