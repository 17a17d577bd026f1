// Package qmp speaks with a running QEMU by its machine protocol: one command,
// one answer.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy means that QEMU does not answer: its socket takes one program at a
// time.
var ErrBusy = errors.New("no answer: another program may be connected to this socket, which takes one at a time; give QEMU a second -qmp socket")

// greetLimit is how long to wait for the first words.
const greetLimit = 5 * time.Second

// An Error is what QEMU answers to a command that it does not carry out.
type Error struct {
	Class string `json:"class"` // GenericError, DeviceNotFound, …
	Desc  string `json:"desc"`  // for people
}

func (e *Error) Error() string { return e.Desc }

// A Client is a connection to one QEMU. It is safe for concurrent use: commands
// are carried out one after the other.
type Client struct {
	path string
	mu   sync.Mutex
	conn *net.UnixConn
	in   *json.Decoder
	// broken: an answer was not waited for, or did not come.
	broken bool
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("QEMU's socket %s: %w", path, err)
	}
	c := &Client{path: path, conn: conn.(*net.UnixConn), in: json.NewDecoder(bufio.NewReader(conn))}
	if err := c.greet(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("QEMU's socket %s: %w", path, err), conn.Close())
	}
	return c, nil
}

func (c *Client) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, greetLimit, ErrBusy)
	defer cancel()
	stop := c.bound(ctx)
	defer stop()
	var hello struct{ QMP *struct{ Version any } }
	if err := c.in.Decode(&hello); err != nil {
		return orCause(ctx, err)
	}
	if hello.QMP == nil {
		return errors.New("what answers there is no QEMU machine protocol")
	}
	return c.Do(ctx, "qmp_capabilities", nil, nil)
}

// bound makes reads and writes fail when ctx ends.
func (c *Client) bound(ctx context.Context) (stop func()) {
	end := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { end() }
}

func orCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Do carries out a command and puts what it returns into result, unless that
// is nil. What QEMU refuses is an *Error. When ctx ends while QEMU has not
// answered, the connection is of no more use.
func (c *Client) Do(ctx context.Context, command string, arguments, result any) error {
	return c.DoWith(ctx, nil, command, arguments, result)
}

// DoWith is Do with an open file, which QEMU gets along with the command.
func (c *Client) DoWith(ctx context.Context, f *os.File, command string, arguments, result any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := c.bound(ctx)
	defer stop()
	err := c.do(f, command, arguments, result)
	if err != nil && c.broken {
		err = orCause(ctx, err)
	}
	if err != nil {
		return fmt.Errorf("QEMU: %s: %w", command, err)
	}
	return nil
}

func (c *Client) do(f *os.File, command string, arguments, result any) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	whole := false
	defer func() {
		if !whole {
			c.broken = true
			_ = c.conn.Close() // QEMU lets in another
		}
	}()
	if _, _, err := c.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return err
	}
	for {
		var answer struct {
			Return json.RawMessage
			Error  *Error
			Event  string
		}
		if err := c.in.Decode(&answer); err != nil {
			return err
		}
		whole = answer.Event == ""
		switch {
		case !whole:
		case answer.Error != nil:
			return answer.Error
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Return, result)
		}
	}
}

// Until asks again and again, a little later each time, until done says so.
func (c *Client) Until(ctx context.Context, done func() (bool, error)) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Again returns a connection to the same QEMU that can be relied on: this one,
// or another where an answer was not waited for.
func (c *Client) Again(ctx context.Context) (*Client, error) {
	c.mu.Lock()
	broken := c.broken
	c.mu.Unlock()
	if !broken {
		return c, nil
	}
	return Dial(ctx, c.path)
}

// Close ends the connection. QEMU goes on.
func (c *Client) Close() error {
	if err := c.conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
