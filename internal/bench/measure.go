package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A command is one program to run, its input and output being files.
type command struct {
	args          []string
	env           []string // beside the environment
	dir           string
	stdin, stdout string    // files; empty for none
	link          [2]string // a hard link to make first: file, name
}

// line shows the command as typed in a shell.
func (c command) line() string {
	s := strings.Join(append([]string{filepath.Base(c.args[0])}, c.args[1:]...), " ")
	if c.stdin != "" {
		s += " < " + c.stdin
	}
	if c.stdout != "" {
		s += " > " + c.stdout
	}
	return s
}

// A sample is what one run of a command cost. Sizes are bytes.
type sample struct {
	Wall    time.Duration
	CPU     time.Duration // user and system
	Peak    int64         // largest resident set of the process
	Read    int64         // by system calls, cached or not
	Device  int64         // read from the disk, as platter reports it; else 0
	Stored  int64         // in the repository afterwards
	Foreign time.Duration // CPU that others used meanwhile, the kernel's write-back among them
}

// measure runs a command by itself and waits for it.
func measure(ctx context.Context, c command) (s sample, out string, err error) {
	if c.link[0] != "" {
		os.Remove(c.link[1])
		if err := os.Link(c.link[0], c.link[1]); err != nil {
			return s, "", err
		}
	}
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Env, cmd.Dir = append(os.Environ(), c.env...), c.dir
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if c.stdin != "" {
		f, err := os.Open(c.stdin)
		if err != nil {
			return s, "", err
		}
		defer f.Close()
		cmd.Stdin = f
	}
	if c.stdout != "" {
		f, err := os.Create(c.stdout)
		if err != nil {
			return s, "", err
		}
		defer f.Close()
		cmd.Stdout = f
	}
	busy := busyCPU()
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return s, "", err
	}
	// The process is looked at once more after its end, before it is reaped.
	if err := waitEnd(cmd.Process.Pid); err == nil {
		s.Wall = time.Since(start)
		s.Read = bytesRead(cmd.Process.Pid)
	}
	err = cmd.Wait()
	if s.Wall == 0 {
		s.Wall = time.Since(start)
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	s.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	s.Peak = usage.Maxrss << 10
	s.Foreign = max(0, busyCPU()-busy-s.CPU)
	if err != nil {
		return s, "", fmt.Errorf("%s: %w: %s", c.line(), err, tail(said.String()))
	}
	s.Device = deviceRead(said.String())
	return s, said.String(), nil
}

// deviceRead finds in platter's report how much it read of the disk.
func deviceRead(out string) int64 {
	for line := range strings.Lines(out) {
		var r struct {
			Image struct {
				Stats struct {
					Read int64 `json:"read"`
				} `json:"stats"`
			} `json:"image"`
		}
		if json.Unmarshal([]byte(line), &r) == nil && r.Image.Stats.Read > 0 {
			return r.Image.Stats.Read
		}
	}
	return 0
}

// waitEnd waits until a child has ended and leaves it to be reaped.
func waitEnd(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// bytesRead returns what a process has read by system calls; 0 if the kernel
// does not count.
func bytesRead(pid int) (n int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err == nil {
		fmt.Sscanf(string(b), "rchar: %d", &n)
	}
	return n
}

// busyCPU returns the time that all processors have worked since the start.
func busyCPU() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	var user, nice, system, idle, iowait, irq, softirq int64 // hundredths of a second
	fmt.Sscanf(string(b), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq)
	return time.Duration(user+nice+system+irq+softirq) * 10 * time.Millisecond
}

func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-6):], "\n")
}

// A cache prepares the page cache, so that each run meets the same one.
//
// Some virtual machines hand freed memory back to their host, and getting a
// page again costs more than filling it: then whoever runs after a large
// delete pays seconds for each GiB. A free memory that is filled with clean,
// useless pages costs everybody the same: taking one of those is cheap.
type cache struct {
	ballast string // a sparse file, larger than memory
	offset  int64
}

const (
	ballastSize = 1 << 40
	freeKept    = 900 * mib // what the kernel is left, so that it need not reclaim at once
)

func newCache(path string) (*cache, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &cache{ballast: path}, errors.Join(f.Truncate(ballastSize), f.Close())
}

// prepare fills free memory, reads the files that the run will read, which
// pushes out older ballast, and waits until nothing is left to be written.
func (c *cache) prepare(files ...string) error {
	if err := c.fill(); err != nil {
		return err
	}
	for _, path := range files {
		if err := readAll(path); err != nil {
			return err
		}
	}
	unix.Sync()
	return nil
}

func (c *cache) fill() error {
	f, err := os.Open(c.ballast)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, mib)
	// A kernel that gives unused pages back as fast as they come is not waited
	// for: what is free now is filled once.
	for left := freeMemory() - freeKept; left > 0 && freeMemory() > freeKept; left -= 64 * mib {
		for range 64 {
			if _, err := f.ReadAt(b, c.offset); err != nil {
				return err
			}
			c.offset = (c.offset + mib) % ballastSize
		}
	}
	return nil
}

func freeMemory() (n int64) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "MemFree:")
	fmt.Sscan(rest, &n)
	return n << 10
}

func readAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, mib))
	return err
}

// favour gives this session's processes ten times the share of any other's, if
// it may: measured runs should not wait for other work.
func favour() { os.WriteFile("/proc/self/autogroup", []byte("-10"), 0) }
