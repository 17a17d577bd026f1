package dir

import (
	"container/list"
	"errors"
	"sync"

	"platter/image/store/vfs"
)

// files keeps the objects read last open, so that a thousand reads of one
// segment open it once. It is safe for concurrent use.
type files struct {
	limit int
	open  func(name string) (vfs.File, error)

	mu     sync.Mutex
	byName map[string]*list.Element // of *openFile
	recent *list.List               // last used first
}

// openFile is a file and how many reads are using it. It is closed by the last
// of them once it is forgotten.
type openFile struct {
	vfs.File
	name      string
	users     int
	forgotten bool
}

func newFiles(limit int, open func(string) (vfs.File, error)) *files {
	return &files{limit: limit, open: open, byName: make(map[string]*list.Element), recent: list.New()}
}

// Acquire returns an open file, to be given back by Release.
func (c *files) Acquire(name string) (*openFile, error) {
	if f := c.lookup(name); f != nil {
		return f, nil
	}
	file, err := c.open(name)
	if err != nil {
		return nil, err
	}
	f, closing := c.insert(&openFile{File: file, name: name})
	closeAll(closing)
	return f, nil
}

func (c *files) lookup(name string) *openFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byName[name]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(e)
	f := e.Value.(*openFile)
	f.users++
	return f
}

// insert keeps f, unless another read has opened the same object meanwhile,
// and returns the one to use and those to close.
func (c *files) insert(f *openFile) (use *openFile, closing []vfs.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byName[f.name]; ok {
		closing = append(closing, f.File)
		f = e.Value.(*openFile)
	} else {
		c.byName[f.name] = c.recent.PushFront(f)
	}
	f.users++
	for c.recent.Len() > c.limit {
		if old := c.drop(c.recent.Back()); old != nil {
			closing = append(closing, old)
		}
	}
	return f, closing
}

// drop forgets e, and returns the file to close if nobody is reading it.
func (c *files) drop(e *list.Element) vfs.File {
	f := c.recent.Remove(e).(*openFile)
	delete(c.byName, f.name)
	f.forgotten = true
	if f.users > 0 {
		return nil
	}
	return f.File
}

// Release ends one use of f.
func (c *files) Release(f *openFile) {
	c.mu.Lock()
	f.users--
	last := f.forgotten && f.users == 0
	c.mu.Unlock()
	if last {
		f.Close()
	}
}

// Forget closes an object that is there no more.
func (c *files) Forget(name string) {
	c.mu.Lock()
	var old vfs.File
	if e, ok := c.byName[name]; ok {
		old = c.drop(e)
	}
	c.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// Close closes all files that nobody is reading, and lets the reads running
// close theirs.
func (c *files) Close() error {
	c.mu.Lock()
	var closing []vfs.File
	for c.recent.Len() > 0 {
		if old := c.drop(c.recent.Back()); old != nil {
			closing = append(closing, old)
		}
	}
	c.mu.Unlock()
	return closeAll(closing)
}

func closeAll(files []vfs.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
