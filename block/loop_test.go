package block

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// attach makes a loop device over a file, detached when the test ends.
func attach(t *testing.T, file string, args ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: loop devices need root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("NOT TESTED: no loop devices: %v", err)
	}
	out, err := exec.Command("losetup", append([]string{"-f", "--show"}, append(args, file)...)...).Output()
	if err != nil {
		t.Fatalf("losetup %s: %v", file, err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	return dev
}

// loopDisk makes a loop device of size bytes and the given sector size.
func loopDisk(t *testing.T, size int64, sector int) (dev, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	sparse(t, file, size)
	return attach(t, file, "-b", strconv.Itoa(sector)), file
}

func sparse(t *testing.T, file string, size int64) {
	t.Helper()
	f, err := os.Create(file)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tool skips the test loudly when a program is missing.
func tool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("NOT TESTED: %s is not installed", name)
		}
	}
}

// run1 runs a program and returns what it printed.
func run1(t *testing.T, name string, args ...string) string {
	t.Helper()
	tool(t, name)
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mountAt mounts a device on a fresh folder until the test ends.
func mountAt(t *testing.T, dev string, opts ...string) string {
	t.Helper()
	dir := t.TempDir()
	run1(t, "mount", append(opts, dev, dir)...)
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	return dir
}

// partx makes the kernel see a loop device's partitions; it has no parser.
func partx(t *testing.T, dev string) {
	t.Helper()
	run1(t, "partx", "-a", dev)
	t.Cleanup(func() { _ = exec.Command("partx", "-d", dev).Run() })
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func writeFile(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteAt(b, off)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	return sha256.Sum256(readFile(t, path))
}

// equal says where two contents differ first.
func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Fatalf("%s: got %d bytes, want %d, first difference at %d", what, len(got), len(want), i)
}
