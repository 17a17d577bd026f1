// Package location opens the store that the name of a repository tells of: a
// path is a directory, s3:https://HOST/BUCKET/PREFIX a bucket,
// sftp:USER@HOST:PATH a directory of another machine.
package location

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"platter/image/store"
	"platter/image/store/dir"
	"platter/image/store/s3"
	"platter/image/store/sftp"
	"platter/image/store/vfs"
)

// Errors that callers decide on.
var (
	// ErrSyntax means that a name is none that a repository can have.
	ErrSyntax = errors.New("not the name of a repository")
	// ErrMissing means that there is no such directory. A bucket that is not
	// there shows later, as s3.ErrNoBucket.
	ErrMissing = errors.New("there is no such directory")
)

// Options are for stores that are reached by a network.
type Options struct {
	UploadLimit, DownloadLimit int64         // bytes in a second, 0 for none
	Patience                   time.Duration // without any progress, 0 for an hour
	Notify                     func(string)  // of trouble that lasts
}

// IsPath reports whether name is that of a directory, rather than of something
// reached by a network. A path with a colon in it can be written ./PATH.
func IsPath(name string) bool {
	scheme, rest, ok := strings.Cut(name, ":")
	return !ok || strings.Contains(scheme, "/") || scheme+":" != s3.Scheme && scheme+":" != sftp.Scheme && !strings.HasPrefix(rest, "//")
}

// Check returns an error unless name is one that a repository can have.
func Check(name string) error {
	if IsPath(name) {
		return nil
	}
	_, err := s3.Parse(name)
	if isSFTP(name) {
		_, err = sftp.Parse(name)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	return nil
}

func isSFTP(name string) bool { return strings.HasPrefix(name, sftp.Scheme) }

// Open opens the store of that name.
func Open(ctx context.Context, name string, opts Options) (store.Store, error) {
	if err := Check(name); err != nil {
		return nil, err
	}
	// Each by its own variable: a nil pointer in an interface is not nil.
	switch {
	case IsPath(name):
		st, err := dir.Open(name, vfs.OS())
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			err = fmt.Errorf("%s: %w", name, ErrMissing)
		}
		if err != nil {
			return nil, err
		}
		return st, nil
	case isSFTP(name):
		st, err := remote(ctx, name, opts, sftp.Open)
		if sftp.Missing(err) {
			err = fmt.Errorf("%s: %w", name, ErrMissing)
		}
		if err != nil {
			return nil, err
		}
		return st, nil
	}
	st, err := bucket(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	return st, nil
}

// Create opens a store for a new repository: it makes a directory that is
// missing, and makes sure that a server keeps what repositories rely on.
func Create(ctx context.Context, name string, opts Options) (store.Store, error) {
	if err := Check(name); err != nil {
		return nil, err
	}
	switch {
	case IsPath(name):
		st, err := dir.Create(name, vfs.OS())
		if err != nil {
			return nil, err
		}
		return st, nil
	case isSFTP(name):
		st, err := remote(ctx, name, opts, sftp.Create)
		if err != nil {
			return nil, err
		}
		return st, nil
	}
	st, err := bucket(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	if err := st.Probe(ctx); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

func bucket(ctx context.Context, name string, opts Options) (*s3.Store, error) {
	config, err := s3.Parse(name)
	if err != nil {
		return nil, err
	}
	config.UploadLimit, config.DownloadLimit = opts.UploadLimit, opts.DownloadLimit
	config.Patience, config.Notify = opts.Patience, opts.Notify
	return s3.Open(ctx, config)
}

func remote(ctx context.Context, name string, opts Options, open func(context.Context, sftp.Config) (*sftp.Store, error)) (*sftp.Store, error) {
	config, err := sftp.Parse(name)
	if err != nil {
		return nil, err
	}
	config.UploadLimit, config.DownloadLimit = opts.UploadLimit, opts.DownloadLimit
	config.Patience, config.Notify = opts.Patience, opts.Notify
	return open(ctx, config)
}
