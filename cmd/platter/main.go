// Command platter images disks and gives them back.
//
// It turns arguments into the options of one job, runs it, and prints its
// report. What a command does is in platter/internal/job; what it is called
// and which flags it has is in the table of this package.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"platter/block/freeze"
)

func main() {
	if freeze.Watch() {
		return
	}
	os.Exit(run(os.Args[1:], newTerminal()))
}

// run runs one command line and returns the exit status.
func run(args []string, t *terminal) int {
	ctx, stop := interruptible(t)
	defer stop()
	c := newCall(t, args)
	err := c.execute(ctx, args)
	t.clear()
	if err == nil {
		err = t.broken
	}
	return complain(ctx, t, err)
}

// interruptible returns a context that the first signal to stop ends. The
// second ends the program at once: a crash is something the repository bears.
func interruptible(t *terminal) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	// Under nohup the hang-up is ignored, and stays so.
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-done:
			return
		}
		t.interrupt()
		select {
		case <-signals:
			os.Exit(exitInterrupted)
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}
