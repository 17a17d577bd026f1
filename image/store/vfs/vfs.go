// Package vfs is the small part of a file system that a directory store needs:
// a seam at which tests put faults and crashes in place of the kernel.
//
// Errors wrap those of io/fs (ErrExist, ErrNotExist, ErrPermission) or a
// syscall.Errno, and name the path.
package vfs

import (
	"errors"
	"io"
	"time"
)

// ErrNotRegular means that a path is no regular file: a symbolic link, a
// directory, a device.
var ErrNotRegular = errors.New("not a regular file")

// An FS makes the system calls. Paths are absolute and clean. It is safe for
// concurrent use.
type FS interface {
	// Create makes an empty file, mode 0600, that must not exist, to be filled
	// with size bytes by Write. Large files are kept out of the page cache.
	Create(path string, size int64) (File, error)
	// Open opens a regular file for reading. It never follows a symbolic link
	// in the last part of path.
	Open(path string) (File, error)
	// Mkdir makes a directory, mode 0700, that must not exist.
	Mkdir(path string) error
	// Rename gives a file a new name in the same directory, in one step, and
	// fails with fs.ErrExist when that name is taken.
	Rename(from, to string) error
	// Remove removes a file.
	Remove(path string) error
	// SyncDir makes the names in a directory durable: those made, those
	// changed and those removed. The directory's own name is its parent's.
	SyncDir(path string) error
	// ReadDir returns the names in a directory in order, with their kinds.
	ReadDir(path string) ([]Entry, error)
	// Stat describes what path names, without following a symbolic link in
	// its last part.
	Stat(path string) (Info, error)
	// Touch sets a directory's time of modification to now by the clock of
	// the file system, which may be another machine's, and returns it.
	Touch(path string) (time.Time, error)
}

// A File is open for writing, from Create, or for reading, from Open. One for
// reading is safe for concurrent use.
type File interface {
	// Write appends p. After an error the file's content is unknown.
	io.Writer
	// ReadAt fills p from off. It returns n < len(p) only with an error, which
	// is io.EOF at the end of the file.
	io.ReaderAt
	Stat() (Info, error)
	// Sync makes the content and length of the file durable, not its name.
	// When it fails, what was written is lost, whatever a later Sync says.
	Sync() error
	Close() error
}

// Kind says what a name stands for.
type Kind uint8

// Kinds of names.
const (
	Other Kind = iota
	Regular
	Directory
)

// An Entry is a name in a directory.
type Entry struct {
	Name string
	Kind Kind
	// Info is what Stat would say, where it came along; else nil.
	Info *Info
}

// Info describes a file or directory.
type Info struct {
	Kind     Kind
	Size     int64 // bytes
	Modified time.Time
}
