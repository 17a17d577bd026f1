package freeze

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// watchCommand is the first argument of the watching process.
const watchCommand = "freeze-watchdog"

// What is said to the watching process, and what it answers to each.
const (
	sayArm    = 'F'
	sayDisarm = 'T'
	ready     = 'R'
	inTime    = 'K'
	tooLate   = 'X'
)

// A guard is the process that watches this one.
type guard struct {
	cmd  *exec.Cmd
	to   *os.File // its end is the end of this process
	from *os.File
	word [1]byte
}

func newGuard(all []*filesystem, limit time.Duration) (g *guard, err error) {
	in, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	from, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close(), to.Close())
	}
	g = &guard{to: to, from: from}
	g.cmd = exec.Command("/proc/self/exe", watchCommand, strconv.FormatInt(limit.Milliseconds(), 10))
	g.cmd.Args[0] = "platter"
	g.cmd.Stdin, g.cmd.Stdout = in, out
	// What stops this process from the terminal must not stop that one.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for _, fs := range all {
		g.cmd.ExtraFiles = append(g.cmd.ExtraFiles, fs.dir)
	}
	err = errors.Join(g.cmd.Start(), in.Close(), out.Close())
	if err == nil {
		err = g.hear(ready)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the process that thaws: %w", err), g.close())
	}
	return g, nil
}

func (g *guard) say(word byte) error {
	g.word[0] = word
	_, err := g.to.Write(g.word[:])
	return err
}

func (g *guard) hear(want byte) error {
	if _, err := io.ReadFull(g.from, g.word[:]); err != nil {
		return err
	}
	if g.word[0] != want {
		return fmt.Errorf("it says %q, not %q", g.word[0], want)
	}
	return nil
}

// arm starts the time of a freeze.
func (g *guard) arm() error {
	err := g.say(sayArm)
	if err == nil {
		err = g.hear(ready)
	}
	if err != nil {
		return fmt.Errorf("the process that thaws is gone: %w", err)
	}
	return nil
}

// disarm says that the freeze is over, and returns whether its time was.
func (g *guard) disarm() (over bool, err error) {
	if err = g.say(sayDisarm); err == nil {
		_, err = io.ReadFull(g.from, g.word[:])
	}
	if err != nil {
		return true, fmt.Errorf("the process that thaws is gone: %w", err)
	}
	return g.word[0] != inTime, nil
}

func (g *guard) close() error {
	err := errors.Join(g.to.Close(), g.from.Close())
	if g.cmd.Process != nil {
		err = errors.Join(err, g.cmd.Wait())
	}
	return err
}
