package trace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DefaultDir is where the tracer of this machine keeps itself.
const DefaultDir = "/sys/fs/bpf/platter"

// makeDir makes dir in a file system of the kernel's BPF objects, which it
// mounts above it if there is none yet.
func makeDir(dir string) error {
	above := filepath.Dir(dir)
	ok, err := holdsPrograms(above)
	if err == nil && !ok {
		err = unix.Mount("bpf", above, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("mount the file system of BPF objects at %s: %w", above, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return nil
}

func holdsPrograms(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, err
	}
	return int64(st.Type) == unix.BPF_FS_MAGIC, nil
}

// lock keeps other processes from changing the tracer in dir. Closing the file
// ends that.
func lock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}
