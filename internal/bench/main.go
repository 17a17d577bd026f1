// Command bench compares platter with its peers on a Debian server's disk and
// writes the table of docs/benchmarks.md.
//
// It needs root, 40 GiB of space and the peers: borg, restic, qemu-img, lz4.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"platter/internal/bench/workload"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	_, err := workload.Make(ctx, os.Args[1], func(s string) { fmt.Println(s) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
