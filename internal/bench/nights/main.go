// Command nights measures what a tracker saves: nights of a mounted disk by the
// tracer against the same nights compared in full, on a disk and on one ten times
// larger; going back by it against restoring all, and against what else writes a
// disk; and what the tracer costs those who write meanwhile.
//
// It needs root, and eleven times SIZE and some more of space. Slow figures are
// figures: only what does not work makes it fail.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

type options struct {
	platter, dir string
	size         int64
	nights       int
	rounds       int
	pairs        int
	turn         time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.platter, "platter", "bin/platter", "the program to measure")
	flag.StringVar(&o.dir, "dir", "", "folder for the disks, which are removed afterwards")
	gib := flag.Int64("size", 4, "GiB of the smaller disk")
	flag.IntVar(&o.nights, "nights", 5, "nights of each disk")
	flag.IntVar(&o.rounds, "rounds", 5, "restores of each kind")
	flag.IntVar(&o.pairs, "pairs", 200, "turns of writing with the tracer and without")
	flag.DurationVar(&o.turn, "turn", 400*time.Millisecond, "length of a turn")
	flag.Parse()
	o.size = *gib << 30
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "nights:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	program, err := filepath.Abs(o.platter)
	if err != nil {
		return err
	}
	p := &platter{program: program}
	if p.dir, err = os.MkdirTemp(o.dir, "nights-"); err != nil {
		return err
	}
	defer os.RemoveAll(p.dir)
	if _, err := p.run(ctx, "tracker", "status"); err == nil {
		return errors.New("a tracer is running: platter tracker stop")
	}
	if o.nights > 0 {
		changed := o.size / 50
		small, err := nights(ctx, p, "small", o.size, changed, o.nights)
		if err != nil {
			return err
		}
		large, err := nights(ctx, p, "large", 10*o.size, changed, o.nights)
		if err != nil {
			return err
		}
		report(small, large)
	}
	if o.rounds > 0 {
		if err := restores(ctx, p, o.size, o.size/50, o.rounds); err != nil {
			return err
		}
	}
	if o.pairs > 0 {
		return overhead(ctx, p, o.pairs, o.turn)
	}
	return nil
}
