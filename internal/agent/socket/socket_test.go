package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"platter/internal/agent"
)

// TestMain can be a process of another user that asks.
func TestMain(m *testing.M) {
	if path := os.Getenv("PLATTER_TEST_SOCKET"); path != "" {
		_, err := NewClient(path).Status(context.Background())
		fmt.Print(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A recorder is an agent that writes down what it is asked.
type recorder struct {
	asked []string
	err   error
}

func (r *recorder) note(format string, args ...any) error {
	r.asked = append(r.asked, fmt.Sprintf(format, args...))
	return r.err
}

func (r *recorder) Status(context.Context) (agent.Status, error) {
	return agent.Status{Jobs: []agent.JobStatus{{Name: "a", Run: &agent.RunState{Progress: &agent.Progress{Done: 7}}}}}, r.note("status")
}
func (r *recorder) RunNow(_ context.Context, job string) error  { return r.note("run %s", job) }
func (r *recorder) StopRun(_ context.Context, job string) error { return r.note("stop %s", job) }
func (r *recorder) Pause(_ context.Context, job string, until time.Time, stop bool) error {
	return r.note("pause %q %s %v", job, until.UTC().Format(time.DateOnly), stop)
}
func (r *recorder) Resume(_ context.Context, job string) error { return r.note("resume %q", job) }
func (r *recorder) Reload(context.Context) error               { return r.note("reload") }

func serve(t *testing.T, a Agent, group int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "platter-socket") // its name must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "run", "agent.sock")
	s, err := Listen(path, group, a, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestWhatIsAskedReachesTheAgentAndItsAnswerComesBack(t *testing.T) {
	r := new(recorder)
	path := serve(t, r, -1)
	c, ctx := NewClient(path), t.Context()
	s, err := c.Status(ctx)
	if err != nil || s.Jobs[0].Run.Progress.Done != 7 {
		t.Errorf("%+v, %v", s, err)
	}
	until := time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC)
	for _, err := range []error{c.RunNow(ctx, "a/../b"), c.StopRun(ctx, "a"), c.Pause(ctx, "a", until, true), c.Resume(ctx, ""), c.Reload(ctx)} {
		if err != nil {
			t.Error(err)
		}
	}
	want := `status; run a/../b; stop a; pause "a" 2027-01-02 true; resume ""; reload`
	if got := strings.Join(r.asked, "; "); got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
	r.err = fmt.Errorf("%w %q", agent.ErrNoJob, "x")
	if err := c.RunNow(ctx, "x"); !errors.Is(err, agent.ErrNoJob) || err.Error() != r.err.Error() {
		t.Errorf("no such job: %v", err)
	}
	r.err = errors.New("platter.toml:3:1: unknown key")
	if err := c.Reload(ctx); err == nil || err.Error() != r.err.Error() {
		t.Errorf("a bad config: %v", err)
	}
}

func TestSocketIsForItsOwnerAndItsGroup(t *testing.T) {
	path := serve(t, new(recorder), os.Getgid())
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	alone := serve(t, new(recorder), -1)
	if info, err := os.Stat(alone); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("without a group: mode %v, %v", info.Mode(), err)
	}
	if os.Getuid() != 0 {
		t.Skip("asking as another user needs root")
	}
	// The mode of the file is one guard; the kernel's word on who asks another.
	path = serve(t, new(recorder), 4242)
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(filepath.Dir(path), "ask")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		as   syscall.Credential
		want string
	}{
		{syscall.Credential{Uid: 12345, Gid: 12345}, errRefused.Error()},
		{syscall.Credential{Uid: 12345, Gid: 4242}, "<nil>"},
		{syscall.Credential{Uid: 12345, Gid: 12345, Groups: []uint32{7, 4242}}, "<nil>"},
	} {
		cmd := exec.Command(exe)
		cmd.Dir = "/"
		cmd.Env = []string{"PLATTER_TEST_SOCKET=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &c.as}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != c.want {
			t.Errorf("as %+v: %s, %v, want %s", c.as, out, err, c.want)
		}
	}
}

func TestASocketThatIsLeftIsTakenAndOneInUseIsNot(t *testing.T) {
	r := new(recorder)
	path := serve(t, r, -1)
	if _, err := Listen(path, -1, r, slog.Default()); !errors.Is(err, ErrInUse) {
		t.Errorf("a second agent: %v", err)
	}
	left := filepath.Join(filepath.Dir(path), "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if err := NewClient(left).RunNow(t.Context(), "a"); !errors.Is(err, ErrNoAgent) {
		t.Errorf("a dead agent: %v", err)
	}
	s, err := Listen(left, -1, r, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.listener.Close()
	if _, err := NewClient(filepath.Join(filepath.Dir(path), "none")).Status(t.Context()); !errors.Is(err, ErrNoAgent) {
		t.Errorf("no socket: %v", err)
	}
}

func TestRequestsThatCannotBeReadAreRefused(t *testing.T) {
	r := new(recorder)
	c := NewClient(serve(t, r, -1))
	for body, want := range map[string]int{
		`{"job": 3}`: http.StatusBadRequest, `{"jobs": "a"}`: http.StatusBadRequest, `{`: http.StatusBadRequest,
		`{"job": "` + strings.Repeat("a", maxBody) + `"}`: http.StatusBadRequest, `{}`: http.StatusOK,
	} {
		resp, err := c.http.Post("http://agent/v1/pause", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%.20s: %s, want %d", body, resp.Status, want)
		}
	}
	if len(r.asked) != 1 {
		t.Errorf("asked %q", r.asked)
	}
}
