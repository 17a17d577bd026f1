package snapshot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ScratchDir is where the old content goes of what a virtual machine overwrites
// while it is imaged. /tmp may be memory.
func ScratchDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}

// Room returns how many bytes are free there.
func Room() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(ScratchDir(), &st); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", ScratchDir(), err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Roomy returns "" if there is room for a disk of size bytes, a tenth of it, or
// else what to do.
func Roomy(size int64) string {
	free, err := Room()
	if err != nil || free >= size/10 {
		return ""
	}
	return fmt.Sprintf("%s has %d MiB free, and what the machine overwrites while it is imaged is kept there: at least %d MiB are wanted; name another directory by TMPDIR",
		ScratchDir(), free>>20, size/10>>20)
}
