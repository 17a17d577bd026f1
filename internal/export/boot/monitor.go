package boot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// A monitor speaks QMP, QEMU's machine protocol (docs/interop/qmp-spec), one
// command at a time. It belongs to one goroutine.
type monitor struct {
	conn net.Conn
	r    *json.Decoder
}

// patience is how long QEMU may take to answer.
const patience = 30 * time.Second

// errEnded means that QEMU is gone before it spoke.
var errEnded = errors.New("qemu ended at once")

// connect waits for the socket, which QEMU makes when it starts.
func connect(ctx context.Context, path string, ended <-chan struct{}) (*monitor, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			m := &monitor{conn, json.NewDecoder(bufio.NewReader(conn))}
			if err = m.begin(ctx); err != nil {
				conn.Close()
			}
			return m, err
		}
		select {
		case <-ended:
			return nil, errEnded
		case <-ctx.Done():
			return nil, fmt.Errorf("no answer from qemu: %w", err)
		case <-tick.C:
		}
	}
}

// begin reads the greeting and leaves the mode for negotiating.
func (m *monitor) begin(ctx context.Context) error {
	if err := m.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var greeting struct{ QMP json.RawMessage }
	if err := m.r.Decode(&greeting); err != nil || greeting.QMP == nil {
		return fmt.Errorf("greeting of qemu: %w", errors.Join(err, errors.New("it does not speak QMP")))
	}
	return m.do(ctx, "qmp_capabilities", nil, nil)
}

// do runs a command and decodes what it returns into result, unless that is
// nil. Events in between are passed over.
func (m *monitor) do(ctx context.Context, command string, arguments map[string]any, result any) error {
	deadline := time.Now().Add(patience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := m.conn.SetDeadline(deadline); err != nil {
		return err
	}
	request := struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}{command, arguments}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		return fmt.Errorf("qemu: %s: %w", command, err)
	}
	for {
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := m.r.Decode(&answer); err != nil {
			return fmt.Errorf("qemu: %s: %w", command, err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("qemu: %s: %s", command, answer.Error.Desc)
		case answer.Return != nil && result != nil:
			return json.Unmarshal(answer.Return, result)
		case answer.Return != nil:
			return nil
		}
	}
}

func (m *monitor) close() { m.conn.Close() }
