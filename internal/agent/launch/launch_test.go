package launch

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"platter/internal/agent"
	"platter/internal/agent/config"
)

// A made runner does as a function says.
type made func(ctx context.Context, t agent.Task, progress func(agent.Progress)) agent.Result

func (m made) Run(ctx context.Context, t agent.Task, progress func(agent.Progress)) agent.Result {
	return m(ctx, t, progress)
}

// serve answers one connection with a runner, and returns where, and what Serve
// returned.
func serve(t *testing.T, r agent.Runner) (*Client, <-chan error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		done <- Serve(t.Context(), conn, func(o Order) (agent.Task, error) {
			if o.Job != "nightly" {
				return agent.Task{}, errors.New("there is no job " + o.Job)
			}
			return agent.Task{Job: &config.Job{Name: o.Job}, Run: o.Run, Due: o.Due, Attempt: o.Attempt}, nil
		}, r)
	}()
	return &Client{path}, done
}

func task(job string) agent.Task {
	return agent.Task{Job: &config.Job{Name: job}, Run: "0123456789abcdef", Due: time.Unix(1000, 0).UTC(), Attempt: 2}
}

func TestARunBehindASocketIsAsOneOfTheAgentsOwn(t *testing.T) {
	want := agent.Result{Exit: 3, Error: "one range is missing", Images: []string{"aa", "bb"}}
	moments := []agent.Progress{{Phase: "read", Done: 5, Total: 10}, {Phase: "write", Done: 10, Total: 10}}
	var got agent.Task
	c, done := serve(t, made(func(_ context.Context, t agent.Task, progress func(agent.Progress)) agent.Result {
		got = t
		for _, p := range moments {
			progress(p)
		}
		return want
	}))
	var seen []agent.Progress
	r := c.Run(t.Context(), task("nightly"), func(p agent.Progress) { seen = append(seen, p) })
	if err := <-done; err != nil || !cmp.Equal(r, want) || !slices.Equal(seen, moments) {
		t.Errorf("got %+v, %v, %v", r, seen, err)
	}
	if got.Run != "0123456789abcdef" || got.Attempt != 2 || !got.Due.Equal(time.Unix(1000, 0)) {
		t.Errorf("got %+v", got)
	}
}

func TestARunIsStoppedByAWordAndByTheEndOfTheAgent(t *testing.T) {
	begun := make(chan struct{}, 1)
	waits := made(func(ctx context.Context, _ agent.Task, _ func(agent.Progress)) agent.Result {
		begun <- struct{}{}
		<-ctx.Done()
		return agent.Result{Exit: 130, Error: context.Cause(ctx).Error()}
	})
	for _, cause := range []error{errors.New("its window closed"), agent.ErrTooLong} {
		c, done := serve(t, waits)
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { <-begun; cancel(cause) }()
		if r := c.Run(ctx, task("nightly"), nil); r.Exit != 130 || r.Error != cause.Error() {
			t.Errorf("got %+v", r)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	c, done := serve(t, waits)
	conn, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(`{"job":"nightly","run":"0123456789abcdef","attempt":1}`)); err != nil {
		t.Fatal(err)
	}
	<-begun
	conn.Close() // the agent was killed
	if err := <-done; err == nil {
		t.Error("a run that nobody hears of ended well")
	}
}

func TestARunThatCannotBeMadeSaysWhy(t *testing.T) {
	never := made(func(context.Context, agent.Task, func(agent.Progress)) agent.Result {
		t.Error("it ran")
		return agent.Result{}
	})
	c, done := serve(t, never)
	if r := c.Run(t.Context(), task("other"), nil); r.Exit != -1 || r.Error != "there is no job other" {
		t.Errorf("got %+v", r)
	}
	if err := <-done; err == nil {
		t.Error("want an error")
	}
	for _, bad := range []string{"../../../x", "", "0123456789ABCDEF", "0123456789abcdef\nX=1"} {
		c, done = serve(t, never)
		wrong := task("nightly")
		wrong.Run = bad
		if r := c.Run(t.Context(), wrong, nil); r.Exit != -1 || !strings.Contains(r.Error, "without a word") {
			t.Errorf("got %+v", r)
		}
		if err := <-done; err == nil || !strings.Contains(err.Error(), "hex digits") {
			t.Errorf("got %v", err)
		}
	}
	c = &Client{filepath.Join(t.TempDir(), "nobody")}
	if r := c.Run(t.Context(), task("nightly"), nil); r.Exit != -1 || !strings.Contains(r.Error, "platter-run.socket") {
		t.Errorf("got %+v", r)
	}
}
