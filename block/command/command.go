// Package command runs the system's own tools: LVM's, the device mapper's,
// those of ZFS. They are looked for where Debian has them, whatever the PATH
// says, and speak English, whatever the locale is.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// folders are where tools are, and what PATH they get.
const folders = "/usr/sbin:/usr/bin:/sbin:/bin"

// ErrMissing means that a tool is not installed.
var ErrMissing = errors.New("not installed")

// Find returns the path of a tool. One that is a path from the root is taken as
// it is.
func Find(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		if err := unix.Access(name, unix.X_OK); err != nil {
			return "", fmt.Errorf("%s: %w", name, ErrMissing)
		}
		return name, nil
	}
	for dir := range strings.SplitSeq(folders, ":") {
		path := dir + "/" + name
		if unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, ErrMissing)
}

// Run runs a tool to its end and returns what it printed. When it fails, the
// error says what it complained of.
//
// When ctx ends the tool is interrupted, and still waited for: it may be
// holding a device still, and must not be killed before it has let go. For the
// same reason it is in a process group of its own and prints to memory, not to
// a pipe: it outlives this process in peace.
func Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := Find(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = environment()
	out, err := memory(name)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	complaints, err := memory(name)
	if err != nil {
		return nil, err
	}
	defer complaints.Close()
	cmd.Stdout, cmd.Stderr = out, complaints
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%s: %w%s", strings.Join(append([]string{name}, args...), " "), err, words(complaints))
	}
	return io.ReadAll(io.NewSectionReader(out, 0, 1<<62))
}

// Read runs a tool that only looks, and calls read with what it prints, while it
// does. read goes on to the end of that; when it fails, or ctx ends, the tool is
// killed.
func Read(ctx context.Context, read func(io.Reader) error, name string, args ...string) error {
	path, err := Find(name)
	if err != nil {
		return err
	}
	running, kill := context.WithCancel(ctx)
	defer kill()
	cmd := exec.CommandContext(running, path, args...)
	cmd.Env = environment()
	complaints, err := memory(name)
	if err != nil {
		return err
	}
	defer complaints.Close()
	cmd.Stderr = complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err = read(out); err != nil {
		kill()
	}
	ended := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		err = ended
	}
	if err != nil {
		err = fmt.Errorf("%s: %w%s", strings.Join(append([]string{name}, args...), " "), err, words(complaints))
	}
	return err
}

// environment is the same for every tool but for what tells LVM and the device
// mapper how this machine is set up. mtools is to take any geometry, and names of
// ASCII, for which no tables need be there.
func environment() []string {
	env := []string{"PATH=" + folders, "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1", "MTOOLS_SKIP_CHECK=1", "DEFAULT_CODEPAGE=367"}
	for _, name := range []string{"DM_DISABLE_UDEV", "LVM_SYSTEM_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for what %s prints: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// words returns complaints as the end of an error, warnings left out.
func words(complaints *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(complaints, 0, 64<<10))
	if err != nil {
		return ""
	}
	var said []string
	for line := range bytes.Lines(b) {
		if l := strings.TrimSpace(string(line)); l != "" && !strings.HasPrefix(l, "WARNING:") {
			said = append(said, l)
		}
	}
	if len(said) == 0 {
		return ""
	}
	return ": " + strings.Join(said, "; ")
}
