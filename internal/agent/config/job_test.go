package config

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Load(write(t, map[string]string{"platter.toml": text}))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestJobsComeWithTheirDefaultsAndFlags(t *testing.T) {
	c := load(t, `
[agent]
runs-at-once = 3
time-zone = "Europe/Berlin"
jitter = "10m"
repository = "main"

[repository.main]
location = "s3:https://s3.example.org/backups/db1"
password-file = "/etc/platter/password"
environment-file = "/etc/platter/s3"

[policy.all]
keep-daily = 7

[job.nightly]
devices = ["/dev/disk/by-id/ata-A", "/dev/vg0/root"]
schedule = "Mon..Fri 02:30; Sat 12:00"
window = "22:00..06:00"
stop-at-window-end = true
tags = ["nightly", "prod"]
tracker = "auto"
allow-unreadable = true
limit-read = "100MiB"
limit-upload = "1MiB"
lock-wait = "90m"
priority = "idle"
before = "/etc/platter/hooks/freeze"
stop-after = "12h"

[job.check]
kind = "verify"
volumes = ["db1/root"]
read-data-subset = "5%"
schedule = "every 7d"
time-zone = "UTC"
jitter = "0"
attempts = 1

[job.tidy]
kind = "gc"
grace = "2d"
max-delete = "30%"
`)
	if c.Agent.AtOnce != 3 || c.Agent.Zone.String() != "Europe/Berlin" || len(c.Jobs) != 3 {
		t.Fatalf("got %+v, %d jobs", c.Agent, len(c.Jobs))
	}
	n, v, g := c.Jobs[0], c.Jobs[1], c.Jobs[2]
	wantFlags := []string{
		"--limit-read=100MiB", "--limit-upload=1MiB", "--lock-wait=1h30m", "--tag=nightly", "--tag=prod", "--tracker=auto", "--allow-unreadable=true",
	}
	if n.Kind != Backup || n.Repository != "main" || n.Zone.String() != "Europe/Berlin" || *n.Jitter != 10*time.Minute || n.Priority != Idle ||
		n.Attempts != DefaultAttempts || n.StopAfter != 12*time.Hour || n.HookTimeout != DefaultHookTimeout || !slices.Equal(n.Flags, wantFlags) {
		t.Errorf("got %+v", n)
	}
	if v.Zone != time.UTC || *v.Jitter != 0 || v.Attempts != 1 || v.Priority != Low || !slices.Equal(v.Flags, []string{"--read-data-subset=5%"}) {
		t.Errorf("got %+v", v)
	}
	if !g.Schedule.Empty() || !slices.Equal(g.Flags, []string{"--max-delete=30%", "--grace=2d"}) {
		t.Errorf("got %+v", g)
	}
	r := c.Repository("main")
	if !slices.Equal(r.Environment, []string{"PLATTER_PASSWORD_FILE=/etc/platter/password"}) || r.EnvironmentFile != "/etc/platter/s3" || c.Repository("other") != nil {
		t.Errorf("got %+v", r)
	}
}

func TestRepositoryOfAJobMayBeInAnotherFile(t *testing.T) {
	path := write(t, map[string]string{
		"conf.d/a.toml": "[job.a]\nkind = \"gc\"\nrepository = \"r\"\n",
		"conf.d/b.toml": "[repository.r]\nlocation = \"/backup\"\n",
	})
	c, err := Load(path)
	if err != nil || c.Jobs[0].Repository != "r" || c.Agent.AtOnce != defaultAtOnce || c.Jobs[0].Zone != time.Local {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestMistakesOfJobsAreTold(t *testing.T) {
	const ok = "devices = [\"/dev/vg0/a\"]\n"
	for _, c := range []struct{ text, want string }{
		{"[job.a]\n", ":1:1: job.a: it names no devices"},
		{"[job.a]\n" + ok + "all = true\n", ":3:1: job.a.all: it names devices, too"},
		{"[job.a]\n" + ok + "schedule = \"dayly\"\n", ":3:13: job.a.schedule: schedule \"dayly\""},
		{"[job.a]\n" + ok + "schedule = \"*-02-30\"\n", ":3:13: job.a.schedule: schedule \"*-02-30\": there is no such day"},
		{"[job.a]\n" + ok + "window = \"22:00\"\n", ":3:11: job.a.window: window"},
		{"[job.a]\n" + ok + "\n  kind = \"bakup\"\n", ":4:3: job.a.kind: \"bakup\": want backup, verify"},
		{"[job.a]\n" + ok + "read-data = true\n", ":3:1: job.a.read-data: a job of kind backup has no use for it, only verify"},
		{"[job.a]\nkind = \"verify\"\n" + ok, ":3:1: job.a.devices: a job of kind verify has no use for it, only backup"},
		{"[job.a]\n" + ok + "shedule = \"daily\"\n", ":3:1: unknown key job.a.shedule"},
		{"[job.a]\n" + ok + "repository = \"r\"\n", ":3:1: job.a.repository: there is no table [repository.r]"},
		{"[agent]\nrepository = \"r\"\n[job.a]\n" + ok, ":3:1: job.a: there is no table [repository.r]"},
		{"[job.a]\ndevices = [\"/dev/sda\"]\n", ":2:1: job.a.devices: \"/dev/sda\": such a name may mean another device"},
		{"[job.a]\ndevices = [\"/dev/nvme0n1p1\"]\n", "such a name may mean another device"},
		{"[job.a]\ndevices = [\"disk.img\"]\n", "want a path from the root"},
		{"[job.a]\ndevices = [\"/a/../b\"]\n", "want it as /b"},
		{"[job.a]\n" + ok + "priority = \"high\"\n", ":3:1: job.a.priority: "},
		{"[job.a]\n" + ok + "attempts = 0\n", ":3:1: job.a.attempts: "},
		{"[job.a]\n" + ok + "limit-read = \"fast\"\n", ":3:15: job.a.limit-read: want a size"},
		{"[job.a]\n" + ok + "stop-after = \"1 day\"\n", ":3:15: job.a.stop-after: want a length of time"},
		{"[job.a]\n" + ok + "time-zone = \"Mars\"\n", ":3:14: job.a.time-zone: "},
		{"[job.a]\n" + ok + "before = \"hook\"\n", ":3:1: job.a.before: want the path of a program"},
		{"[job.a]\n" + ok + "stop-at-window-end = true\n", ":3:1: job.a.stop-at-window-end: there is no window"},
		{"[job.\"a b\"]\n" + ok, "a job's name has"},
		{"[job.a]\nkind = \"prune\"\n", ":1:1: job.a: there is no policy"},
		{"[job.a]\nkind = \"boot\"\n", ":1:1: job.a: want one volume"},
		{"[job.a]\nkind = \"verify\"\nvolumes = [\"--read-data\"]\n", "is no name of a volume"},
		{"[repository.r]\n", ":1:1: repository r: it has no location"},
		{"[repository.r]\nlocation = \"x\"\nkey-file = \"k\"\n", ":3:1: repository.r.key-file: want a path"},
		{"[repository.r]\nlocation = \"x\"\npassword-file = \"/k\"\npassword-command = \"c\"\n", ":4:1: repository r: a password comes"},
		{"[agent]\nruns-at-once = 0\n", ":2:1: agent.runs-at-once: want a number"},
		{"agent = 3\n", ":1:"},
		{"[[job]]\nname = \"a\"\n", ":1:"},
		{"[agent]\nruns-at-once = 1\nmoney = 3\n", ":3:1: unknown key agent.money"},
	} {
		_, err := Load(write(t, map[string]string{"platter.toml": c.text}))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n got %v\nwant %q", c.text, err, c.want)
		}
	}
}

// pages say where the keys of a table are documented.
var pages = map[string]string{
	"policy": "retention.md", "agent": "agent.md", "repository": "agent.md", "job": "agent.md",
	"alert": "alerts.md", "notify": "alerts.md", "metrics": "metrics.md",
}

var keyInRow = regexp.MustCompile("`([a-z-]+)`")

// documented returns the keys that a page lists in the table with a heading.
func documented(t *testing.T, page, heading string) (keys []string) {
	t.Helper()
	text, err := os.ReadFile("../../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n| "+heading+" | |\n|---|---|\n")
	if !ok {
		t.Fatalf("docs/%s has no table %q", page, heading)
	}
	for line := range strings.Lines(rest) {
		cell, _, ok := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		if !strings.HasPrefix(line, "|") || !ok {
			break
		}
		for _, m := range keyInRow.FindAllStringSubmatch(cell, -1) {
			keys = append(keys, m[1])
		}
	}
	return keys
}

func TestEveryKeyIsDocumentedAndEveryDocumentedKeyIsThere(t *testing.T) {
	all := reflect.TypeFor[content]()
	for i := range all.NumField() {
		table := all.Field(i).Tag.Get("toml")
		of := all.Field(i).Type
		heading := "key of `[" + table + "]`"
		if of.Kind() == reflect.Map {
			of, heading = of.Elem(), fmt.Sprintf("key of `[%s.NAME]`", table)
		}
		var keys []string
		for key := range fields(reflect.New(of).Interface()) {
			keys = append(keys, key)
		}
		page, ok := pages[table]
		if !ok {
			t.Errorf("no page documents the table %s", table)
			continue
		}
		told := documented(t, page, heading)
		for _, key := range keys {
			if !slices.Contains(told, key) {
				t.Errorf("docs/%s does not list %s.%s", page, table, key)
			}
		}
		for _, key := range told {
			if !slices.Contains(keys, key) {
				t.Errorf("docs/%s lists %s.%s, and there is no such key", page, table, key)
			}
		}
	}
}
