// Package hook runs an operator's programs before and after runs.
//
// A hook is run only if nobody but root, or the user of this process, could
// have changed it. It has a clean environment, no terminal and a time limit.
package hook

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"platter/internal/agent/owned"
)

const (
	// maxLines and maxLine bound what is kept of a hook's output.
	maxLines = 1000
	maxLine  = 4096 // bytes
	// patience is how long a hook that was told to end may take to do so.
	patience = 5 * time.Second
)

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Run runs the program at a path with variables beside PATH, and calls line for
// each line that it prints, from one goroutine. An error says that it could not
// be run, took longer than limit, or failed. What it started and left running
// is ended with it.
func Run(ctx context.Context, program string, limit time.Duration, env []string, line func(string)) error {
	return run(ctx, program, limit, patience, env, line)
}

func run(ctx context.Context, program string, limit, patience time.Duration, env []string, line func(string)) error {
	real, err := owned.Check(program)
	if err != nil {
		return fmt.Errorf("hook %s is not run: %w", program, err)
	}
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(timed, real)
	cmd.Env = append([]string{path, "LANG=C.UTF-8", "HOME=/"}, env...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = patience
	count := 0
	out := &Lines{Max: maxLine, Each: func(text []byte) {
		if count++; count <= maxLines {
			line(string(text))
		}
	}}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("hook %s: %w", program, err)
	}
	err = cmd.Wait()
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	out.Flush()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("hook %s was stopped: %w", program, context.Cause(ctx))
	case timed.Err() != nil:
		return fmt.Errorf("hook %s took longer than %s and was stopped", program, limit)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return fmt.Errorf("hook %s: %w", program, err)
	}
	return nil
}
