// Package sftp keeps the objects of a repository in a directory of another
// machine, reached by ssh.
//
// It is a store of package dir over the file system of an SFTP server, so that
// objects are written as there: a temporary file, synced, given its name by a
// hard link, which never replaces another, and the directory synced. The
// server must offer hardlink@openssh.com, and should offer
// fsync@openssh.com; OpenSSH has both. Objects that are there whole or not at
// all, and names that are claimed by one writer alone, rest on the first.
//
// A connection that ends or stands still is made anew, and what it was used
// for is done again, until Config.Patience is over. A Put whose end was not
// seen is looked for, and its bytes compared, before it counts.
//
// The server is the one that known_hosts knows; another is never spoken to.
// docs/sftp.md is for operators.
package sftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"platter/image/store"
	"platter/image/store/dir"
	"platter/image/store/retry"
	"platter/image/store/vfs"
)

// ErrServer means that the server lacks what repositories rely on.
var ErrServer = errors.New("the server has no hard links by sftp (hardlink@openssh.com), which repositories rely on")

// A Config says where the directory is and how to reach it. The zero value of
// each field but Host and Path is a good one.
type Config struct {
	User, Host string
	Port       int    // 0 for 22
	Path       string // absolute, or from the user's home on

	// What is empty here comes from the environment and from where ssh keeps
	// it, see docs/sftp.md.
	Identities []string // files of private keys
	KnownHosts []string // files
	Agent      string   // socket of an ssh-agent; "none" for none

	UploadLimit, DownloadLimit int64 // bytes in a second, 0 for none
	// Patience is how long an operation is tried without any progress, 0 for
	// retry.DefaultPatience. It is much shorter until the server has answered.
	Patience time.Duration
	// Stall is how long a connection may stand still, 0 for 30 seconds.
	Stall time.Duration
	// Notify is told, in a sentence, of trouble that lasts and of what the
	// server lacks. It is called from several goroutines; nil for nobody.
	Notify func(string)
}

const defaultStall = 30 * time.Second

// A Store is a store.Store in a directory of another machine.
type Store struct {
	config Config
	line   retry.Line
	fs     *remote
	dir    *dir.Store
}

var (
	_ store.Store  = (*Store)(nil)
	_ store.Remote = (*Store)(nil)
)

// Flight implements store.Remote: a server notices within this that a client
// has gone, or has done what it asked for.
func (*Store) Flight() time.Duration { return 30 * time.Second }

// Open opens the store that config describes, whose directory must exist: the
// error wraps fs.ErrNotExist when it does not.
func Open(ctx context.Context, config Config) (*Store, error) {
	return open(ctx, config, dir.Open)
}

// Create is Open for a directory that may not exist yet. It makes what is
// missing, and finds out whether the server does what a repository relies on.
func Create(ctx context.Context, config Config) (*Store, error) {
	s, err := open(ctx, config, dir.Create)
	if err != nil {
		return nil, err
	}
	if err := s.probe(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("probe %s: %w", s.Location(), err), s.Close())
	}
	return s, nil
}

func open(ctx context.Context, config Config, f func(string, vfs.FS) (*dir.Store, error)) (*Store, error) {
	s := &Store{config: config, line: retry.Line{Patience: config.Patience, Notify: config.Notify}}
	if err := s.config.fill(); err != nil {
		return nil, fmt.Errorf("open %s: %w", config.location(), err)
	}
	if s.config.Stall == 0 {
		s.config.Stall = defaultStall
	}
	s.fs = newRemote(&s.config)
	err := s.do(ctx, "open", func() error {
		path, err := s.fs.realPath(s.config.Path)
		if err == nil {
			s.dir, err = f(path, s.fs)
		}
		return err
	})
	if err != nil {
		s.fs.close()
		return nil, fmt.Errorf("open %s: %w", s.Location(), err)
	}
	return s, nil
}

// Location implements store.Store: what Parse reads.
func (s *Store) Location() string { return s.config.location() }

// Close ends the connection.
func (s *Store) Close() error {
	err := s.dir.Close()
	s.fs.close()
	if lost(err) {
		return nil // files that were open went with it
	}
	return err
}

// do makes an operation again when its connection was lost.
func (s *Store) do(ctx context.Context, what string, f func() error) error {
	return s.line.Do(ctx, what+" "+s.Location(), func() error {
		err := f()
		if err != nil && lost(err) {
			return &retry.Failure{Cause: err, Again: true}
		}
		s.line.Met()
		return err
	})
}

// Put implements store.Store. When it gives up a write that may have had its
// effect, the error is a store.ErrNotDurable.
func (s *Store) Put(ctx context.Context, name string, parts ...[]byte) error {
	doubt := false
	err := s.do(ctx, "put to", func() error {
		if doubt {
			if there, err := s.settle(ctx, name, parts); there || err != nil {
				return err
			}
		}
		err := s.dir.Put(ctx, name, parts...)
		doubt = doubt || lost(err)
		return err
	})
	if err != nil && doubt && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNotDurable) {
		err = fmt.Errorf("put %s: %w: %w", name, store.ErrNotDurable, err)
	}
	return err
}

// settle looks for what an earlier try may have left. there is false where
// there is nothing; otherwise the error is that of Put. A file that has its
// name was synced before it got it; its directory may not have been.
func (s *Store) settle(ctx context.Context, name string, parts [][]byte) (there bool, err error) {
	var size int64
	for _, p := range parts {
		size += int64(len(p))
	}
	got, err := s.dir.Get(ctx, name, size)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case errors.Is(err, store.ErrTooLarge), err == nil && !bytes.Equal(got, bytes.Join(parts, nil)):
		return true, fmt.Errorf("put %s: %w", name, store.ErrExists) // by another's write
	case err != nil:
		return false, err
	}
	if err := s.dir.SyncName(name); err != nil {
		return false, err
	}
	return true, nil
}

// ReadAt implements store.Store.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return s.do(ctx, "read from", func() error { return s.dir.ReadAt(ctx, name, p, off) })
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, name string, limit int64) (data []byte, err error) {
	err = s.do(ctx, "get from", func() error {
		data, err = s.dir.Get(ctx, name, limit)
		return err
	})
	return data, err
}

// Head implements store.Store. Times are in whole seconds.
func (s *Store) Head(ctx context.Context, name string) (info store.Info, err error) {
	err = s.do(ctx, "head from", func() error {
		info, err = s.dir.Head(ctx, name)
		return err
	})
	return info, err
}

// List implements store.Store. What was shown before a connection was lost is
// not shown again.
func (s *Store) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	last := ""
	var stop error
	err := s.do(ctx, "list", func() error {
		moved := false
		err := s.dir.List(ctx, prefix, func(i store.Info) error {
			if i.Name <= last {
				return nil
			}
			last, moved = i.Name, true
			if stop = f(i); stop != nil {
				return errStopped
			}
			return nil
		})
		if moved && lost(err) {
			return &retry.Failure{Cause: err, Again: true, Moved: true}
		}
		return err
	})
	if stop != nil {
		return stop
	}
	return err
}

// errStopped: the caller wants no more. Its error may be one of this store,
// and must not pass for the listing's own.
var errStopped = errors.New("stopped")

// Delete implements store.Store. Two who delete an object at once may both be
// told that they did.
func (s *Store) Delete(ctx context.Context, name string) error {
	doubt := false
	return s.do(ctx, "delete from", func() error {
		err := s.dir.Delete(ctx, name)
		if doubt && errors.Is(err, store.ErrNotFound) {
			return s.dir.SyncName(name) // by the request whose answer was lost
		}
		doubt = doubt || lost(err)
		return err
	})
}

// Now implements store.Store: by the server's clock, in whole seconds.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	err = s.do(ctx, "ask for the time at", func() error {
		now, err = s.dir.Now(ctx)
		return err
	})
	return now, err
}

// RemoveTemps removes what dead writers left, as dir.Store does.
func (s *Store) RemoveTemps(ctx context.Context, olderThan time.Duration) (n int, err error) {
	err = s.do(ctx, "tidy", func() error {
		more, err := s.dir.RemoveTemps(ctx, olderThan)
		n += more
		return err
	})
	return n, err
}

// probe finds out whether the server does what a repository relies on.
func (s *Store) probe(ctx context.Context) error {
	var c *conn
	err := s.do(ctx, "probe", func() (err error) {
		c, err = s.fs.conn()
		return err
	})
	if err != nil {
		return err
	}
	if !c.has(extLink) {
		return ErrServer
	}
	if !c.has(extSync) {
		s.note("the server cannot be asked to sync a file (fsync@openssh.com): an object may be lost when it loses power soon after")
	}
	name := "probe-" + mark()
	if err := s.Put(ctx, name, []byte(name)); err != nil {
		return err
	}
	again := s.Put(ctx, name, []byte("other"))
	if err := s.Delete(ctx, name); err != nil {
		return err
	}
	if !errors.Is(again, store.ErrExists) {
		return fmt.Errorf("an object can be overwritten: %w: %w", ErrServer, errors.Join(again))
	}
	return nil
}

func (s *Store) note(text string) {
	if s.config.Notify != nil {
		s.config.Notify(s.Location() + ": " + text)
	}
}

// Missing reports whether err means that there is no such directory.
func Missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
