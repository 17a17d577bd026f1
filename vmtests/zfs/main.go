// Command zfs builds ZFS for the kernel of guests and keeps it among what tests
// download: make vm-zfs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"platter/vmtests/debian"
	"platter/vmtests/guest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := build(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "vm-zfs:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("run as root: it builds in a Debian system of its own, in a folder")
	}
	cache, err := debian.CacheDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	return guest.BuildZFS(ctx, cache, os.Stderr)
}
