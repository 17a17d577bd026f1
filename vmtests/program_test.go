package vmtests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"platter/vmtests/loop"
)

// binary is the program under test, built once for all tests.
var binary string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "platter-vmtests-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "platter")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "platter/cmd/platter")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build platter: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// A repo is a repository and the program that works on it.
type repo struct {
	t       *testing.T
	dir     string
	catalog string
}

func newRepo(t *testing.T) *repo {
	t.Helper()
	base := t.TempDir()
	r := &repo{t, filepath.Join(base, "repo"), filepath.Join(base, "catalog")}
	r.run("init", "--no-encryption")
	return r
}

// run runs a command that must succeed and returns its standard output.
func (r *repo) run(args ...string) string {
	r.t.Helper()
	out, status, complaint := r.try(args...)
	if status != 0 {
		r.t.Fatalf("platter %s: exit status %d, want 0: %s", strings.Join(args, " "), status, complaint)
	}
	return out
}

// try runs a command and returns standard output, exit status and standard error.
func (r *repo) try(args ...string) (string, int, string) {
	r.t.Helper()
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(r.t.Context(), binary, append(args, "--repo", r.dir, "--catalog", r.catalog, "--json")...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return out.String(), exit.ExitCode(), complaint.String()
	}
	if err != nil {
		r.t.Fatalf("platter %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), 0, complaint.String()
}

// An imaged is what backup --json reports; sizes are bytes.
type imaged struct {
	Image struct {
		ID    string `json:"id"`
		Size  int64  `json:"size"`
		Stats struct {
			Read, Zero, Unchanged, Known, New, Stored, Overhead int64
		} `json:"stats"`
	} `json:"image"`
}

// backup images a device as a volume, all of it: it is compared byte for byte.
func (r *repo) backup(device, volume string) imaged {
	r.t.Helper()
	out := r.run("backup", device, "--volume", volume, "--all-blocks")
	for line := range strings.Lines(out) {
		var head struct {
			Type string `json:"message_type"`
		}
		var b imaged
		if json.Unmarshal([]byte(line), &head) == nil && head.Type == "summary" && json.Unmarshal([]byte(line), &b) == nil {
			return b
		}
	}
	r.t.Fatalf("backup of %s printed no summary: %s", device, out)
	return imaged{}
}

// needLoop skips the test where there are no loop devices.
func needLoop(t *testing.T) {
	t.Helper()
	if why := loop.Unavailable(t.Context()); why != "" {
		t.Skip("needs root and loop devices: " + why)
	}
}

// attach makes a file a block device until the test ends.
func attach(t *testing.T, file string, o loop.Options) *loop.Device {
	t.Helper()
	d, err := loop.Attach(t.Context(), file, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// sparse makes a file of holes.
func sparse(t *testing.T, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "disk-*.raw")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// sh runs a tool that must succeed.
func sh(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}
