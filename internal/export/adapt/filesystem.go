package adapt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
	"platter/internal/export/files"
	"platter/internal/export/files/fat"
	"platter/internal/export/files/tree"
)

// An entry is a name in a folder.
type entry struct {
	name string
	kind uint32 // unix.S_IFREG and so on
	size int64
}

// A filesystem is one whose files are changed. Paths begin at its root, and links
// in them lead nowhere else.
type filesystem interface {
	list(dir string) ([]entry, error)        // by name
	open(path string) (file, int64, error)   // a regular file, and its size
	write(path string, body []byte) error    // all of a file; folders are made
	appendTo(path string, body []byte) error // at the end of a file
	remove(path string) error                // a file
}

type file interface {
	io.ReaderAt
	io.Closer
}

// maxText is how large a file of configuration can be, in bytes.
const maxText = 4 << 20

// read returns all of a file.
func read(f filesystem, path string, most int64) ([]byte, error) {
	from, size, err := f.open(path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if size > most {
		return nil, fmt.Errorf("%s has %d bytes, which is more than it should: %w", path, size, fs.ErrInvalid)
	}
	b := make([]byte, size)
	if n, err := from.ReadAt(b, 0); int64(n) < size {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// exists reports whether there is a regular file.
func exists(f filesystem, path string) bool {
	from, _, err := f.open(path)
	if err == nil {
		from.Close()
	}
	return err == nil
}

// glob returns the regular files that a pattern names, in which * stands for
// part of a name.
func glob(f filesystem, pattern string) (found []string) {
	dirs := []string{"/"}
	parts := strings.Split(strings.Trim(pattern, "/"), "/")
	for i, part := range parts {
		var next []string
		for _, dir := range dirs {
			if !strings.Contains(part, "*") && i < len(parts)-1 {
				next = append(next, path.Join(dir, part))
				continue
			}
			list, _ := f.list(dir)
			for _, e := range list {
				ok, _ := path.Match(strings.ToLower(part), strings.ToLower(e.name))
				if ok && (i == len(parts)-1) == (e.kind == unix.S_IFREG) {
					next = append(next, path.Join(dir, e.name))
				}
			}
		}
		dirs = next
	}
	return dirs
}

// kernelFS is a folder of what the kernel has mounted, as if it were the root.
type kernelFS struct{ folder int }

func (k *kernelFS) openat(path string, flags uint64, mode uint64) (int, error) {
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NOCTTY | unix.O_NONBLOCK
	}
	fd, err := unix.Openat2(k.folder, "./"+path, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Mode: mode,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	return fd, nil
}

// regular opens a file, and nothing else.
func (k *kernelFS) regular(path string, flags uint64) (*os.File, int64, error) {
	// Opening a device or a pipe would do something: it is looked at before.
	look, err := k.openat(path, unix.O_PATH, 0)
	if err != nil {
		return nil, 0, err
	}
	var st unix.Stat_t
	err = unix.Fstat(look, &st)
	unix.Close(look)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.EINVAL
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s is no file: %w", path, err)
	}
	fd, err := k.openat(path, flags, 0)
	if err != nil {
		return nil, 0, err
	}
	return os.NewFile(uintptr(fd), path), st.Size, nil
}

func (k *kernelFS) open(path string) (file, int64, error) {
	f, size, err := k.regular(path, unix.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	return f, size, nil
}

// maxEntries bounds a folder that is looked at.
const maxEntries = 20_000

func (k *kernelFS) list(dir string) (list []entry, err error) {
	fd, err := k.openat(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), dir)
	defer d.Close()
	names, err := d.Readdirnames(maxEntries)
	if err != nil && err != io.EOF {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, fmt.Errorf("%s/%s: %w", dir, name, err)
		}
		list = append(list, entry{name, st.Mode & unix.S_IFMT, st.Size})
	}
	return list, nil
}

func (k *kernelFS) write(name string, body []byte) error {
	f, _, err := k.regular(name, unix.O_WRONLY|unix.O_TRUNC)
	if missing(err) {
		if err := k.makeFolder(path.Dir(name)); err != nil {
			return err
		}
		fd, err := k.openat(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
	} else if err != nil {
		return err
	}
	return finished(f, body)
}

// finished writes, and does not trust a filesystem to have room for what was
// not written back.
func finished(f *os.File, body []byte) error {
	_, err := f.Write(body)
	return errors.Join(err, f.Sync(), f.Close())
}

func (k *kernelFS) makeFolder(dir string) error {
	fd, err := k.openat(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return unix.Close(fd)
	}
	if !missing(err) || dir == "/" || dir == "." {
		return err
	}
	if err := k.makeFolder(path.Dir(dir)); err != nil {
		return err
	}
	if fd, err = k.openat(path.Dir(dir), unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Mkdirat(fd, path.Base(dir), 0o755)
}

func (k *kernelFS) appendTo(path string, body []byte) error {
	f, _, err := k.regular(path, unix.O_WRONLY|unix.O_APPEND)
	if err != nil {
		return err
	}
	return finished(f, body)
}

func (k *kernelFS) remove(name string) error {
	fd, err := k.openat(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Unlinkat(fd, path.Base(name), 0)
}

// below is a folder as if it were the root. It is closed by its close.
func (k *kernelFS) below(dir string) (*kernelFS, error) {
	fd, err := k.openat(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &kernelFS{fd}, nil
}

// fatFS is a FAT filesystem, which knows no case.
type fatFS struct {
	a *adapter
	v *volume
}

// find returns the node of a path, and the path as it is written there.
func (f *fatFS) find(name string) (tree.Node, string, error) {
	r := &files.Section{Context: f.a.ctx, Device: f.v.device, Extent: f.v.extent}
	disk, err := fat.Open(r, f.v.extent.Length)
	if err != nil {
		return nil, "", err
	}
	node, err := disk.Root()
	if err != nil {
		return nil, "", err
	}
	real := "/"
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		if part == "" {
			continue
		}
		var found *tree.Entry
		if node.Stat().Type() == unix.S_IFDIR {
			err = entries(f.a.ctx, node, func(e tree.Entry) {
				if found == nil && strings.EqualFold(e.Name, part) {
					found = &e
				}
			})
		}
		if err != nil {
			return nil, "", err
		}
		if found == nil {
			return nil, "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		if node, err = node.Child(f.a.ctx, *found); err != nil {
			return nil, "", err
		}
		real = path.Join(real, found.Name)
	}
	return node, real, nil
}

// entries calls f for the names of a folder, of which there may not be too many.
func entries(ctx context.Context, n tree.Node, f func(tree.Entry)) error {
	count := 0
	return n.Entries(ctx, func(e tree.Entry) error {
		if count++; count > maxEntries {
			return tree.Damaged("a folder has more than %d names", maxEntries)
		}
		f(e)
		return nil
	})
}

func (f *fatFS) open(name string) (file, int64, error) {
	n, _, err := f.find(name)
	if err != nil {
		return nil, 0, err
	}
	if n.Stat().Type() != unix.S_IFREG {
		return nil, 0, fmt.Errorf("%s is no file: %w", name, unix.EINVAL)
	}
	from, err := n.Open(f.a.ctx)
	if err != nil {
		return nil, 0, err
	}
	return from, n.Stat().Size, nil
}

func (f *fatFS) list(dir string) (list []entry, err error) {
	n, _, err := f.find(dir)
	if err != nil {
		return nil, err
	}
	if n.Stat().Type() != unix.S_IFDIR {
		return nil, fmt.Errorf("%s: %w", dir, unix.ENOTDIR)
	}
	err = entries(f.a.ctx, n, func(e tree.Entry) {
		child, err := n.Child(f.a.ctx, e)
		if err == nil {
			list = append(list, entry{e.Name, child.Stat().Type(), child.Stat().Size})
		}
	})
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return list, err
}

// plainName are names that mtools takes for what they are, without patterns.
var plainName = regexp.MustCompile(`^[/A-Za-z0-9._+~@ -]*$`)

func (f *fatFS) write(name string, body []byte) error {
	// As it is written there, as far as it is there.
	real, rest := "/", ""
	for at := path.Clean("/" + name); ; at = path.Dir(at) {
		_, found, err := f.find(at)
		if err == nil {
			real = found
			break
		}
		if !missing(err) || at == "/" {
			return err
		}
		rest = path.Join(path.Base(at), rest)
	}
	full := path.Join(real, rest)
	if !plainName.MatchString(full) {
		return fmt.Errorf("%q: %w: mtools takes such a name for a pattern", full, fs.ErrInvalid)
	}
	from := filepath.Join(f.a.dir, "body")
	if err := os.WriteFile(from, body, 0o600); err != nil {
		return err
	}
	defer os.Remove(from)
	return f.a.asFile(f.v, func(image string) error {
		for dir := real; rest != "" && strings.Contains(rest, "/"); {
			first, more, _ := strings.Cut(rest, "/")
			dir, rest = path.Join(dir, first), more
			if err := mtools(f.a.ctx, "mmd", "-i", image, "::"+dir); err != nil {
				return err
			}
		}
		return mtools(f.a.ctx, "mcopy", "-o", "-i", image, from, "::"+full)
	})
}

func (f *fatFS) appendTo(name string, body []byte) error {
	old, err := read(f, name, 1<<30)
	if err != nil {
		return err
	}
	return f.write(name, append(old, body...))
}

func (f *fatFS) remove(name string) error {
	_, real, err := f.find(name)
	if err != nil {
		return err
	}
	if !plainName.MatchString(real) {
		return fmt.Errorf("%q: %w: mtools takes such a name for a pattern", real, fs.ErrInvalid)
	}
	return f.a.asFile(f.v, func(image string) error { return mtools(f.a.ctx, "mdel", "-i", image, "::"+real) })
}

// mtools runs one of them.
func mtools(ctx context.Context, name string, args ...string) error {
	_, err := command.Run(ctx, name, args...)
	return err
}

// needs says which package has a tool that is not there.
func needs(tool, pkg, what string) error {
	if _, err := command.Find(tool); err != nil {
		return refuse(fmt.Sprintf("%s needs %s, which is not installed", what, tool), "install Debian's package "+pkg)
	}
	return nil
}

func isText(b []byte) bool { return !bytes.ContainsRune(b, 0) }

var _ block.Disk = raw{}
