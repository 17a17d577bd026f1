package loop

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Filesystem makes a filesystem of size bytes in a sparse file, by mkfs (a
// command such as mkfs.xfs, with its options), and returns where it is
// mounted. It ends with the test, which is skipped where that cannot be done.
func Filesystem(t testing.TB, size int64, mkfs ...string) string {
	t.Helper()
	if why := Unavailable(t.Context()); why != "" {
		t.Skip("SKIPPED, this needs loop devices: ", why)
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	backing, dir := filepath.Join(t.TempDir(), "filesystem"), filepath.Join(t.TempDir(), "mounted")
	err := errors.Join(os.WriteFile(backing, nil, 0o600), os.Truncate(backing, size), os.Mkdir(dir, 0o700))
	if err == nil {
		_, err = run(t.Context(), mkfs[0], append(mkfs[1:], backing)...)
	}
	if err == nil {
		_, err = run(t.Context(), "mount", "-o", "loop", backing, dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	return dir
}
