// Package launch has another process make the runs of jobs, one with rights
// that the agent does without: to open disks, and what hooks do.
//
// Behind a socket the service manager starts such a process for each connection
// (Accept=yes, systemd.socket(5)). The agent says which job it is about; what
// that job does is read from the config over there. So who takes over the agent
// can have jobs run that root has written down, and nothing else.
//
// Each side writes objects of JSON: the agent an order, then perhaps a stop;
// the other any number of moments, then a result. When a connection ends before
// that, the run is stopped too.
package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"time"

	"platter/internal/agent"
)

// An Order asks for one attempt at a run.
type Order struct {
	Job     string    `json:"job"`
	Run     string    `json:"run"` // 16 hex digits
	Due     time.Time `json:"due,omitzero"`
	Attempt int       `json:"attempt"` // from 1
}

// A stop ends a run.
type stop struct {
	Why     string `json:"stop"`
	TooLong bool   `json:"too_long,omitempty"` // it has failed by that
}

// A report is what is heard of a run.
type report struct {
	Progress *agent.Progress `json:"progress,omitempty"`
	Result   *result         `json:"result,omitempty"`
}

type result struct {
	Exit   int      `json:"exit"`
	Error  string   `json:"error,omitempty"`
	Images []string `json:"images,omitempty"`
}

// A Client is an agent.Runner that has runs made behind a socket.
type Client struct {
	Socket string
}

// Run makes one attempt, and returns when it is over.
func (c *Client) Run(ctx context.Context, t agent.Task, progress func(agent.Progress)) agent.Result {
	// Not by ctx: what has begun is stopped by a word, and says how it ended.
	conn, err := net.Dial("unix", c.Socket)
	if err != nil {
		return failed("nobody starts runs at %s: systemctl start platter-run.socket: %v", c.Socket, err)
	}
	defer conn.Close()
	out := json.NewEncoder(conn)
	if err := out.Encode(Order{t.Job.Name, t.Run, t.Due, t.Attempt}); err != nil {
		return failed("ask for a run at %s: %v", c.Socket, err)
	}
	forget := context.AfterFunc(ctx, func() {
		cause := context.Cause(ctx)
		// If nobody hears it, there is nobody who runs.
		_ = out.Encode(stop{cause.Error(), errors.Is(cause, agent.ErrTooLong)})
	})
	defer forget()
	in := json.NewDecoder(conn)
	for {
		var r report
		if err := in.Decode(&r); err != nil {
			return failed("the process of the run ended without a word (journalctl -u 'platter-run@*' may say why): %v", err)
		}
		if r.Progress != nil {
			progress(*r.Progress)
		}
		if r.Result != nil {
			return agent.Result(*r.Result)
		}
	}
}

func failed(format string, args ...any) agent.Result {
	return agent.Result{Exit: -1, Error: fmt.Sprintf(format, args...)}
}

// orderTime is how long an agent that has connected may take to say what for.
const orderTime = 30 * time.Second

var runID = regexp.MustCompile(`^[0-9a-f]{16}$`)

// Serve makes the one run that is asked for on conn, which it closes. find
// tells what an order is about. The error says why there was no run, or nobody
// to hear how it went.
func Serve(ctx context.Context, conn net.Conn, find func(Order) (agent.Task, error), runner agent.Runner) error {
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	heard := make(chan struct{})
	close(heard)
	defer func() { conn.Close(); <-heard }()
	var o Order
	err := errors.Join(conn.SetReadDeadline(time.Now().Add(orderTime)), in.Decode(&o), conn.SetReadDeadline(time.Time{}))
	if err != nil {
		return fmt.Errorf("read which run is wanted: %w", err)
	}
	if !runID.MatchString(o.Run) || o.Attempt < 1 {
		return fmt.Errorf("run %q, attempt %d: want 16 hex digits and at least 1", o.Run, o.Attempt)
	}
	t, err := find(o)
	if err != nil {
		return errors.Join(err, out.Encode(report{Result: &result{Exit: -1, Error: err.Error()}}))
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	heard = make(chan struct{})
	go func() {
		defer close(heard)
		end(listen(in))
	}()
	var lost error
	r := result(runner.Run(ctx, t, func(p agent.Progress) {
		if err := out.Encode(report{Progress: &p}); err != nil {
			lost = err
			end(fmt.Errorf("the agent is gone: %w", err))
		}
	}))
	return errors.Join(lost, out.Encode(report{Result: &r}))
}

// listen waits for a word, or for the end of the connection, and returns why
// the run is to be stopped.
func listen(in *json.Decoder) error {
	var s stop
	switch err := in.Decode(&s); {
	case errors.Is(err, io.EOF):
		return errors.New("the agent is gone")
	case err != nil:
		return fmt.Errorf("the agent is gone: %w", err)
	case s.TooLong:
		return agent.ErrTooLong
	}
	return errors.New(s.Why)
}
