package freeze

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/vmtests/guest"
)

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// onItsWay calls use while a write is on its way to a device of the device mapper,
// and held up in the one below until land is called.
func onItsWay(t *testing.T, use func(path string, land func())) {
	t.Helper()
	tool(t, "busybox", "dd", "if=/dev/zero", "of=/dev/vda", "bs=4096", "count=1", "conv=fsync")
	tool(t, "dmsetup", "create", "below", "--table", "0 2048 linear /dev/vda 0")
	defer tool(t, "dmsetup", "remove", "--retry", "below")
	tool(t, "dmsetup", "create", "top", "--table", "0 2048 linear /dev/mapper/below 0")
	defer tool(t, "dmsetup", "remove", "--retry", "top")
	const path = "/dev/mapper/top"
	p, err := block.AllocAligned(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer block.FreeAligned(p)
	p[0] = 'x'
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	// So that the kernel shows what is on its way.
	node, err := os.Readlink(path)
	if err != nil {
		node = tool(t, "dmsetup", "info", "--columns", "--noheadings", "-o", "blkdevname", "top")
	}
	queue := "/sys/block/" + strings.TrimSpace(strings.TrimPrefix(node, "../"))
	if err := os.WriteFile(queue+"/queue/iostats", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "dmsetup", "suspend", "below")
	written := make(chan error, 1)
	go func() {
		_, err := f.WriteAt(p, 0)
		written <- errors.Join(err, f.Close())
	}()
	for {
		b, err := os.ReadFile(queue + "/inflight")
		if err != nil {
			t.Fatal(err)
		}
		if f := strings.Fields(string(b)); len(f) == 2 && f[1] == "1" {
			break
		}
		time.Sleep(time.Millisecond)
	}
	land := func() { tool(t, "dmsetup", "resume", "below") }
	use(path, land)
	land()
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// D56: what was on its way has landed when a device is drained, and the device
// goes on.
func TestDrainWaitsForWhatIsOnItsWay(t *testing.T) {
	guest.Only(t)
	onItsWay(t, func(path string, land func()) {
		drained := make(chan error, 1)
		go func() { drained <- Drain(path, time.Minute) }()
		select {
		case err := <-drained:
			t.Fatalf("%v, and the write has not landed", err)
		case <-time.After(2 * time.Second):
		}
		land()
		if err := <-drained; err != nil {
			t.Fatal(err)
		}
		goesOn(t)
	})
}

// D57: nothing is held back for longer than it may be.
func TestDrainGivesUp(t *testing.T) {
	guest.Only(t)
	onItsWay(t, func(path string, _ func()) {
		err := Drain(path, 200*time.Millisecond)
		if err == nil || !strings.Contains(err.Error(), "did not land") {
			t.Errorf("got %v, want that it did not land", err)
		}
		goesOn(t)
	})
}

func goesOn(t *testing.T) {
	t.Helper()
	if info := tool(t, "dmsetup", "info", "top"); !strings.Contains(info, "ACTIVE") {
		t.Errorf("the device is left as %s", info)
	}
}

func TestDrainOfNoMapper(t *testing.T) {
	if err := Drain("/dev/null", time.Second); !errors.Is(err, ErrNoMapper) {
		t.Errorf("got %v, want %v", err, ErrNoMapper)
	}
}
