package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"platter/internal/agent"
	"platter/internal/agent/alert"
	"platter/internal/agent/config"
	"platter/internal/agent/event"
	"platter/internal/agent/watch"
)

// outages are runs that fail on some days, by the name of a job or repository.
type outages map[string]struct {
	from, to float64 // days
	exit     int
}

func (o outages) Run(ctx context.Context, t agent.Task, _ func(agent.Progress)) agent.Result {
	select {
	case <-time.After(10 * time.Minute):
	case <-ctx.Done():
		return agent.Result{Exit: 130}
	}
	day := time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Hours() / 24 // a bubble begins there
	for _, name := range []string{t.Job.Name, t.Repository.Name} {
		if f, ok := o[name]; ok && day > f.from && day < f.to {
			return agent.Result{Exit: f.exit, Error: "it failed"}
		}
	}
	return agent.Result{}
}

// TestAlertsOfAFortnightAreRaisedOnceAndResolved: a dead store, a full disk, a
// device that is gone, damage and a crash, each of which many runs meet.
func TestAlertsOfAFortnightAreRaisedOnceAndResolved(t *testing.T) {
	var b strings.Builder
	for r := range 4 {
		fmt.Fprintf(&b, "[repository.r%d]\nlocation = \"/r%d\"\n", r, r)
	}
	for v := range 40 {
		fmt.Fprintf(&b, "[job.v%02d]\nrepository = \"r%d\"\ndevices = [\"/dev/vg/v%02d\"]\nschedule = \"every 12h\"\njitter = \"1h\"\nattempts = 2\n", v, v%4, v)
	}
	broken := outages{"r1": {2.2, 4.3, 1}, "r2": {6, 6.8, 1}, "v07": {5, 8, 1}, "v08": {9, 10, 13}, "v12": {3, 4, 3}, "v13": {11, 12, -1}}
	dir, err := os.MkdirTemp("/dev/shm", "platter-alerts-*") // where syncing takes no time
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "platter.toml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		conf, err := config.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		w := &watch.Watch{State: dir, Config: func() *config.Config { return conf }, Warn: func(s string) { t.Error(s) }}
		want, bad := map[string]int{}, map[string]bool{}
		live := func(d time.Duration) {
			a, err := agent.New(agent.Options{
				Config: path, State: dir, Runner: broken, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
				Observe: func(e event.Event) {
					if e.Kind != event.Started {
						w.Observe(e)
					}
					if e.Kind != event.Finished || !e.Final {
						return
					}
					job := "job " + e.Job
					if e.Exit != 0 && !bad[job] {
						want[job]++
					}
					bad[job] = e.Exit != 0
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
		}
		live(7 * 24 * time.Hour)
		time.Sleep(20 * time.Hour) // off
		live(7 * 24 * time.Hour)

		list, err := alert.In(dir, nil).List()
		if err != nil {
			t.Fatal(err)
		}
		raised := map[string]int{}
		for _, a := range list {
			if a.Kind == alert.Failed {
				raised[a.Subject]++
			}
			if a.Open() {
				t.Errorf("it is over, and still open: %+v", a)
			}
		}
		for job, n := range want {
			if raised[job] != n {
				t.Errorf("%s failed %d times in a row, and %d alerts were raised", job, n, raised[job])
			}
			delete(raised, job)
		}
		if len(want) < 20 || len(raised) > 0 {
			t.Errorf("%d jobs had alerts, and without a failure %v", len(want), raised)
		}
	})
}
