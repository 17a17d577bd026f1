package crashfs

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"platter/image/store/vfs"
)

// A node is a file or a directory, whatever names it has.
type node struct {
	modified time.Time

	// Of a file. Bytes are only ever appended, so that other file systems may
	// share them, and the whole node once it is closed.
	data    []byte
	synced  int  // how many of them are durable
	spoiled bool // a sync failed: no more become durable
	closed  bool

	// Of a directory.
	names   map[string]*node // as seen; nil for a file
	durable map[string]*node // as on disk; nil while nothing is pending
	pending []*edit          // since the last SyncDir, in order
}

// An edit is one change of a directory.
type edit struct {
	node    *node
	from    string // the name removed, if any
	to      string // the name made, if any
	spoiled bool   // a sync failed: it does not become durable
}

func (e *edit) apply(names map[string]*node) {
	if e.from != "" && names[e.from] == e.node {
		delete(names, e.from)
	}
	if e.to != "" {
		names[e.to] = e.node
	}
}

func newDir() *node {
	return &node{names: make(map[string]*node)}
}

func (n *node) edit(e *edit, now time.Time) {
	if len(n.pending) == 0 {
		n.durable = maps.Clone(n.names)
	}
	e.apply(n.names)
	n.pending = append(n.pending, e)
	n.modified = now
}

func (n *node) info() vfs.Info {
	if n.names != nil {
		return vfs.Info{Kind: vfs.Directory, Modified: n.modified}
	}
	return vfs.Info{Kind: vfs.Regular, Size: int64(len(n.data)), Modified: n.modified}
}

// Create implements vfs.FS.
func (f *FS) Create(name string, _ int64) (vfs.File, error) {
	n := new(node)
	err := f.make(Create, name, n)
	if err != nil {
		return nil, err
	}
	return &file{fs: f, node: n, path: name, writable: true}, nil
}

// Mkdir implements vfs.FS.
func (f *FS) Mkdir(name string) error { return f.make(Mkdir, name, newDir()) }

func (f *FS) make(kind Kind, name string, n *node) error {
	return f.change(kind, name, func(v verdict) error {
		if v.err != nil {
			return v.err
		}
		dir, base, err := f.parent(name)
		if err != nil {
			return err
		}
		if dir.names[base] != nil {
			return fs.ErrExist
		}
		n.modified = f.clock
		dir.edit(&edit{node: n, to: base}, f.clock)
		return nil
	})
}

// Rename implements vfs.FS.
func (f *FS) Rename(from, to string) error {
	return f.change(Rename, to, func(v verdict) error {
		if v.err != nil {
			return v.err
		}
		if path.Dir(from) != path.Dir(to) {
			return syscall.EXDEV
		}
		dir, old, err := f.parent(from)
		if err != nil {
			return err
		}
		n, base := dir.names[old], path.Base(to)
		switch {
		case n == nil:
			return fs.ErrNotExist
		case dir.names[base] != nil:
			return fs.ErrExist
		}
		dir.edit(&edit{node: n, from: old, to: base}, f.clock)
		return nil
	})
}

// Remove implements vfs.FS.
func (f *FS) Remove(name string) error {
	return f.change(Remove, name, func(v verdict) error {
		if v.err != nil {
			return v.err
		}
		dir, base, err := f.parent(name)
		if err != nil {
			return err
		}
		n := dir.names[base]
		switch {
		case n == nil:
			return fs.ErrNotExist
		case n.names != nil:
			return syscall.EISDIR
		}
		dir.edit(&edit{node: n, from: base}, f.clock)
		if f.free >= 0 {
			f.free += int64(len(n.data))
		}
		return nil
	})
}

// SyncDir implements vfs.FS.
func (f *FS) SyncDir(name string) error {
	return f.change(SyncDir, name, func(v verdict) error {
		dir, err := f.dir(name)
		if err != nil {
			return err
		}
		if v.err != nil {
			for _, e := range dir.pending {
				e.spoiled = true
			}
			return v.err
		}
		if !v.drop {
			dir.sync()
		}
		return nil
	})
}

func (n *node) sync() {
	var left []*edit
	for _, e := range n.pending {
		if e.spoiled {
			left = append(left, e)
		} else {
			e.apply(n.durable)
		}
	}
	n.pending = left
	if len(left) == 0 {
		n.durable = nil
	}
}

// Open implements vfs.FS.
func (f *FS) Open(name string) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find(name)
	if err == nil && n.names != nil {
		err = vfs.ErrNotRegular
	}
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &file{fs: f, node: n, path: name}, nil
}

// ReadDir implements vfs.FS.
func (f *FS) ReadDir(name string) ([]vfs.Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, err := f.dir(name)
	if err != nil {
		return nil, pathError("read directory", name, err)
	}
	entries := make([]vfs.Entry, 0, len(dir.names))
	for _, name := range slices.Sorted(maps.Keys(dir.names)) {
		entries = append(entries, vfs.Entry{Name: name, Kind: dir.names[name].info().Kind})
	}
	return entries, nil
}

// Stat implements vfs.FS.
func (f *FS) Stat(name string) (vfs.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find(name)
	if err != nil {
		return vfs.Info{}, pathError("stat", name, err)
	}
	return n.info(), nil
}

// Touch implements vfs.FS. It is not counted: what it changes is not kept.
func (f *FS) Touch(name string) (time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find(name)
	if err != nil {
		return time.Time{}, pathError("touch", name, err)
	}
	n.modified = f.clock
	return f.clock, nil
}

// find returns what name, an absolute path, stands for.
func (f *FS) find(name string) (*node, error) {
	if f.crashed {
		return nil, ErrCrashed
	}
	n := f.root
	for part := range strings.SplitSeq(path.Clean(name)[1:], "/") {
		switch {
		case part == "":
			continue // the root itself
		case n.names == nil:
			return nil, syscall.ENOTDIR
		case n.names[part] == nil:
			return nil, fs.ErrNotExist
		}
		n = n.names[part]
	}
	return n, nil
}

func (f *FS) dir(name string) (*node, error) {
	n, err := f.find(name)
	if err == nil && n.names == nil {
		err = syscall.ENOTDIR
	}
	return n, err
}

func (f *FS) parent(name string) (dir *node, base string, err error) {
	dir, err = f.dir(path.Dir(name))
	return dir, path.Base(name), err
}

func pathError(op Kind, path string, err error) error {
	if pe := new(fs.PathError); errors.As(err, &pe) {
		return err
	}
	return &fs.PathError{Op: string(op), Path: path, Err: err}
}

// file is an open file.
type file struct {
	fs       *FS
	node     *node
	path     string
	writable bool
}

func (h *file) Write(p []byte) (n int, err error) {
	err = h.fs.change(Write, h.path, func(v verdict) error {
		if !h.writable {
			return syscall.EBADF
		}
		n, err = len(p), v.err
		if err != nil {
			n /= 2
		}
		if free := h.fs.free; free >= 0 && int64(n) > free {
			n, err = int(free), syscall.ENOSPC
		}
		if h.fs.free >= 0 {
			h.fs.free -= int64(n)
		}
		if !v.drop {
			h.node.data = append(h.node.data, p[:n]...)
		}
		h.node.modified = h.fs.clock
		return err
	})
	if err != nil && errors.Is(err, ErrCrashed) {
		n = 0
	}
	return n, err
}

func (h *file) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	switch {
	case h.fs.crashed:
		return 0, pathError("read", h.path, ErrCrashed)
	case off < 0:
		return 0, pathError("read", h.path, syscall.EINVAL)
	case off >= int64(len(h.node.data)) && len(p) > 0:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	n := copy(p, h.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *file) Stat() (vfs.Info, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.fs.crashed {
		return vfs.Info{}, pathError("stat", h.path, ErrCrashed)
	}
	return h.node.info(), nil
}

func (h *file) Sync() error {
	return h.fs.change(Sync, h.path, func(v verdict) error {
		switch {
		case v.err != nil:
			h.node.spoiled = true
			return v.err
		case !v.drop && !h.node.spoiled:
			h.node.synced = len(h.node.data)
		}
		return nil
	})
}

func (h *file) Close() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.writable {
		h.writable, h.node.closed = false, true
	}
	return nil
}
