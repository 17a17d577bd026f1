package sftp

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pkg/sftp"

	"platter/image/store/vfs"
)

// Extensions of the protocol, as servers name them.
const (
	extLink = "hardlink@openssh.com"
	extSync = "fsync@openssh.com"
)

// errLost: the connection ended, and nobody knows what became of the request.
var errLost = errors.New("connection lost")

func lost(err error) bool { return errors.Is(err, errLost) }

// A remote is the file system of an SFTP server. Requests fail with errLost
// when the connection does; the next makes a new one.
type remote struct {
	config *Config
	unsync atomic.Bool // it does not sync directories

	mu      sync.Mutex
	current *conn
	dialing *dialing
	closed  bool
}

// A dialing is one try to connect, for all who wait for it.
type dialing struct {
	done chan struct{}
	conn *conn
	err  error
}

var _ vfs.FS = (*remote)(nil)

func newRemote(c *Config) *remote { return &remote{config: c} }

// conn returns a connection that was alive a moment ago.
func (r *remote) conn() (*conn, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, fs.ErrClosed
	}
	if c := r.current; c != nil && c.alive() {
		r.mu.Unlock()
		return c, nil
	}
	d := r.dialing
	if d != nil {
		r.mu.Unlock()
		<-d.done
		return d.conn, d.err
	}
	d = &dialing{done: make(chan struct{})}
	old := r.current
	r.current, r.dialing = nil, d
	r.mu.Unlock()
	if old != nil {
		old.end()
	}
	d.conn, d.err = dial(r.config)
	r.mu.Lock()
	r.current, r.dialing = d.conn, nil
	if r.closed && d.conn != nil {
		d.conn.end()
		r.current, d.conn, d.err = nil, nil, fs.ErrClosed
	}
	r.mu.Unlock()
	close(d.done)
	return d.conn, d.err
}

func (r *remote) close() {
	r.mu.Lock()
	c := r.current
	r.current, r.closed = nil, true
	r.mu.Unlock()
	if c != nil {
		c.end()
	}
}

// ask makes one request. What is no answer of the server's is the connection's
// end.
func (r *remote) ask(op, name string, f func(*conn) error) error {
	c, err := r.conn()
	if err != nil {
		return err
	}
	return c.judge(op, name, f(c))
}

// judge says what an error of the client is. io.EOF is what it gives for a
// connection that ended while it was written to.
func (c *conn) judge(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err
	}
	if !answered(err) {
		c.close()
		err = fmt.Errorf("%w: %s", errLost, err)
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// answered reports whether an error is what the server said, or what was made
// of that.
func answered(err error) bool {
	for _, e := range []error{fs.ErrNotExist, fs.ErrPermission, fs.ErrExist, fs.ErrInvalid, syscall.ENOSPC, vfs.ErrNotRegular, ErrServer} {
		if errors.Is(err, e) {
			return true
		}
	}
	status := (*sftp.StatusError)(nil)
	return errors.As(err, &status)
}

// taken finds out whether a failed request met a name that exists already:
// servers say no more than that it failed. So it is with a full disk.
func (c *conn) taken(name string, err error) error {
	var status *sftp.StatusError
	if !errors.As(err, &status) {
		return err
	}
	_, look := c.client.Lstat(name)
	if look == nil {
		return fs.ErrExist
	}
	if !errors.Is(look, fs.ErrNotExist) {
		return look
	}
	return c.full(path.Dir(name), err)
}

// full makes ENOSPC of a failure where there is no space left.
func (c *conn) full(dir string, err error) error {
	var status *sftp.StatusError
	if !errors.As(err, &status) || !c.has("statvfs@openssh.com") {
		return err
	}
	if st, look := c.client.StatVFS(dir); look == nil && (st.Bavail < 16 || st.Files > 0 && st.Favail == 0) {
		return syscall.ENOSPC
	}
	return err
}

func (r *remote) realPath(name string) (found string, err error) {
	err = r.ask("find", name, func(c *conn) (err error) {
		// Of a path that does not exist some servers do not tell.
		if !path.IsAbs(name) {
			home, err := c.client.RealPath(".")
			found = path.Join(home, name)
			return err
		}
		found = name
		return nil
	})
	return found, err
}

func (r *remote) Create(name string, _ int64) (vfs.File, error) {
	var file *writer
	err := r.ask("create", name, func(c *conn) error {
		f, err := c.client.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
		if err != nil {
			return c.taken(name, err)
		}
		file = &writer{remoteFile{c, f, name}}
		return f.Chmod(0o600)
	})
	if err != nil {
		return nil, err
	}
	return file, nil
}

func (r *remote) Mkdir(name string) error {
	return r.ask("mkdir", name, func(c *conn) error {
		if err := c.client.Mkdir(name); err != nil {
			return c.taken(name, err)
		}
		return c.client.Chmod(name, 0o700)
	})
}

// Rename gives the file a second name, and takes the first away: that never
// replaces a file, whoever else is at it.
func (r *remote) Rename(from, to string) error {
	return r.ask("rename", to, func(c *conn) error {
		if !c.has(extLink) {
			return fmt.Errorf("%w: %w", ErrServer, sftp.ErrSSHFxOpUnsupported)
		}
		if err := c.client.Link(from, to); err != nil {
			return c.taken(to, err)
		}
		return c.client.Remove(from)
	})
}

func (r *remote) Remove(name string) error {
	return r.ask("remove", name, func(c *conn) error {
		st, err := c.client.Lstat(name)
		if err == nil && st.IsDir() { // which the client would remove as well
			return &sftp.StatusError{Code: uint32(sftp.ErrSSHFxFailure)}
		}
		if err != nil {
			return err
		}
		return c.client.Remove(name)
	})
}

// SyncDir opens the directory as if it were a file, which OpenSSH allows, and
// syncs that. Where a server does not, the file system's own order must do.
func (r *remote) SyncDir(name string) error {
	return r.ask("sync", name, func(c *conn) error {
		if r.unsync.Load() || !c.has(extSync) {
			_, err := c.client.Lstat(name)
			return err
		}
		f, err := c.client.Open(name)
		var status *sftp.StatusError
		if errors.As(err, &status) {
			if _, err := c.client.Lstat(name); err != nil {
				return err
			}
			r.unsync.Store(true)
			return nil
		}
		if err != nil {
			return err
		}
		err = f.Sync()
		if e := f.Close(); err == nil {
			err = e
		}
		return err
	})
}

func (r *remote) ReadDir(name string) (entries []vfs.Entry, err error) {
	err = r.ask("list", name, func(c *conn) error {
		list, err := c.client.ReadDir(name)
		for _, e := range list {
			st := info(e)
			entries = append(entries, vfs.Entry{Name: e.Name(), Kind: st.Kind, Info: &st})
		}
		return err
	})
	return entries, err
}

func (r *remote) Stat(name string) (st vfs.Info, err error) {
	err = r.ask("stat", name, func(c *conn) error {
		i, err := c.client.Lstat(name)
		if err == nil {
			st = info(i)
		}
		return err
	})
	return st, err
}

// Touch makes a file and takes it away again: its time is the server's.
func (r *remote) Touch(name string) (now time.Time, err error) {
	temp := name + "/.tmp-" + mark()
	f, err := r.Create(temp, 0)
	if err != nil {
		return now, err
	}
	st, err := f.Stat()
	return st.Modified, errors.Join(err, f.Close(), r.Remove(temp))
}

func info(i fs.FileInfo) vfs.Info {
	st := vfs.Info{Size: i.Size(), Modified: i.ModTime()}
	switch {
	case i.Mode().IsRegular():
		st.Kind = vfs.Regular
	case i.IsDir():
		st.Kind = vfs.Directory
	}
	return st
}

func mark() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
