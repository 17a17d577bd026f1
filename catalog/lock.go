package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// lockPoll is how often a held lock is tried again.
const lockPoll = 100 * time.Millisecond

// lockDirectory locks the catalog for this process, waiting for another one as
// long as the options say. The lock goes with the process, whatever becomes of it.
func lockDirectory(ctx context.Context, opts Options) (io.Closer, error) {
	path := filepath.Join(opts.Dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock catalog: %w", err)
	}
	if err := waitLock(ctx, f, opts); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w by process %s: %s: wait for it to end, or for longer with --lock-wait", ErrLocked, holder(f), opts.Dir)
		} else {
			err = fmt.Errorf("lock catalog %s: %w", path, err)
		}
		return nil, errors.Join(err, f.Close())
	}
	if err := sign(f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock catalog %s: %w", path, err), f.Close())
	}
	return f, nil
}

func waitLock(ctx context.Context, f *os.File, opts Options) error {
	deadline := time.Now().Add(opts.LockWait)
	told := opts.Waiting == nil
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		left := time.Until(deadline)
		if !errors.Is(err, unix.EWOULDBLOCK) || left <= 0 {
			return err
		}
		if !told {
			opts.Waiting(holder(f))
			told = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(left, lockPoll)):
		}
	}
}

// sign writes into the lock file who holds it.
func sign(f *os.File) error {
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := fmt.Fprintf(f, "%d\n", os.Getpid())
	return err
}

// holder returns what sign wrote.
func holder(f *os.File) string {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return pid
	}
	return "unknown"
}

// chmod takes a file's rights from all but its owner.
func chmod(f vfs.File) error {
	if f.Fd() == vfs.InvalidFd {
		return nil
	}
	return unix.Fchmod(int(f.Fd()), 0o600)
}
