package snapshot

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Lock keeps out other processes of Platter that do the same to the same thing,
// until unlock or the end of this process. The name is that of a file.
func Lock(ctx context.Context, name string) (unlock func(), err error) {
	path := "/run/lock/" + name
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		// The wait ends when the holder's does; nothing is done with it.
		go func() { <-got; f.Close() }()
		return nil, fmt.Errorf("wait for %s: %w", path, context.Cause(ctx))
	}
}
