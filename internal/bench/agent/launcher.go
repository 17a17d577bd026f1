package main

import (
	"net"
	"os/exec"
	"sync"
	"time"
)

// A launcher stands where systemd does: for each connection to its socket it starts
// platter job attempt, with the connection for standard input.
type launcher struct {
	socket *net.UnixListener
	runs   sync.WaitGroup

	mu  sync.Mutex
	cpu time.Duration // of all that ended
}

func launch(path, program string, environ []string) (*launcher, error) {
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, err
	}
	l := &launcher{socket: socket}
	go l.serve(program, environ)
	return l, nil
}

func (l *launcher) serve(program string, environ []string) {
	for {
		c, err := l.socket.AcceptUnix()
		if err != nil {
			return // closed
		}
		in, err := c.File()
		c.Close()
		if err != nil {
			continue
		}
		cmd := exec.Command(program, "job", "attempt")
		cmd.Stdin, cmd.Env = in, environ
		if err := cmd.Start(); err == nil {
			l.runs.Add(1)
			go l.reap(cmd)
		}
		in.Close()
	}
}

func (l *launcher) reap(cmd *exec.Cmd) {
	defer l.runs.Done()
	_ = cmd.Wait() // the agent knows how it ended
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// used returns the CPU that ended runs took, their own children's with it.
func (l *launcher) used() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cpu
}

func (l *launcher) close() {
	l.socket.Close()
	l.runs.Wait()
}
