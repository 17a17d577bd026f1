package workload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// withLoop calls f with a loop device over part of a file, and detaches it.
func withLoop(ctx context.Context, file string, offset, length int64, f func(dev string) error) error {
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show",
		"--offset", fmt.Sprint(offset), "--sizelimit", fmt.Sprint(length), file).Output()
	if err != nil {
		return fmt.Errorf("attach a loop device to %s: %w", file, err)
	}
	dev := strings.TrimSpace(string(out))
	// Detaching does not heed ctx: an interrupted run leaves nothing behind.
	return errors.Join(f(dev), run(exec.Command("losetup", "--detach", dev)))
}

// withMount calls f with a directory where dev is mounted, and unmounts it.
// Discards are off, so that deleted files stay on the disk as stale data.
func withMount(ctx context.Context, dev string, f func(root string) error) error {
	dir, err := os.MkdirTemp("", "platter-workload-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := command(ctx, "mount", "-o", "nodiscard", dev, dir); err != nil {
		return err
	}
	return errors.Join(f(dir), run(exec.Command("umount", dir)))
}

func command(ctx context.Context, name string, args ...string) error {
	return run(exec.CommandContext(ctx, name, args...))
}

// run runs cmd quietly; when it fails its last words are in the error.
func run(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w: %s", cmd.Args[0], err, lastLines(out.String(), 5))
	}
	return nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// sparseFile makes a file of holes.
func sparseFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}
