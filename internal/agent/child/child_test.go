package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"platter/internal/agent"
	"platter/internal/agent/config"
)

// TestMain is the program that the tests have run: it prints what it was
// given, or does what PLATTER_TEST_CHILD says.
func TestMain(m *testing.M) {
	switch os.Getenv("PLATTER_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "report":
		fmt.Println(`{"message_type":"status","job":"backup","phase":"read","bytes_done":5,"bytes_total":10,"bytes_per_second":7}`)
		fmt.Println(`{"message_type":"summary","image":{"id":"aa"}}`)
		fmt.Println("no JSON")
		fmt.Println(`{"message_type":"summary","image":{"id":"bb"}}`)
	case "fail":
		fmt.Fprintln(os.Stderr, "platter: a notice")
		fmt.Fprintln(os.Stderr, `{"message_type":"exit_error","code":13,"message":"segment x is damaged"}`)
		os.Exit(13)
	case "notice":
		fmt.Fprintln(os.Stderr, "platter: out of paper")
		os.Exit(1)
	case "priority":
		class, _, _ := unix.Syscall(unix.SYS_IOPRIO_GET, ioWhoProcess, 0, 0)
		nice, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
		fmt.Fprintf(os.Stderr, "class %d level %d nice %d\n", class>>ioClassShift, class&7, 20-nice)
		os.Exit(1)
	case "die":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	case "stop":
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGTERM)
		fmt.Println(`{"message_type":"status","bytes_done":1}`)
		<-c
		os.Exit(130)
	case "deaf":
		signal.Ignore(unix.SIGTERM)
		fmt.Println(`{"message_type":"status","bytes_done":1}`)
		time.Sleep(time.Minute)
	}
	os.Exit(0)
}

func runner(t *testing.T, mode string) *Runner {
	t.Helper()
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	return &Runner{Program: self, Environment: []string{"PLATTER_TEST_CHILD=" + mode}, Absent: "/absent", Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

func task(j config.Job) agent.Task {
	j.Name, j.HookTimeout = "nightly", time.Minute
	if j.Kind == "" {
		j.Kind = config.Backup
	}
	return agent.Task{Run: "0123", Job: &j, Attempt: 2}
}

func TestWhatARunPrintsBecomesItsResult(t *testing.T) {
	var seen []agent.Progress
	r := runner(t, "report").Run(t.Context(), task(config.Job{}), func(p agent.Progress) { seen = append(seen, p) })
	if r.Exit != 0 || r.Error != "" || !slices.Equal(r.Images, []string{"aa", "bb"}) {
		t.Errorf("got %+v", r)
	}
	if want := []agent.Progress{{Job: "backup", Phase: "read", Done: 5, Total: 10, Rate: 7}}; !slices.Equal(seen, want) {
		t.Errorf("got %+v, want %+v", seen, want)
	}
	for mode, want := range map[string]agent.Result{
		"fail":   {Exit: 13, Error: "segment x is damaged"},
		"notice": {Exit: 1, Error: "exit status 1: out of paper"},
		"die":    {Exit: -1, Error: "signal: killed"},
	} {
		if r := runner(t, mode).Run(t.Context(), task(config.Job{}), nil); r.Exit != want.Exit || r.Error != want.Error {
			t.Errorf("%s: got %+v, want %+v", mode, r, want)
		}
	}
	gone := runner(t, "report")
	gone.Program = "/nowhere/platter"
	if r := gone.Run(t.Context(), task(config.Job{}), nil); r.Exit != -1 || !strings.Contains(r.Error, "start /nowhere/platter") {
		t.Errorf("no program: %+v", r)
	}
}

func TestRunsHaveThePriorityOfTheirJob(t *testing.T) {
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	nice := 20 - own // of the tests
	for priority, want := range map[string]string{
		config.Idle:   "class 3 level 0 nice 19",
		config.Low:    fmt.Sprintf("class 2 level 7 nice %d", max(nice, 10)),
		config.Normal: fmt.Sprintf(" nice %d", nice),
	} {
		r := runner(t, "priority").Run(t.Context(), task(config.Job{Priority: priority}), nil)
		if !strings.HasSuffix(r.Error, want) {
			t.Errorf("%s: got %q, want %q", priority, r.Error, want)
		}
	}
	if after, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err != nil || after != own {
		t.Errorf("the agent's own priority went from %d to %d, %v", nice, 20-after, err)
	}
}

func TestARunThatIsStoppedIsAskedFirstAndKilledThen(t *testing.T) {
	for mode, want := range map[string]int{"stop": 130, "deaf": -1} {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := runner(t, mode)
		r.Grace = 100 * time.Millisecond
		if mode == "stop" {
			r.Grace = time.Minute
		}
		result := r.Run(ctx, task(config.Job{}), func(agent.Progress) { cancel(errors.New("enough")) })
		if result.Exit != want {
			t.Errorf("%s: got %+v, want status %d", mode, result, want)
		}
	}
}

// hooks writes a hook that notes what it is told, and fails if there is a file
// of its name.
func hooks(t *testing.T) (path string, told func() string) {
	t.Helper()
	dir := t.TempDir()
	for at := dir; at != "/" && at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(dir, "hook")
	text := "#!/bin/sh\ncd ${0%/*}\necho $PLATTER_HOOK $PLATTER_JOB $PLATTER_RUN $PLATTER_ATTEMPT $PLATTER_EXIT $PLATTER_ERROR >>log\ntest ! -e $PLATTER_HOOK\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, func() string {
		b, _ := os.ReadFile(filepath.Join(dir, "log"))
		_ = os.Remove(filepath.Join(dir, "log"))
		return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", "; ")
	}
}

func TestHooksBeforeAfterAndOnFailure(t *testing.T) {
	hook, told := hooks(t)
	all := config.Job{Before: hook, After: hook, OnFailure: hook}
	fails := func(which string) {
		if err := os.WriteFile(filepath.Join(filepath.Dir(hook), which), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		mode, fails string
		exit        int
		want        string
	}{
		{"report", "", 0, "before nightly 0123 2; after nightly 0123 2 0"},
		{"fail", "", 13, "before nightly 0123 2; after nightly 0123 2 13 segment x is damaged; on-failure nightly 0123 2 13 segment x is damaged"},
		// Nothing is imaged, and what before may have begun is ended.
		{"report", "before", -1, "before nightly 0123 2; after nightly 0123 2 -1 hook " + hook + ": exit status 1; on-failure nightly 0123 2 -1 hook " + hook + ": exit status 1"},
		{"report", "after", 1, "before nightly 0123 2; after nightly 0123 2 0; on-failure nightly 0123 2 1 hook " + hook + ": exit status 1"},
	} {
		if c.fails != "" {
			fails(c.fails)
		}
		r := runner(t, c.mode).Run(t.Context(), task(all), func(agent.Progress) {})
		if got := told(); r.Exit != c.exit || got != c.want {
			t.Errorf("%s: got %+v and %q, want %d and %q", c.mode, r, got, c.exit, c.want)
		}
		_ = os.Remove(filepath.Join(filepath.Dir(hook), c.fails))
	}
	// A run that was stopped has not failed; one that took too long has.
	for cause, want := range map[error]string{
		errors.New("the agent stops"): "before nightly 0123 2; after nightly 0123 2 130 exit status 130",
		agent.ErrTooLong:              "before nightly 0123 2; after nightly 0123 2 130 exit status 130; on-failure nightly 0123 2 130 exit status 130",
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		runner(t, "stop").Run(ctx, task(all), func(agent.Progress) { cancel(cause) })
		if got := told(); got != want {
			t.Errorf("%v: got %q, want %q", cause, got, want)
		}
	}
}

func TestArgumentsAndEnvironmentOfARun(t *testing.T) {
	backup := task(config.Job{Devices: []string{"/a", "/b"}, Flags: []string{"--tag=x"}})
	prune := task(config.Job{Kind: config.Prune, Volumes: []string{"h/v"}})
	prune.Config = "/etc/platter/platter.toml"
	for _, c := range []struct {
		t    agent.Task
		want string
	}{
		{backup, "backup --json --tag=x -- /a /b"},
		{prune, "prune --json --config=/etc/platter/platter.toml -- h/v"},
	} {
		if got := strings.Join(Arguments(c.t), " "); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}

	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# secrets\nAWS_ACCESS_KEY_ID=id\n\nAWS_SECRET_ACCESS_KEY=\"a = b\"\nPLATTER_KEY_FILE='/k'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for at := filepath.Dir(file); at != "/" && at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := &Runner{Absent: "/absent", Environment: []string{"HOME=/root", "PLATTER_PASSWORD=agent", "PLATTER_PASSWORD_COMMAND=x", "PLATTER_REPOSITORY=/own", "PLATTER_CATALOG=/own/cat"}}
	env := func(kind string, repo *config.Repository) string {
		t.Helper()
		tk := task(config.Job{Kind: kind})
		tk.Repository = repo
		list, err := r.environment(tk)
		if err != nil {
			return err.Error()
		}
		return strings.Join(list, " ")
	}
	if list, err := r.environment(prune); err != nil || !slices.Contains(list, "PLATTER_CONFIG=/etc/platter/platter.toml") {
		t.Errorf("a run reads another config than the agent: %q, %v", list, err)
	}
	other := &config.Repository{Location: "s3:x", Environment: []string{"PLATTER_PASSWORD_FILE=/p"}, EnvironmentFile: file}
	for _, c := range []struct{ got, want string }{
		{env(config.Backup, nil), "HOME=/root PLATTER_PASSWORD=agent PLATTER_PASSWORD_COMMAND=x PLATTER_REPOSITORY=/own PLATTER_CATALOG=/own/cat"},
		{env(config.Verify, nil), "HOME=/root PLATTER_PASSWORD=agent PLATTER_PASSWORD_COMMAND=x PLATTER_REPOSITORY=/own PLATTER_CATALOG=/absent"},
		{env(config.Backup, other), "HOME=/root PLATTER_REPOSITORY=s3:x PLATTER_PASSWORD_FILE=/p AWS_ACCESS_KEY_ID=id AWS_SECRET_ACCESS_KEY=a = b PLATTER_KEY_FILE=/k"},
	} {
		if c.got != c.want {
			t.Errorf("got  %s\nwant %s", c.got, c.want)
		}
	}
	for text, want := range map[string]string{"AWS\n": ":1: want NAME=VALUE", "A=1\nB C=2\n": ":2: want NAME=VALUE"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := env(config.Backup, other); !strings.Contains(got, want) {
			t.Errorf("%q: got %s", text, got)
		}
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := env(config.Backup, other); !strings.Contains(got, "can be read by others") {
		t.Errorf("readable by all: %s", got)
	}
}
