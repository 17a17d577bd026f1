package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"platter/retention"
)

// write makes a config of files by name and returns the path of the first one.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "platter.toml")
}

func TestPoliciesComeInTheOrderOfFilesAndLines(t *testing.T) {
	path := write(t, map[string]string{
		"platter.toml": `
[policy.zebra]
tags = ["release"]
keep-all = true
[policy.apple]
volumes = ["db*/root"]
keep-last = 1
keep-hourly = 2
keep-daily = 3
keep-weekly = 4
keep-monthly = 5
keep-yearly = 6
keep-within = "30d"
`,
		"conf.d/20-late.toml":   "policy.late.keep-last = 7\n",
		"conf.d/10-early.toml":  "[policy.early]\nkeep-last = 8\n",
		"conf.d/ignored.txt":    "this is no config",
		"conf.d/.hidden.toml":   "nor this",
		"conf.d/15-empty.toml":  "# nothing\n",
		"conf.d/deep/x.toml":    "[policy.x]\n",
		"conf.d/10-early.toml~": "a copy of an editor",
	})
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []retention.Rule{
		{Name: "zebra", Tags: []string{"release"}, All: true},
		{Name: "apple", Volumes: []string{"db*/root"}, Policy: retention.Policy{
			Last: 1, Hourly: 2, Daily: 3, Weekly: 4, Monthly: 5, Yearly: 6, Within: 30 * 24 * time.Hour,
		}},
		{Name: "early", Policy: retention.Policy{Last: 8}},
		{Name: "late", Policy: retention.Policy{Last: 7}},
	}
	if !reflect.DeepEqual(c.Policies, want) {
		t.Errorf("got\n%+v, want\n%+v", c.Policies, want)
	}
	if len(c.Files) != 4 {
		t.Errorf("read %q, want 4 files", c.Files)
	}
}

func TestMistakesAreToldWithFileLineAndColumn(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"[policy.a]\nkeep-last = 1\nkeep-lats = 2\n", `:3:1: unknown key policy.a.keep-lats`},
		{"[policy.a]\nkeep-last = 1\n\n  [polisy.b]\n  keep-last = 1\n", `:4:3: unknown key polisy`},
		{"[policy.a]\nkeep-last = 1\n[policy.b]\nkeep-last = 1\n  oops = {a = 1, b = {c = 2}}\n", ":5:3: unknown key policy.b.oops"},
		{"[policy.a]\nkeep-within = \"30 days\"\n", ":2:16: policy.a.keep-within: span"},
		{"[policy.a]\nkeep-last = \"x\"\n", ":2:1: policy.a.keep-last: "},
		{"[policy.a]\nvolumes = \"db1\"\nkeep-last = 1\n", ":2:"},
		{"\n[policy.a]\nvolumes = [\"db1\"]\n", ":2:1: policy a: no rule says what to keep"},
		{"[policy.a]\nkeep-last = -1\n", "keep last -1: want 0 or more"},
		{"[policy.a]\nkeep-all = true\nkeep-daily = 3\n", "keeps all, and says besides"},
		{"[policy.a]\ntags = [\"\"]\nkeep-daily = 3\n", "an empty tag"},
		{"[policy.a]\nvolumes = [\"\"]\nkeep-daily = 3\n", "an empty pattern"},
		{"[policy.a]\nkeep-last = 1\n[policy.a]\nkeep-last = 2\n", ":3:"},
		{"[policy.a\n", ":1:10: "},
		{"[policy]\na = 3\n", ":2:1: policy.a"},
		{"policy = 3\n", ":1:1: policy: want tables"},
		{"[[policy]]\nkeep-last = 3\n", ":1:"},
		{"[policy.\"quote\\\"d key\"]\nkeep-last = 1\nx = 1\n", ":3:1: unknown key"},
	} {
		path := write(t, map[string]string{"platter.toml": c.text})
		_, err := Load(path)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "platter.toml:") {
			t.Errorf("%q: got %v, want %q", c.text, err, c.want)
		}
		if p, ok := errors.AsType[*Problem](err); !ok || p.Line < 1 || p.Column < 1 {
			t.Errorf("%q: %#v", c.text, err)
		}
	}
}

func TestAllMistakesOfAllFilesAreTold(t *testing.T) {
	path := write(t, map[string]string{
		"platter.toml":  "[policy.a]\nkeep-lasts = 1\n[policy.b]\nx = 1\nkeep-last = 1\n",
		"conf.d/a.toml": "[policy.b]\nkeep-last = 1\n",
		"conf.d/b.toml": "[policy.c\n",
	})
	_, err := Load(path)
	text := fmt.Sprint(err)
	for _, want := range []string{
		"platter.toml:1:1: policy a: no rule", "platter.toml:2:1: unknown key policy.a.keep-lasts", "platter.toml:4:1: unknown key policy.b.x",
		"a.toml:1:1: " + path + " has a table [policy.b] already", "b.toml:1:",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("got\n%s\nwant %q in it", text, want)
		}
	}
}

func TestNoConfigIsToldFromABadOne(t *testing.T) {
	path := write(t, nil)
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("no file at all: %v", err)
	}
	path = write(t, map[string]string{"conf.d/only.toml": "[policy.a]\nkeep-last = 1\n"})
	if c, err := Load(path); err != nil || len(c.Policies) != 1 {
		t.Errorf("conf.d alone: %+v, %v", c, err)
	}
	path = write(t, map[string]string{"platter.toml/x": ""})
	if _, err := Load(path); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory: %v", err)
	}
	path = write(t, map[string]string{"platter.toml": strings.Repeat("#", maxFile+1)})
	if _, err := Load(path); err == nil {
		t.Error("a huge file was read")
	}
}
