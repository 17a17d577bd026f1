package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"platter/internal/agent"
	"platter/internal/agent/child"
	"platter/internal/agent/config"
	"platter/internal/agent/history"
)

func TestTopShowsRunsJobsAndVolumesAndObeysNoTerminal(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := &agent.Status{Time: now, Begun: now.Add(-time.Hour), Paused: &agent.Pause{}, Jobs: []agent.JobStatus{
		{
			Name: "nightly", Kind: "backup", State: agent.Running, Next: now.Add(time.Hour),
			Run: &agent.RunState{At: now.Add(-time.Minute), Progress: &agent.Progress{Phase: "read", Done: 1 << 30, Total: 4 << 30, Rate: 100 << 20, Left: 30, Subject: "db1/\x1b[2Jroot"}},
		},
		{Name: "check", Kind: "verify", State: agent.Running, Run: &agent.RunState{At: now}, Volumes: []string{"db1/root"}},
		{Name: "broken", Kind: "gc", State: agent.Idle, Last: &agent.Last{End: now, Exit: 13, Error: "damage\n", Good: now.Add(-time.Hour)}},
	}}
	volumes := []volumeLine{{history.Volume{Name: "db1/root", Time: now.Add(-26 * time.Hour), Size: 4 << 30, Tracker: "lvm-thin"}, "done"}}
	text := strings.Join(topText(s, volumes), "\n")
	for _, want := range []string{
		"2 of 3 jobs run", "PAUSED", "nightly  backup read   25.0 %  100 MiB/s  30.0 s", `db1/\x1b[2Jroot`, "check    verify", "status 13: damage",
		"last good ", "db1/root  ", "26h", "lvm-thin  done",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.ContainsRune(text, 0x1b) {
		t.Errorf("the terminal would obey:\n%q", text)
	}
	screen := fit(strings.Split(text, "\n"), 30, 5)
	rows := strings.Split(screen, "\r\n")
	if len(rows) != 5 || !strings.Contains(rows[4], "more lines") {
		t.Errorf("5 rows became %q", rows)
	}
	for _, row := range rows {
		if n := len(strings.NewReplacer("\x1b[H", "", "\x1b[K", "", "\x1b[J", "").Replace(row)); n > 30 {
			t.Errorf("a row of %d columns: %q", n, row)
		}
	}
}

// everyKey is a job of each kind with every key that it may have.
const everyKey = `
[policy.all]
keep-daily = 7
[repository.main]
location = "/repo"
[job.backup]
devices = ["/dev/vg/a"]
volume = "h/a"
tags = ["a", "b"]
tracker = "full"
audit = "off"
live = true
allow-unreadable = true
repository-on-device = true
all-blocks = true
before-image = "sync"
after-image = "true"
image-hook-limit = "5m"
memory = "512MiB"
limit-read = "1MiB"
limit-write = "1MiB"
limit-upload = "1MiB"
limit-download = "1MiB"
lock-wait = "1h"
retry-for = "2h"
[job.disks]
all = true
[job.verify]
kind = "verify"
volumes = ["h/a"]
read-data-subset = "5%"
[job.data]
kind = "verify"
read-data = true
[job.prune]
kind = "prune"
volumes = ["h/a"]
max-delete = "30"
[job.gc]
kind = "gc"
grace = "2d"
min-age = "1d"
max-delete = "30%"
max-unused = "10%"
[job.boot]
kind = "boot"
volumes = ["h/a"]
firmware = "uefi"
timeout = "10m"
`

func TestEveryJobIsACommandLineThatTheProgramAccepts(t *testing.T) {
	path := t.TempDir() + "/platter.toml"
	if err := os.WriteFile(path, []byte(everyKey), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range c.Jobs {
		args := child.Arguments(agent.Task{Job: j, Config: path})
		if problem := accepts(append([]string{"platter"}, args...)); problem != "" {
			t.Errorf("%s: platter %s: %s", j.Name, strings.Join(args, " "), problem)
		}
	}
}
