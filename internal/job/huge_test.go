package job

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"platter/image/repo"
	"platter/image/store/dir"
	"platter/image/store/vfs"
)

// hugeRepository is an empty repository in the temporary folder for a test
// that fills some GiB in a few minutes; it is skipped unless
// PLATTER_TEST_HUGE=1.
func hugeRepository(t *testing.T, blockSize int) *repo.Repo {
	t.Helper()
	if os.Getenv("PLATTER_TEST_HUGE") != "1" {
		t.Skip("set PLATTER_TEST_HUGE=1 to run it")
	}
	st, err := dir.Create(filepath.Join(t.TempDir(), "repo"), vfs.OS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	r, err := repo.Init(context.Background(), st, repo.InitOptions{BlockSize: blockSize})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// forgetPeak holds the runtime to three quarters of memory until the test
// ends, as the program does, and has the kernel count the peak of the
// process's memory from here.
func forgetPeak(t *testing.T, memory int64) {
	t.Helper()
	before := debug.SetMemoryLimit(memory * 3 / 4)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("NOT TESTED: cannot reset the peak of memory: %v", err)
	}
}
