package command

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestRunReturnsWhatWasPrinted(t *testing.T) {
	t.Setenv("PATH", "/nowhere")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	got, err := Run(t.Context(), "sh", "-c", "echo $LC_ALL; echo noise >&2")
	if err != nil || string(got) != "C\n" {
		t.Errorf("got %q, %v, want C", got, err)
	}
}

func TestRunSaysWhyItFailed(t *testing.T) {
	_, err := Run(t.Context(), "sh", "-c", "echo '  WARNING: odd' >&2; echo '  no such volume' >&2; exit 5")
	if err == nil || !strings.Contains(err.Error(), "exit status 5: no such volume") {
		t.Errorf("got %v, want the exit status and the complaint without the warning", err)
	}
	if _, err := Run(t.Context(), "no-such-tool"); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want %v", err, ErrMissing)
	}
}

// A tool that holds a device still gets the time to let go of it.
func TestRunWaitsForAnInterruptedTool(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	mark := t.TempDir() + "/released"
	ready := t.TempDir() + "/ready"
	if err := os.WriteFile(ready, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		for { // until the tool has removed it
			if _, err := os.Stat(ready); err != nil {
				cancel()
				return
			}
		}
	}()
	_, err := Run(ctx, "sh", "-c", "trap 'touch "+mark+"; exit 1' INT; rm "+ready+"; while :; do :; done")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the tool was not waited for: %v", err)
	}
}
