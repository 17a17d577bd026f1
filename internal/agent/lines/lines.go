// Package lines keeps files of lines that several processes append to.
//
// A line is there whole or not at all: what a crash left of one is cut off
// before the next is written, and no reader sees it. Files belong to their
// owner alone (0600), whatever the umask is.
package lines

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"platter/internal/durable"
)

// A File is open for writing. No other process has it open at the same time.
type File struct {
	path string
	file *os.File
	lock *os.File
	size int64 // of whole lines, in bytes
}

const lockSuffix = ".lock"

// Open opens the file at path for writing, makes it and its folder where they
// are missing, and waits for any other process that has it open.
func Open(path string) (*File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path+lockSuffix, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, lock: lock}
	if err := wait(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
	}
	if err := f.open(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// wait takes the lock, which goes with the process.
func wait(lock *os.File) error {
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f *File) open() (err error) {
	_, missing := os.Stat(f.path)
	if f.file, err = os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600); err != nil {
		return err
	}
	if missing != nil {
		if err := durable.SyncDir(filepath.Dir(f.path)); err != nil {
			return err
		}
	}
	return f.cut()
}

// cut takes off what a crash left of a line. Nobody was told that it is there.
func (f *File) cut() error {
	end, err := f.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const step = 64 << 10
	for at := end; at > 0; {
		from := max(at-step, 0)
		b := make([]byte, at-from)
		if _, err := f.file.ReadAt(b, from); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			f.size = from + int64(i) + 1
			break
		}
		at = from
	}
	if f.size == end {
		return nil
	}
	return f.file.Truncate(f.size)
}

// Close lets others have the file.
func (f *File) Close() error {
	var err error
	if f.file != nil {
		err = f.file.Close()
	}
	return errors.Join(err, f.lock.Close())
}

// Size returns the bytes that the file takes.
func (f *File) Size() int64 { return f.size }

// Lines returns all lines, without their ends.
func (f *File) Lines() ([][]byte, error) {
	b := make([]byte, f.size)
	if _, err := f.file.ReadAt(b, 0); err != nil {
		return nil, err
	}
	return split(b), nil
}

// Append adds a line, which must not hold a line's end. It is durable when
// Append returns without an error, and else not there.
func (f *File) Append(line []byte) error {
	if bytes.IndexByte(line, '\n') >= 0 {
		return fmt.Errorf("append to %s: a line within a line", f.path)
	}
	line = append(bytes.Clone(line), '\n')
	_, err := f.file.WriteAt(line, f.size)
	if err == nil {
		err = f.file.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("append to %s: %w", f.path, err), f.file.Truncate(f.size))
	}
	f.size += int64(len(line))
	return nil
}

// Replace puts lines in place of all there are, in one step.
func (f *File) Replace(list [][]byte) error {
	var b []byte
	for _, line := range list {
		b = append(append(b, line...), '\n')
	}
	if err := durable.Replace(f.path, b); err != nil {
		return err
	}
	if err := f.file.Close(); err != nil {
		return err
	}
	f.size = 0
	return f.open()
}

// Last returns the last line, nil where there is none.
func (f *File) Last() ([]byte, error) {
	const most = 1 << 20
	from := max(0, f.size-most)
	b := make([]byte, f.size-from)
	if _, err := f.file.ReadAt(b, from); err != nil {
		return nil, err
	}
	list := split(b)
	if len(list) == 0 {
		return nil, nil
	}
	return list[len(list)-1], nil
}

// Rename gives the file another name in its folder, and begins an empty one.
func (f *File) Rename(name string) error {
	if err := os.Rename(f.path, filepath.Join(filepath.Dir(f.path), name)); err != nil {
		return err
	}
	if err := f.file.Close(); err != nil {
		return err
	}
	f.size = 0
	return f.open()
}

// Read returns the whole lines of the file at path as they are at this moment,
// none where there is no file.
func Read(path string) ([][]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return split(b), err
}

// split returns the lines that have an end.
func split(b []byte) (list [][]byte) {
	for {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return list
		}
		list, b = append(list, line), rest
	}
}
