package main

import (
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"platter/cbt/trace"
)

// haveTrace reports whether programs can be put into the kernel here.
func haveTrace(t *testing.T) bool {
	return canTrace(t) == nil
}

var canTrace = func() func(t *testing.T) error {
	var once sync.Once
	var err error
	return func(t *testing.T) error {
		once.Do(func() {
			above := t.TempDir()
			if err = unix.Mount("bpf", above, "bpf", 0, "mode=0700"); err != nil {
				return
			}
			defer unix.Unmount(above, unix.MNT_DETACH)
			var tracer *trace.Tracer
			if tracer, _, err = trace.Run(filepath.Join(above, "platter")); err == nil {
				err = tracer.Close()
			}
		})
		return err
	}
}()
