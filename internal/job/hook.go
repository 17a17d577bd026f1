package job

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"platter/image"
)

// Hooks are commands for the shell that are run around the moment of which an
// image is, "" for none.
type Hooks struct {
	// Before is run before that moment: it makes what is on the device whole,
	// as by having a database write back what it has in memory. If it fails
	// there is no image, unless MayFail.
	Before  string
	MayFail bool
	// After is run as soon as that moment is over, whatever came of it.
	After string
	// Limit is how long each may take, 0 for DefaultHookLimit.
	Limit time.Duration
}

// DefaultHookLimit is how long a hook may take.
const DefaultHookLimit = time.Minute

// hookGrace is how long a hook that took too long has to end by itself.
const hookGrace = 5 * time.Second

// errHook means that what is to be run before an image failed.
var errHook = errors.New("the command that is to be run before it failed")

// before gets the device ready.
func (r *run) before(ctx context.Context, list ...*subject) error {
	h := r.opts.Hooks
	if h.Before == "" || r.opts.DryRun {
		return nil
	}
	err := r.hook(ctx, "before", h.Before, "", list)
	if err != nil && h.MayFail && ctx.Err() == nil {
		r.note(list, fmt.Sprintf("imaged all the same: the command before it: %v", err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errHook, err)
	}
	return nil
}

// after lets the device go on, even if the run is being stopped. What fails
// here harms no image.
func (r *run) after(ctx context.Context, outcome error, list ...*subject) {
	h := r.opts.Hooks
	if h.After == "" || r.opts.DryRun {
		return
	}
	word := "taken"
	if outcome != nil {
		word = "failed"
	}
	if err := r.hook(context.WithoutCancel(ctx), "after", h.After, word, list); err != nil {
		r.note(list, fmt.Sprintf("the command after it: %v", err))
	}
}

// note tells something now, and in the images of the devices.
func (r *run) note(list []*subject, text string) {
	for _, s := range list {
		s.notes = append(s.notes, text)
		r.env.warn("%s: %s", s.path, text)
	}
}

// hook runs one command. What it prints is part of the error if it fails.
func (r *run) hook(ctx context.Context, which, command, outcome string, list []*subject) error {
	limit := r.opts.Hooks.Limit
	if limit == 0 {
		limit = DefaultHookLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %v", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	// A group of its own, so that all of it ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = hookGrace
	cmd.Env = hookEnvironment(which, outcome, hex.EncodeToString(r.id[:]), list)
	// To memory, not to a pipe: what it leaves running is not waited for.
	said, err := unix.MemfdCreate("hook", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%q: memory for what it prints: %w", command, err)
	}
	out := os.NewFile(uintptr(said), "hook")
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err = cmd.Run(); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		if cmd.Process != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of the group
		}
	}
	return fmt.Errorf("%q: %w%s", command, err, lastWords(out))
}

// lastWords returns the end of what a command printed, as the end of an error.
func lastWords(f *os.File) string {
	const most = 2 << 10
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, max(0, size-most), most))
	text := strings.Join(strings.Fields(string(b)), " ")
	if text != "" {
		text = ": " + text
	}
	return text
}

// hookEnvironment is this process's, without secrets, and what the hook is run
// for: lists have one name a line.
func hookEnvironment(which, outcome, run string, list []*subject) (env []string) {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		secret := strings.HasPrefix(name, "PLATTER_") &&
			(strings.Contains(name, "PASSWORD") || strings.Contains(name, "KEY") || strings.Contains(name, "IDENTITY"))
		if !secret && !strings.HasPrefix(name, "AWS_") {
			env = append(env, v)
		}
	}
	var devices, volumes []string
	for _, s := range list {
		devices, volumes = append(devices, s.path), append(volumes, s.volume)
	}
	return append(env, "PLATTER_HOOK="+which, "PLATTER_OUTCOME="+outcome, "PLATTER_RUN="+run,
		"PLATTER_DEVICES="+strings.Join(devices, "\n"), "PLATTER_VOLUMES="+strings.Join(volumes, "\n"))
}

// warn adds what was noted of a device to its image.
func (s *subject) warn(m *image.Manifest) {
	m.Warnings = append(m.Warnings, s.notes...)
	s.notes = nil
}
