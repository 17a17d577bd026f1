package sftp

import (
	"errors"
	"io"
	"io/fs"
	"sync"

	"github.com/pkg/sftp"

	"platter/image/store/vfs"
)

// remoteFile is what readers and writers share.
type remoteFile struct {
	conn *conn
	file *sftp.File
	name string
}

func (f *remoteFile) Stat() (st vfs.Info, err error) {
	i, err := f.file.Stat()
	if err == nil {
		st = info(i)
	}
	return st, f.conn.judge("stat", f.name, err)
}

func (f *remoteFile) Close() error { return f.conn.judge("close", f.name, f.file.Close()) }

// A writer appends to a new file. It ends with its connection.
type writer struct{ remoteFile }

func (w *writer) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.file.ReadAt(p, off)
	return n, w.conn.judge("read", w.name, err)
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	if err != nil {
		err = w.conn.full(w.name, err)
	}
	return n, w.conn.judge("write", w.name, err)
}

// Sync relies on the server's own care where it cannot be asked.
func (w *writer) Sync() error {
	if !w.conn.has(extSync) {
		return nil
	}
	return w.conn.judge("sync", w.name, w.file.Sync())
}

// A reader opens its file again when the connection is another. Objects never
// change, so that it is the same one.
type reader struct {
	remote *remote
	name   string

	mu   sync.Mutex
	open *remoteFile
}

func (r *remote) Open(name string) (vfs.File, error) {
	f := &reader{remote: r, name: name}
	_, err := f.file()
	if err != nil {
		return nil, err
	}
	return f, nil
}

// file returns the file by the connection of the moment.
func (f *reader) file() (*remoteFile, error) {
	c, err := f.remote.conn()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open != nil && f.open.conn == c {
		return f.open, nil
	}
	// Looked at first: a pipe under the name would hold the server up.
	st, err := c.client.Lstat(f.name)
	if err == nil && !st.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: f.name, Err: vfs.ErrNotRegular}
	}
	var file *sftp.File
	if err == nil {
		file, err = c.client.Open(f.name)
	}
	if err != nil {
		return nil, c.judge("open", f.name, err)
	}
	f.open = &remoteFile{c, file, f.name}
	return f.open, nil
}

func (f *reader) Write([]byte) (int, error) { return 0, fs.ErrInvalid }
func (f *reader) Sync() error               { return fs.ErrInvalid }

func (f *reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: fs.ErrInvalid}
	}
	file, err := f.file()
	if err != nil {
		return 0, err
	}
	n, err := file.file.ReadAt(p, off)
	if n < len(p) && errors.Is(err, io.EOF) {
		return n, file.ended(off + int64(len(p)))
	}
	if n == len(p) {
		err = nil
	}
	return n, file.conn.judge("read", f.name, err)
}

// ended tells the end of the file from that of the connection.
func (f *remoteFile) ended(wanted int64) error {
	st, err := f.Stat()
	if err == nil && st.Size >= wanted {
		err = f.conn.judge("read", f.name, io.ErrUnexpectedEOF)
	}
	if err == nil {
		err = io.EOF
	}
	return err
}

func (f *reader) Stat() (vfs.Info, error) {
	file, err := f.file()
	if err != nil {
		return vfs.Info{}, err
	}
	return file.Stat()
}

func (f *reader) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil || !f.open.conn.alive() {
		return nil
	}
	return f.open.Close()
}
