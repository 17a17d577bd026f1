package vfs

import (
	"testing"

	"golang.org/x/sys/unix"
)

// OnDisk returns a new folder that is not in memory, where a file is the page
// cache.
func OnDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == unix.TMPFS_MAGIC {
		t.Skip("SKIP: the folder for temporary files is in memory: set TMPDIR")
	}
	return dir
}
