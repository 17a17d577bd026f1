// Package files takes files out of the filesystems of a disk: it lists them,
// prints them, and copies them to a folder or into a tar archive, with owners,
// modes, times, extended attributes, hard links, devices and holes.
//
// What is read is hostile. No name leads out of the folder that is written to,
// nothing there is overwritten, and memory is bounded by a number.
package files

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/internal/export"
	"platter/internal/export/files/ext"
	"platter/internal/export/files/fat"
	"platter/internal/export/files/kernel"
	"platter/internal/export/files/tree"
)

// A Filesystem is open for reading.
type Filesystem struct {
	Root  tree.Node
	close func() error
}

// Close ends it.
func (f *Filesystem) Close() error {
	err := f.Root.Close()
	if f.close != nil {
		err = errors.Join(err, f.close())
	}
	return err
}

// A Device is what files are read from; an export.Device is one.
type Device interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// Open reads the filesystem in an extent of a device, by this program's own
// code. content is what block.Probe says of it. What cannot be read so gives
// an error that wraps tree.ErrNeedsKernel.
func Open(ctx context.Context, device Device, extent block.Extent, content string) (*Filesystem, error) {
	r := &Section{ctx, device, extent}
	var open func() (tree.Node, error)
	switch content {
	case "ext2", "ext3", "ext4":
		f, err := ext.Open(r, extent.Length)
		if err != nil {
			return nil, err
		}
		open = f.Root
	case "vfat":
		f, err := fat.Open(r, extent.Length)
		if err != nil {
			return nil, err
		}
		open = f.Root
	default:
		return nil, tree.NeedsKernel("a filesystem of %s", cmp.Or(content, "an unknown kind"))
	}
	root, err := open()
	if err != nil {
		return nil, err
	}
	return &Filesystem{Root: root}, nil
}

// OpenByKernel mounts the filesystem in an extent of a device, which takes
// writes while its journal is replayed. dir is a folder for short-lived things.
func OpenByKernel(device export.Writer, extent block.Extent, content, dir string, log func(error)) (*Filesystem, error) {
	f, err := kernel.Open(device, extent, content, dir, log)
	if err != nil {
		return nil, err
	}
	root, err := f.Root()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Filesystem{root, f.Close}, nil
}

// A Section is a part of a device as an io.ReaderAt, while its context lasts.
type Section struct {
	Context context.Context
	Device  Device
	block.Extent
}

// ReadAt reads the part.
func (s *Section) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.Length {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > s.Length-off {
		p, eof = p[:s.Length-off], io.EOF
	}
	n, err := s.Device.ReadAt(s.Context, p, s.Offset+off)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, eof
}

// Limits of a tree that is walked.
const (
	maxDepth = 1024
	maxLinks = 40 // symbolic links on the way to a path, as in the kernel
)

// Find opens what path names, from the root. Symbolic links on the way lead to
// where they would if root were the root of a system; the last one too if
// follow is set. The caller closes all the nodes, the last first: the last is
// what was found.
func Find(ctx context.Context, root tree.Node, path string, follow bool) (found []tree.Node, err error) {
	defer func() {
		if err != nil {
			closeAll(found)
			found = nil
		}
	}()
	todo, links := strings.Split(path, "/"), 0
	here := func() tree.Node {
		if len(found) == 0 {
			return root
		}
		return found[len(found)-1]
	}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if n := len(found); n > 0 {
				found[n-1].Close()
				found = found[:n-1]
			}
			continue
		}
		child, err := lookup(ctx, here(), name)
		if err != nil {
			return found, fmt.Errorf("%s: %w", path, err)
		}
		if child.Stat().Type() != unix.S_IFLNK || len(todo) == 0 && !follow {
			found = append(found, child)
			continue
		}
		target, err := child.Target(ctx)
		child.Close()
		if err != nil {
			return found, fmt.Errorf("%s: %w", path, err)
		}
		if links++; links > maxLinks || len(todo) > maxDepth {
			return found, fmt.Errorf("%s: %w", path, unix.ELOOP)
		}
		if strings.HasPrefix(target, "/") {
			closeAll(found)
			found = nil
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return found, nil
}

func closeAll(list []tree.Node) {
	for _, n := range slices.Backward(list) {
		n.Close()
	}
}

// errFound ends a search.
var errFound = errors.New("found")

func lookup(ctx context.Context, folder tree.Node, name string) (tree.Node, error) {
	if folder.Stat().Type() != unix.S_IFDIR {
		return nil, unix.ENOTDIR
	}
	var entry tree.Entry
	err := folder.Entries(ctx, func(e tree.Entry) error {
		if e.Name != name {
			return nil
		}
		entry = e
		return errFound
	})
	if err == nil {
		return nil, fs.ErrNotExist
	} else if !errors.Is(err, errFound) {
		return nil, err
	}
	return folder.Child(ctx, entry)
}

// A budget bounds what a walk keeps in memory.
type budget struct {
	left    int64 // bytes
	folders map[tree.ID]bool
}

func newBudget(memory int64) *budget { return &budget{left: memory, folders: map[tree.ID]bool{}} }

func (b *budget) take(n int) error {
	if b.left -= int64(n); b.left < 0 {
		return errors.New("more names and links than memory allows: say more with --memory, or take a folder at a time")
	}
	return nil
}

const perEntry = 96 // bytes, about, of a name beside its letters

// A visitor is told of what a walk meets. path is below what the walk began
// at, which has the empty path.
type visitor interface {
	// enter meets a node; a folder before what is in it.
	enter(ctx context.Context, path string, n tree.Node) error
	// leave ends a folder.
	leave(ctx context.Context, path string, n tree.Node) error
	// failed takes an error of one node, and returns it if it ends the walk.
	failed(path string, err error) error
}

// walk visits n and, if deep, all that is in it, by name.
func walk(ctx context.Context, b *budget, v visitor, path string, n tree.Node, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	isFolder := n.Stat().Type() == unix.S_IFDIR
	if isFolder {
		id := n.Stat().ID
		if b.folders[id] {
			return v.failed(path, tree.Damaged("the folder is in the tree twice"))
		}
		if depth > maxDepth {
			return v.failed(path, fmt.Errorf("folders are more than %d deep", maxDepth))
		}
		if err := b.take(perEntry); err != nil {
			return err
		}
		b.folders[id] = true
	}
	if err := v.enter(ctx, path, n); errors.Is(err, errSkip) {
		return nil
	} else if err != nil {
		return err
	}
	if !isFolder {
		return nil
	}
	err := children(ctx, b, n, func(e tree.Entry) error {
		at := join(path, e.Name)
		if !sound(e.Name) {
			return v.failed(at, tree.Damaged("no file can have this name"))
		}
		child, err := n.Child(ctx, e)
		if err != nil {
			return v.failed(at, err)
		}
		defer child.Close()
		return walk(ctx, b, v, at, child, depth+1)
	}, func(err error) error { return v.failed(path, err) })
	if err != nil {
		return err
	}
	return v.leave(ctx, path, n)
}

// errSkip of enter goes on behind the node.
var errSkip = errors.New("skip")

// children calls f for each name of a folder, in order. What keeps the folder
// from being read whole goes to failed; what was read of it counts.
func children(ctx context.Context, b *budget, n tree.Node, f func(tree.Entry) error, failed func(error) error) error {
	var list []tree.Entry
	var over error
	before := b.left
	err := n.Entries(ctx, func(e tree.Entry) error {
		over = b.take(perEntry + len(e.Name))
		list = append(list, e)
		return over
	})
	if over != nil || ctx.Err() != nil {
		return cmp.Or(over, err)
	}
	if err != nil {
		if err := failed(err); err != nil {
			return err
		}
	}
	slices.SortFunc(list, func(a, b tree.Entry) int { return strings.Compare(a.Name, b.Name) })
	taken := before - b.left
	for _, e := range list {
		if err := f(e); err != nil {
			return err
		}
	}
	b.left += taken
	return nil
}

// sound reports whether a name stays in its folder.
func sound(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

func join(path, name string) string { return strings.Trim(path+"/"+name, "/") }
