package socket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sys/unix"

	"platter/internal/agent"
)

// ErrNoAgent means that no agent answers at a path.
var ErrNoAgent = errors.New("no agent answers")

// A Client asks the agent at a socket. It is an Agent itself.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client for the socket at path. Nothing is asked yet.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: requestTime}}
}

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 64 << 20

// Status asks how all is.
func (c *Client) Status(ctx context.Context) (s agent.Status, err error) {
	return s, c.ask(ctx, http.MethodGet, "status", nil, &s)
}

// RunNow asks for a run of a job, now.
func (c *Client) RunNow(ctx context.Context, job string) error {
	return c.ask(ctx, http.MethodPost, "jobs/"+url.PathEscape(job)+"/run", nil, nil)
}

// StopRun asks to stop the run of a job.
func (c *Client) StopRun(ctx context.Context, job string) error {
	return c.ask(ctx, http.MethodPost, "jobs/"+url.PathEscape(job)+"/stop", nil, nil)
}

// Pause asks for a pause of a job, or of all.
func (c *Client) Pause(ctx context.Context, job string, until time.Time, stop bool) error {
	return c.ask(ctx, http.MethodPost, "pause", request{Job: job, Until: until, Stop: stop}, nil)
}

// Resume asks to end it.
func (c *Client) Resume(ctx context.Context, job string) error {
	return c.ask(ctx, http.MethodPost, "resume", request{Job: job}, nil)
}

// Reload asks to read the config again.
func (c *Client) Reload(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "reload", nil, nil)
}

func (c *Client) ask(ctx context.Context, method, what string, body, to any) error {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent/v1/"+what, send)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w at %s", ErrNoAgent, c.path)
	case err != nil:
		return fmt.Errorf("ask the agent at %s: %w", c.path, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode != http.StatusOK {
		var f failure
		if err := answer.Decode(&f); err != nil {
			return fmt.Errorf("ask the agent at %s: it answered %s", c.path, resp.Status)
		}
		if resp.StatusCode == http.StatusNotFound {
			return fmt.Errorf("%w%s", agent.ErrNoJob, f.Error[min(len(f.Error), len(agent.ErrNoJob.Error())):])
		}
		return errors.New(f.Error)
	}
	if to == nil {
		return nil
	}
	if err := answer.Decode(to); err != nil {
		return fmt.Errorf("ask the agent at %s: %w", c.path, err)
	}
	return nil
}
