package job

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// loop makes a loop device over a file that holds content, and returns both.
func loop(t *testing.T, content []byte, sector int) (dev, file string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: loop devices need root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("NOT TESTED: no loop devices: %v", err)
	}
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", "-b", strconv.Itoa(sector), file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	dev = strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	return dev, file
}

func sgdisk(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("sgdisk"); err != nil {
		t.Skip("NOT TESTED: sgdisk is not installed")
	}
	out, err := exec.Command("sgdisk", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("sgdisk %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// gptDisk returns a disk of size bytes with a GPT, two partitions, zeros and
// data.
func gptDisk(t *testing.T, size int) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gpt")
	data := make([]byte, size)
	rng := seeded(t, uint64(size))
	random(rng, data[2<<20:5<<20])
	random(rng, data[size-3<<20:size-2<<20])
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	sgdisk(t, "-n", "1:2048:+4M", "-n", "2:0:0", file)
	return readFile(t, file)
}

func junk(t *testing.T, size int) []byte {
	b := make([]byte, size)
	random(seeded(t, uint64(size)), b)
	return b
}

// diskImage backs up content as a file.
func diskImage(t *testing.T, env *Env, content []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Backup(context.Background(), env, BackupOptions{Devices: []string{file}, Volume: "disk"}); err != nil {
		t.Fatal(err)
	}
}

// onDisk flushes a loop device and returns what its file holds.
func onDisk(t *testing.T, dev, file string) []byte {
	t.Helper()
	if out, err := exec.Command("blockdev", "--flushbufs", dev).CombinedOutput(); err != nil {
		t.Fatalf("blockdev: %v\n%s", err, out)
	}
	return readFile(t, file)
}

func TestRestoreToADeviceOfTheSameSize(t *testing.T) {
	const size = 24 << 20
	disk := gptDisk(t, size)
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	for _, inPlace := range []bool{false, true} {
		dev, file := loop(t, junk(t, size), 512)
		r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev, InPlace: inPlace})
		if !bytes.Equal(onDisk(t, dev, file), disk) {
			t.Errorf("in place %v: the device is not the image", inPlace)
		}
		if !r.Plan.Fit.Empty() || !r.ReadBack || r.Plan.Destroys == "" || r.Written+r.Zeroed+r.Kept != size {
			t.Errorf("in place %v: %+v", inPlace, r)
		}
		if again := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev, InPlace: true}); again.Written+again.Zeroed != 0 {
			t.Errorf("in place once more: wrote %d and zeroed %d bytes, want none", again.Written, again.Zeroed)
		}
	}
}

func TestRestoreToALargerDiskFitsItsTable(t *testing.T) {
	const size, larger = 24 << 20, 40 << 20
	disk := gptDisk(t, size)
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	for _, inPlace := range []bool{false, true} {
		dev, file := loop(t, junk(t, larger), 512)
		r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev, InPlace: inPlace})
		if r.Plan.Fit.Empty() || len(r.Plan.Notices) != 0 {
			t.Errorf("in place %v: %+v", inPlace, r.Plan)
		}
		got := onDisk(t, dev, file)
		if !bytes.Equal(got[1024:size-34*512], disk[1024:size-34*512]) {
			t.Errorf("in place %v: the device is not the image", inPlace)
		}
		if out := sgdisk(t, "-v", file); !strings.Contains(out, "No problems found") {
			t.Errorf("in place %v: sgdisk -v: %s", inPlace, out)
		}
		for _, off := range []int{size, size + 1<<20 - 1, larger - 1<<20, larger - 100*512} {
			if got[off] != 0 {
				t.Errorf("in place %v: byte %d behind the image is not wiped", inPlace, off)
			}
		}
	}
}

func TestRestoreOfAnOddSizeToADevice(t *testing.T) {
	env := newEnv(t, 4096)
	content := junk(t, 3<<20+777)
	diskImage(t, env, content)
	dev, file := loop(t, junk(t, 4<<20), 512)
	for _, inPlace := range []bool{false, true} {
		mustRestore(t, env, RestoreOptions{Image: "disk", Target: dev, InPlace: inPlace})
		if got := onDisk(t, dev, file); !bytes.Equal(got[:len(content)], content) {
			t.Errorf("in place %v: the device is not the image", inPlace)
		}
	}
}

func TestRestoreRefusesBeforeTheFirstWrite(t *testing.T) {
	const size = 8 << 20
	env := newEnv(t, 64<<10)
	diskImage(t, env, gptDisk(t, size))
	refused(t, env, size-4096, 512, RestoreOptions{Image: "disk"}, "is too small")
}

// A restore that dies leaves nothing that starts, neither old nor new.
func TestRestoreThatDiesLeavesNoTable(t *testing.T) {
	const size = 24 << 20
	disk := gptDisk(t, size)
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	dev, file := loop(t, disk, 512) // an old system just like it
	ctx, cancel := context.WithCancel(t.Context())
	env.Progress = func(p Progress) {
		if p.Done > 0 {
			cancel()
		}
	}
	_, err := Restore(ctx, env, RestoreOptions{Image: "disk", Target: dev, Confirm: yes, LimitWrite: 1 << 20})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want a cancelled restore", err)
	}
	got := onDisk(t, dev, file)
	if !bytes.Equal(got[:1<<20], make([]byte, 1<<20)) || !bytes.Equal(got[size-1<<20:], make([]byte, 1<<20)) {
		t.Error("the first or the last MiB is not zero")
	}
}
