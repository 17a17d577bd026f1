package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"platter/vmtests/debian"
)

// Inside reports whether this process runs in a guest.
func Inside() bool { return os.Getenv("PLATTER_GUEST") != "" }

// Only skips a test that has its place in guests, where it is the host that
// runs it: it writes to the machine's disks as it likes.
func Only(t testing.TB) {
	t.Helper()
	if !Inside() {
		t.Skip("SKIPPED, this runs in a guest: make vm")
	}
}

// Open returns the system of the cache that all tests share. The test is
// skipped where there is no emulator.
func Open(t testing.TB) *System {
	t.Helper()
	if what := Missing(); what != "" {
		t.Skip("SKIPPED, this needs the package ", what)
	}
	cache, err := debian.CacheDir()
	if err == nil {
		err = os.MkdirAll(cache, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := Fetch(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// OpenZFS is Open for guests with ZFS. The test is skipped where its modules have
// not been built.
func OpenZFS(t testing.TB) *System {
	t.Helper()
	s := Open(t)
	if _, err := os.Stat(s.zfs); err != nil {
		t.Skip("SKIPPED, there is no ZFS for the guests' kernel ", s.Release, " yet: make vm-zfs")
	}
	return s
}

// Debian makes a disk for a guest with a system that starts by itself
// (Boot.System). It ends with the test.
func Debian(t testing.TB) string {
	t.Helper()
	if what := debian.Lacking(); what != "" {
		t.Skip("SKIPPED, a Debian is made with ", what)
	}
	cache, err := debian.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "debian.raw")
	if err := debian.Disk(t.Context(), cache, path); err != nil {
		t.Fatal("make a disk with Debian: ", err)
	}
	return path
}

// Disk makes an empty disk of size bytes for a guest. It ends with the test.
func Disk(t testing.TB, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "disk-*.raw")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// Build compiles a command of this module, or the tests of a package whose
// name ends in ".test", and returns the program's file.
func Build(t testing.TB, name string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), path.Base(name))
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", program, name}
	if pkg, ok := strings.CutSuffix(name, ".test"); ok {
		args = []string{"test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", program, pkg}
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return program
}

// Tests are the tests of one package to run in a guest.
type Tests struct {
	Package string // such as platter/cbt/thin
	Args    string // such as -test.run Suite
}

// Test runs tests in one life of a guest. Each package becomes a subtest;
// what its tests say is logged as it comes. What the guest skips counts as failed: it has all
// that there is to have.
func (s *System) Test(t *testing.T, b Boot, all ...Tests) {
	t.Helper()
	b.Files = cloned(b.Files)
	script := strings.Builder{}
	for _, one := range all {
		program := strings.ReplaceAll(one.Package, "/", "-") + ".test" // two may end alike
		if b.Files[program] == "" {
			b.Files[program] = Build(t, one.Package+".test")
		}
		fmt.Fprintf(&script, "./%s -test.v %s; echo \"guest: tests exit $?\"\n", program, one.Args)
	}
	b.Run += "\n" + script.String()
	reports := []*report{{}}
	b.Line = func(line string) bool {
		t.Log(line)
		if reports[len(reports)-1].add(line) {
			reports = append(reports, &report{})
		}
		return false
	}
	_, err := s.Start(t.Context(), b)
	for i, one := range all {
		t.Run(path.Base(one.Package), func(t *testing.T) {
			if i >= len(reports)-1 {
				t.Fatalf("the guest did not come to the end of %s %s: %v", one.Package, one.Args, err)
			}
			reports[i].tell(t)
		})
	}
	if err != nil {
		t.Error(err)
	}
}

func cloned(m map[string]string) map[string]string {
	c := map[string]string{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

// A report is what the tests of one package said.
type report struct {
	passed, failed int
	skipped        int
	status         string
}

// add takes a line, and reports whether it was the last.
func (r *report) add(line string) bool {
	if status, ok := strings.CutPrefix(line, "guest: tests exit "); ok {
		r.status = status
		return true
	}
	switch word := strings.TrimSpace(line); {
	case strings.HasPrefix(word, "--- PASS: "):
		r.passed++
	case strings.HasPrefix(word, "--- FAIL: "):
		r.failed++
	case strings.HasPrefix(word, "--- SKIP: "):
		r.skipped++
	}
	return false
}

func (r *report) tell(t *testing.T) {
	t.Helper()
	t.Logf("%d passed, %d failed, %d skipped", r.passed, r.failed, r.skipped)
	if r.status != "0" || r.passed == 0 || r.failed+r.skipped > 0 {
		t.Errorf("%d passed, %d failed, %d skipped, exit status %s: want all passed, and some", r.passed, r.failed, r.skipped, r.status)
	}
}
