// Package child makes the runs of jobs, each as a process of its own: the
// command of the job's kind, by the same program.
//
// So what opens disks is apart from what keeps the schedule: a run that dies,
// or takes too much memory, takes nothing else with it; it has the priority
// that its job says; and when the agent dies, it is told to stop.
package child

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"platter/internal/agent"
	"platter/internal/agent/config"
	"platter/internal/agent/hook"
)

// A Runner makes runs. It is an agent.Runner.
type Runner struct {
	Program string // path of platter
	// Environment is what runs get whose job names no repository.
	Environment []string
	// Absent is a path at which there is nothing, and never will be.
	Absent string
	Log    *slog.Logger
	// Grace is how long a run that was told to stop may take to do so, until
	// it is killed; 0 for two minutes.
	Grace time.Duration
}

const defaultGrace = 2 * time.Minute

// maxMessage bounds one line of a run's output, in bytes.
const maxMessage = 16 << 20

// Run makes one attempt, and its hooks.
func (r *Runner) Run(ctx context.Context, t agent.Task, progress func(agent.Progress)) agent.Result {
	log := r.Log.With("job", t.Job.Name, "run", t.Run)
	env, err := r.environment(t)
	if err != nil {
		return agent.Result{Exit: -1, Error: err.Error()}
	}
	vars := variables(t)
	if err := r.hook(ctx, log, "before", t.Job.Before, t.Job, vars); err != nil {
		// It may have begun what after would end.
		result := agent.Result{Exit: -1, Error: err.Error()}
		r.conclude(ctx, log, t, vars, &result)
		return result
	}
	result := r.command(ctx, log, t, append(env, vars...), progress)
	r.conclude(ctx, log, t, vars, &result)
	return result
}

// conclude runs the hooks for what comes after a run, also for one that was
// stopped.
func (r *Runner) conclude(ctx context.Context, log *slog.Logger, t agent.Task, vars []string, result *agent.Result) {
	interrupted := ctx.Err() != nil && !errors.Is(context.Cause(ctx), agent.ErrTooLong)
	ctx = context.WithoutCancel(ctx)
	if err := r.hook(ctx, log, "after", t.Job.After, t.Job, outcome(vars, result)); err != nil && result.Exit == 0 {
		result.Exit, result.Error = 1, err.Error()
	}
	if result.Exit != 0 && !interrupted {
		// That it fails is told by its log; the run has failed already.
		_ = r.hook(ctx, log, "on-failure", t.Job.OnFailure, t.Job, outcome(vars, result))
	}
}

func (r *Runner) hook(ctx context.Context, log *slog.Logger, which, path string, j *config.Job, vars []string) error {
	if path == "" {
		return nil
	}
	log = log.With("hook", which)
	err := hook.Run(ctx, path, j.HookTimeout, append(vars[:len(vars):len(vars)], "PLATTER_HOOK="+which), func(line string) {
		log.Info(line)
	})
	if err != nil {
		log.Error("hook failed", "error", err.Error())
	}
	return err
}

// command runs the program itself.
func (r *Runner) command(ctx context.Context, log *slog.Logger, t agent.Task, env []string, progress func(agent.Progress)) (result agent.Result) {
	cmd := exec.CommandContext(ctx, r.Program, Arguments(t)...)
	cmd.Env = env
	cmd.WaitDelay = r.Grace
	if r.Grace == 0 {
		cmd.WaitDelay = defaultGrace
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	// When this thread dies, and with it the agent, the run is told to stop.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	notice := ""
	out := &hook.Lines{Max: maxMessage, Each: func(line []byte) { read(line, &result, progress) }}
	errs := &hook.Lines{Max: maxMessage, Each: func(line []byte) {
		if text := strings.TrimPrefix(string(line), "platter: "); !failure(line, &result) && strings.TrimSpace(text) != "" {
			notice = text
			log.Info(text)
		}
	}}
	cmd.Stdout, cmd.Stderr = out, errs
	if err := run(cmd, t.Job.Priority); err != nil {
		return agent.Result{Exit: -1, Error: fmt.Sprintf("start %s: %v", r.Program, err)}
	}
	out.Flush()
	errs.Flush()
	if result.Exit = cmd.ProcessState.ExitCode(); result.Exit == 0 {
		result.Error = ""
	} else if result.Error == "" {
		result.Error = strings.Trim(cmd.ProcessState.String()+": "+notice, ": ")
	}
	return result
}

// run starts a command at a priority and waits for its end. The error is about
// the start alone.
func run(cmd *exec.Cmd, priority string) error {
	started := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// The process inherits the priority of the thread that starts it. The
		// thread is never unlocked: it ends with this goroutine.
		runtime.LockOSThread()
		err := errors.Join(lower(priority), cmd.Start())
		started <- err
		if err == nil {
			_ = cmd.Wait() // ProcessState says all
		}
	}()
	err := <-started
	<-ended
	return err
}

// Classes of ioprio_set(2).
const (
	ioClassShift      = 13
	ioClassBestEffort = 2
	ioClassIdle       = 3
	ioWhoProcess      = 1
)

// lower gives this thread a priority.
func lower(priority string) error {
	nice, class := 0, 0
	switch priority {
	case config.Idle:
		nice, class = 19, ioClassIdle<<ioClassShift
	case config.Low:
		nice, class = 10, ioClassBestEffort<<ioClassShift|7
	default:
		return nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioWhoProcess, 0, uintptr(class)); errno != 0 {
		return fmt.Errorf("set the I/O priority: %w", errno)
	}
	if now, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && 20-now > nice {
		return nil // it is lower already, and raising it is a right of its own
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		return fmt.Errorf("set the priority: %w", err)
	}
	return nil
}

// read takes a line of the run's output.
func read(line []byte, result *agent.Result, progress func(agent.Progress)) {
	var m struct {
		Type  string `json:"message_type"`
		Image struct {
			ID string `json:"id"`
		} `json:"image"`
		agent.Progress
	}
	if json.Unmarshal(line, &m) != nil {
		return
	}
	switch {
	case m.Type == "status":
		progress(m.Progress)
	case m.Type == "summary" && m.Image.ID != "":
		result.Images = append(result.Images, m.Image.ID)
	}
}

// failure takes a line that says why the run failed, and reports whether it is
// one.
func failure(line []byte, result *agent.Result) bool {
	var m struct {
		Type    string `json:"message_type"`
		Message string `json:"message"`
	}
	if json.Unmarshal(line, &m) != nil || m.Type != "exit_error" {
		return false
	}
	result.Error = m.Message
	return true
}

// Arguments are the command line of a task, without the program's name.
func Arguments(t agent.Task) []string {
	args := append([]string{t.Job.Kind, "--json"}, t.Job.Flags...)
	if t.Job.Kind == config.Prune && t.Config != "" {
		args = append(args, "--config="+t.Config)
	}
	args = append(append(args, "--"), t.Job.Devices...)
	return append(args, t.Job.Volumes...)
}

// variables are those that tell hooks, and the run itself, what is done.
func variables(t agent.Task) []string {
	vars := []string{
		"PLATTER_JOB=" + t.Job.Name, "PLATTER_RUN=" + t.Run, "PLATTER_KIND=" + t.Job.Kind, fmt.Sprintf("PLATTER_ATTEMPT=%d", t.Attempt),
		"PLATTER_DEVICES=" + strings.Join(t.Job.Devices, "\n"), "PLATTER_VOLUMES=" + strings.Join(t.Job.Volumes, "\n"),
	}
	if t.Repository != nil {
		vars = append(vars, "PLATTER_REPOSITORY="+t.Repository.Location)
	}
	if !t.Due.IsZero() {
		vars = append(vars, "PLATTER_DUE="+t.Due.UTC().Format(time.RFC3339))
	}
	return vars
}

// outcome adds how a run ended.
func outcome(vars []string, r *agent.Result) []string {
	return append(vars[:len(vars):len(vars)], fmt.Sprintf("PLATTER_EXIT=%d", r.Exit), "PLATTER_ERROR="+r.Error, "PLATTER_IMAGES="+strings.Join(r.Images, " "))
}

// Self returns the path of this program, also after another was installed in
// its place.
func Self() (string, error) {
	path, err := os.Executable()
	return strings.TrimSuffix(path, " (deleted)"), err
}
