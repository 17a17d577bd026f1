// Package systemd tells the service manager how its service is, by the
// protocol of sd_notify(3).
package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Manager is who started this process; nil is nobody, and hears nothing.
type Manager struct {
	socket   *net.UnixConn
	Watchdog time.Duration // it wants to hear Alive so often; 0 for never
}

// variables are for this process, and for none that it starts.
var variables = []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}

// Connect returns the manager that the environment names, or nil, and takes it
// out of the environment.
func Connect() (*Manager, error) {
	name, period, pid := os.Getenv(variables[0]), os.Getenv(variables[1]), os.Getenv(variables[2])
	for _, v := range variables {
		if err := os.Unsetenv(v); err != nil {
			return nil, err
		}
	}
	if name == "" {
		return nil, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("service manager: %w", err)
	}
	m := &Manager{socket: conn}
	usec, err := strconv.ParseInt(period, 10, 64)
	if err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		m.Watchdog = time.Duration(usec) * time.Microsecond
	}
	return m, nil
}

func (m *Manager) tell(words ...string) error {
	if m == nil {
		return nil
	}
	if _, err := m.socket.Write([]byte(strings.Join(words, "\n"))); err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	return nil
}

// Ready says that the service does its work, with a line for people.
func (m *Manager) Ready(status string) error { return m.tell("READY=1", "STATUS="+line(status)) }

// Status gives a line for people.
func (m *Manager) Status(status string) error { return m.tell("STATUS=" + line(status)) }

// Alive keeps the manager from ending the process.
func (m *Manager) Alive() error { return m.tell("WATCHDOG=1") }

// Reloading says that the config is read again; Ready follows.
func (m *Manager) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	return m.tell("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping says that the service is about to end.
func (m *Manager) Stopping() error { return m.tell("STOPPING=1") }

func line(s string) string { return strings.ReplaceAll(s, "\n", "; ") }
