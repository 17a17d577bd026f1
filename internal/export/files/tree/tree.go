// Package tree says what a filesystem is to those who take files out of it: a
// tree of nodes that can be read, whoever reads the disk below.
//
// All that a filesystem says is hostile: names, sizes and links are what bytes
// on a disk claim.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
)

// ErrDamaged means that a filesystem's records contradict themselves.
var ErrDamaged = errors.New("the filesystem is damaged")

// ErrNeedsKernel means that only the kernel can read this.
var ErrNeedsKernel = errors.New("only the kernel reads this")

// Damaged is an error of a place in a filesystem.
func Damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// NeedsKernel says what is not understood here.
func NeedsKernel(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNeedsKernel, fmt.Sprintf(format, args...))
}

// An ID tells nodes of one filesystem apart. Names with one ID are hard links.
type ID [2]uint64

// Stat is what a node says of itself.
type Stat struct {
	ID           ID
	Mode         uint32 // type and permissions, as stat(2) has them
	UID, GID     uint32
	Links        uint32
	Size         int64  // bytes
	Major, Minor uint32 // of a device
	Access       time.Time
	Modify       time.Time
}

// Type is the node's type, such as unix.S_IFDIR.
func (s Stat) Type() uint32 { return s.Mode & unix.S_IFMT }

// An Entry is a name in a folder. Ref is for the Node it came from.
type Entry struct {
	Name string
	Ref  uint64
}

// An Xattr is an extended attribute under the name that getfattr shows.
type Xattr struct {
	Name  string
	Value []byte
}

// A Node is a file, folder or anything else that has a name.
type Node interface {
	Stat() Stat
	// Entries calls f for each name in a folder but "." and "..", in no order.
	Entries(ctx context.Context, f func(Entry) error) error
	// Child returns what an entry of a folder names. The folder must stay open
	// while the child is.
	Child(ctx context.Context, e Entry) (Node, error)
	// Target is where a symbolic link points to.
	Target(ctx context.Context) (string, error)
	Xattrs(ctx context.Context) ([]Xattr, error)
	// Open opens a regular file, which must be closed before the node.
	Open(ctx context.Context) (File, error)
	Close() error
}

// A File is the content of a regular file. Like a Node it belongs to one
// goroutine.
type File interface {
	io.ReaderAt
	io.Closer
	// Data returns the first range at or after off that may hold anything but
	// zeros, within the file's size. It returns io.EOF when there is none.
	Data(off int64) (block.Extent, error)
}

// ReadFull reads all of p, or says where the filesystem ends too early.
func ReadFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return Damaged("%d bytes at %d reach beyond its end", len(p), off)
	}
	return err
}
