package hook

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// script writes a hook, in a folder that nobody else may write to.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	for at := filepath.Dir(path); at != "/" && at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestHookHasACleanEnvironmentAndItsOutputIsKept(t *testing.T) {
	t.Setenv("PLATTER_PASSWORD", "secret")
	var lines []string
	err := Run(t.Context(), script(t, "echo $PLATTER_JOB; echo to stderr >&2; env | grep -c SECRET\\|PASSWORD; pwd; head -c 9000 /dev/zero | tr '\\0' x; exit 0"), time.Minute,
		[]string{"PLATTER_JOB=a b;$(c)"}, func(s string) { lines = append(lines, s) })
	want := []string{"a b;$(c)", "to stderr", "0", "/", strings.Repeat("x", maxLine)}
	if err != nil || !slices.Equal(lines, want) {
		t.Errorf("got %q, %v, want %q", lines, err, want)
	}
}

func TestHookThatFailsHangsOrMayBeChangedByOthersIsAnError(t *testing.T) {
	none := func(string) {}
	if err := Run(t.Context(), script(t, "exit 3"), time.Minute, nil, none); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("exit 3: %v", err)
	}
	open := script(t, "exit 0")
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), open, time.Minute, nil, none); err == nil || !strings.Contains(err.Error(), "can be changed by others") {
		t.Errorf("writable by all: %v", err)
	}
	if err := Run(t.Context(), "/nowhere/hook", time.Minute, nil, none); err == nil {
		t.Error("a hook that is not there was run")
	}

	// The child of one that takes too long ends with it.
	pid := filepath.Join(t.TempDir(), "pid")
	start := time.Now()
	err := run(t.Context(), script(t, fmt.Sprintf("sleep 60 & echo $! >%s; wait", pid)), 300*time.Millisecond, 100*time.Millisecond, nil, none)
	if err == nil || !strings.Contains(err.Error(), "took longer than 300ms") || time.Since(start) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	waitForEnd(t, strings.TrimSpace(string(b)))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, script(t, "exit 0"), time.Minute, nil, none); err == nil {
		t.Error("a hook was run though the run was stopped")
	}
}

// waitForEnd waits until a process that was killed is no more.
func waitForEnd(t *testing.T, pid string) {
	t.Helper()
	var state []byte
	for range 1000 {
		var err error
		if state, err = os.ReadFile("/proc/" + pid + "/stat"); err != nil || strings.Contains(string(state), ") Z") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("what the hook started still runs: %s", state)
}

func TestWhatAHookLeavesRunningHoldsNobodyUp(t *testing.T) {
	start := time.Now()
	if err := run(t.Context(), script(t, "sleep 60 & exit 0"), time.Minute, 100*time.Millisecond, nil, func(string) {}); err != nil || time.Since(start) > 30*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}
