package vmtests

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"platter/block/nbd"
	"platter/vmtests/qemu"
)

// offer serves an image over NBD until the function returned is called. It
// returns how long the first byte took, from starting the command.
func (r *repo) offer(image, socket string) (first time.Duration, stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	cmd := exec.CommandContext(ctx, binary, "nbd", image, "--unix", socket, "--repo", r.dir, "--catalog", r.catalog, "-q")
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	start := time.Now()
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.Options{})
		if err == nil {
			_, err = c.ReadAt(ctx, make([]byte, 4096), 0)
			first = time.Since(start)
			c.Close()
		}
		if err == nil {
			return first, func() {
				cancel()
				cmd.Wait()
			}
		}
		if time.Since(start) > time.Minute {
			cancel()
			r.t.Fatalf("nbd: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// A machine starts from an image over NBD as from the raw disk, in about the
// same time; and the first byte does not wait for the size of the disk.
func TestMachineStartsOverNBD(t *testing.T) {
	if !long() {
		t.Skip("starts six machines; set PLATTER_TEST_LONG=1")
	}
	if what := qemu.Missing(qemu.BIOS); what != "" {
		t.Skip("needs the package " + what)
	}
	d := build(t, "xfs")
	r := newRepo(t)
	r.backup(d.Path, "test/server")
	var raw, over []time.Duration
	login := func(disk string) time.Duration {
		b, err := qemu.Machine{Disk: disk, Firmware: qemu.BIOS, CPUs: 2}.Login(t.Context(), 10*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return b.Elapsed
	}
	for range 3 {
		raw = append(raw, login(d.Path))
		socket := filepath.Join(t.TempDir(), "nbd")
		first, stop := r.offer("test/server", socket)
		over = append(over, login("nbd+unix:///?socket="+socket))
		stop()
		t.Logf("first byte after %v; login after %v from the file, %v over NBD", first, raw[len(raw)-1], over[len(over)-1])
	}
	slices.Sort(raw)
	slices.Sort(over)
	t.Logf("medians: %v from the file, %v over NBD: %.2f ×", raw[1], over[1], over[1].Seconds()/raw[1].Seconds())

	huge := filepath.Join(t.TempDir(), "huge")
	f, err := os.Create(huge)
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(0); at < 8<<40; at += 64 << 30 {
		if _, err := f.WriteAt([]byte{1, 2, 3}, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.backup(huge, "test/huge")
	for range 3 {
		first, stop := r.offer("test/huge", filepath.Join(t.TempDir(), "nbd"))
		stop()
		t.Logf("8 TiB: first byte after %v", first)
	}
}
