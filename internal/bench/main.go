// Command bench compares platter with its peers on a Debian server's disk, on
// its first and on its second night, and writes the table of
// docs/benchmarks.md.
//
// It needs root, 40 GiB of space and the peers: borg, restic, qemu-img, lz4.
// Slow figures are figures: only what does not work makes it fail.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"platter/internal/bench/workload"
)

type options struct {
	platter, server, dir, write, only string
	rounds                            int
	disksOnly, huge, many             bool
}

func main() {
	var o options
	flag.StringVar(&o.platter, "platter", "bin/platter", "the program to measure")
	flag.StringVar(&o.server, "server", "bin/versitygw", "the server for S3")
	flag.StringVar(&o.dir, "dir", "", "folder for the disks, which are kept, and for the runs")
	flag.StringVar(&o.write, "write", "", "page whose figures are replaced (default: standard output only)")
	flag.StringVar(&o.only, "only", "", "tools to run, separated by commas (default all)")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds")
	flag.BoolVar(&o.disksOnly, "disks-only", false, "make the disks and stop")
	flag.BoolVar(&o.huge, "huge", true, "measure the huge, nearly empty disk too")
	flag.BoolVar(&o.many, "many", true, "measure a repository of ten million blocks too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format, args...) }
	disks, err := workload.Make(ctx, o.dir, func(s string) { say("%s\n", s) })
	if err != nil || o.disksOnly {
		return err
	}
	favour()
	platter, err := filepath.Abs(o.platter)
	if err != nil {
		return err
	}
	keyFile := filepath.Join(o.dir, "key")
	key := make([]byte, 32)
	rand.Read(key)
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return err
	}
	chosen := choose(tools(platter, keyFile), o.only)
	c, err := newCache(filepath.Join(o.dir, "ballast"))
	if err != nil {
		return err
	}
	defer os.Remove(c.ballast)
	server, err := filepath.Abs(o.server)
	if err != nil {
		return err
	}
	r := &runner{dir: o.dir, server: server, disks: disks, cache: c, samples: map[string]map[string][]sample{}, say: say}
	rep := &report{tools: chosen, samples: r.samples, rounds: o.rounds, when: time.Now(), facts: machineFacts(ctx, o.dir)}
	for _, t := range chosen {
		rep.facts = append(rep.facts, t.name+": "+tellVersion(ctx, t))
	}
	for n := range o.rounds {
		say("round %d of %d\n", n+1, o.rounds)
		for _, t := range chosen {
			if err := r.round(ctx, t); err != nil {
				return err
			}
		}
	}
	if o.huge && chosen[0].name == "platter" {
		if rep.huge, err = r.huge(ctx, chosen[0]); err != nil {
			return err
		}
	}
	if o.many && chosen[0].name == "platter" {
		if rep.many, err = r.many(ctx, platter); err != nil {
			return err
		}
	}
	fmt.Println(rep.markdown())
	if o.write == "" {
		return nil
	}
	return replaceSection(o.write, rep.markdown())
}

func choose(all []tool, only string) []tool {
	if only == "" {
		return all
	}
	names := strings.Split(only, ",")
	return slices.DeleteFunc(all, func(t tool) bool { return !slices.Contains(names, t.name) })
}
