package command

import (
	"context"
	"errors"
	"io"
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

func TestFindTakesAPathAsItIs(t *testing.T) {
	if got, err := Find("/bin/sh"); got != "/bin/sh" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := Find("/etc/no/such/tool"); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want %v", err, ErrMissing)
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

func TestReadGivesWhatIsPrinted(t *testing.T) {
	var got []byte
	err := Read(t.Context(), func(r io.Reader) (err error) { got, err = io.ReadAll(r); return err }, "sh", "-c", "echo a; echo b")
	if err != nil || string(got) != "a\nb\n" {
		t.Errorf("got %q, %v, want a and b", got, err)
	}
	ignore := func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	if err := Read(t.Context(), ignore, "sh", "-c", "echo a; echo 'no such snapshot' >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: no such snapshot") {
		t.Errorf("got %v, want the exit status and the complaint", err)
	}
	// Who has seen enough does not wait for a tool that never ends.
	enough := errors.New("enough")
	if err := Read(t.Context(), func(io.Reader) error { return enough }, "sh", "-c", "while :; do echo a; done"); !errors.Is(err, enough) {
		t.Errorf("got %v, want %v", err, enough)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stop := func(r io.Reader) error { cancel(); return ignore(r) }
	if err := Read(ctx, stop, "sh", "-c", "while :; do echo a; done"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
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
