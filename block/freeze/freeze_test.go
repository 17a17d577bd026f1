package freeze

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/vmtests/loop"
)

// TestMain makes this program one that can be watched, or killed.
func TestMain(m *testing.M) {
	if Watch() {
		return
	}
	if dir := os.Getenv("PLATTER_TEST_FREEZE"); dir != "" {
		freezeAndWait(dir)
	}
	os.Exit(m.Run())
}

// freezeAndWait freezes dir, says so and waits to be killed.
func freezeAndWait(dir string) {
	f, err := Open([]block.Filesystem{{Point: dir, Writable: true}}, time.Hour)
	if err == nil {
		err = f.Freeze()
	}
	fmt.Println(f.guard.cmd.Process.Pid, "frozen", err)
	select {}
}

// mounted calls use with a directory where a new ext4 is mounted.
func mounted(t *testing.T, use func(dev, dir string)) {
	t.Helper()
	if why := loop.Unavailable(t.Context()); why != "" {
		t.Skip("SKIPPED, this needs loop devices: ", why)
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d, err := loop.Attach(t.Context(), file, loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Detach()
	err = loop.Mount(context.Background(), d.Path, func(dir string) error { use(d.Path, dir); return nil })
	if err != nil {
		t.Fatal(err)
	}
}

// frozen reports whether the filesystem at dir is frozen: who is the first to
// freeze it gets it.
func frozen(t *testing.T, dir string) bool {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fs := filesystem{dir: d}
	err = fs.control(fiFreeze)
	if errors.Is(err, unix.EBUSY) {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := fs.control(fiThaw); err != nil {
		t.Fatal(err)
	}
	return false
}

func open(t *testing.T, dev string, limit time.Duration) *Filesystems {
	t.Helper()
	on, err := block.StackedOn(dev)
	if err != nil || len(on.Filesystems) != 1 {
		t.Fatalf("got %v, %v, want the filesystem", on, err)
	}
	f, err := Open(on.Filesystems, limit)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFreezeHoldsAndThawLetsGo(t *testing.T) {
	mounted(t, func(dev, dir string) {
		f := open(t, dev, time.Minute)
		defer f.Close()
		for range 3 {
			if err := Sync([]block.Filesystem{f.all[0].Filesystem}); err != nil {
				t.Fatal(err)
			}
			if err := f.Freeze(); err != nil || len(f.Unfrozen()) > 0 {
				t.Fatal(err, f.Unfrozen())
			}
			if !frozen(t, dir) {
				t.Fatal("it is not frozen")
			}
			if _, err := f.Thaw(); err != nil {
				t.Fatal(err)
			}
			if frozen(t, dir) {
				t.Fatal("it is frozen still")
			}
		}
	})
}

// D57: a freeze ends with its time, and whoever relied on it is told.
func TestFreezeEndsWithItsTime(t *testing.T) {
	mounted(t, func(dev, dir string) {
		f := open(t, dev, 50*time.Millisecond)
		defer f.Close()
		if err := f.Freeze(); err != nil {
			t.Fatal(err)
		}
		// Whoever writes waits until the watching process thaws.
		if err := os.WriteFile(filepath.Join(dir, "written"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Thaw(); !errors.Is(err, ErrLate) {
			t.Fatalf("got %v, want %v", err, ErrLate)
		}
		// The next freeze has a time of its own.
		f.limit = time.Minute
		if err := f.Freeze(); err != nil {
			t.Fatal(err)
		}
		f.Thaw()
	})
}

// D57: a process that dies leaves nothing frozen.
func TestFreezeEndsWithItsProcess(t *testing.T) {
	mounted(t, func(dev, dir string) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "PLATTER_TEST_FREEZE="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		var guard int
		if _, scan := fmt.Sscanf(line, "%d frozen <nil>\n", &guard); err != nil || scan != nil || !frozen(t, dir) {
			t.Fatalf("got %q, %v, %v, want it frozen", line, err, scan)
		}
		watching, err := unix.PidfdOpen(guard, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(watching)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if err := os.WriteFile(filepath.Join(dir, "written"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if frozen(t, dir) {
			t.Fatal("it is frozen still")
		}
		// It has the directory open until it ends.
		for err := unix.EINTR; err == unix.EINTR; {
			_, e := unix.Poll([]unix.PollFd{{Fd: int32(watching), Events: unix.POLLIN}}, -1)
			err, _ = e.(unix.Errno)
		}
	})
}

func TestFreezeOfWhatIsFrozenIsRefused(t *testing.T) {
	mounted(t, func(dev, dir string) {
		a, b := open(t, dev, time.Minute), open(t, dev, time.Minute)
		defer a.Close()
		defer b.Close()
		if err := a.Freeze(); err != nil {
			t.Fatal(err)
		}
		if err := b.Freeze(); err == nil {
			t.Fatal("frozen twice")
		}
		if !frozen(t, dir) {
			t.Fatal("the second freeze ended the first")
		}
	})
}
