// Package kernel reads files of a filesystem by the running kernel, which
// parses it: of filesystems that nobody trusts a bad one may harm the machine.
//
// The filesystem is mounted where nobody sees it: it has no place in any
// folder, and goes when it is closed or the process ends. Only this process
// has it. The device below takes writes, so that a journal can be replayed;
// the mount does not.
package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/internal/export"
	"platter/internal/export/files/tree"
	"platter/internal/export/mount"
)

// Types are the filesystems that are mounted by a name of the kernel's, and
// with what flags and options.
func options(content string) (fstype string, list []string) {
	switch content {
	case "xfs":
		return "xfs", []string{"nouuid"} // the disk itself may be mounted
	case "vfat":
		return "vfat", []string{"utf8"}
	case "ntfs":
		return "ntfs3", nil
	}
	return content, nil
}

// An FS is a filesystem that is mounted.
type FS struct {
	shown    *mount.Mount
	loop     *os.File
	root     int // open folder
	writable bool
}

// Open mounts what an extent of a device holds, content as blkid names it, for
// reading. dir is a folder for something of this process's life.
func Open(device export.Writer, extent block.Extent, content, dir string, log func(error)) (*FS, error) {
	return openFS(device, extent, content, dir, log, false)
}

// OpenWritable is Open for one that changes files. All that was written is on
// the device when Close returns without an error.
func OpenWritable(device export.Writer, extent block.Extent, content, dir string, log func(error)) (*FS, error) {
	return openFS(device, extent, content, dir, log, true)
}

func openFS(device export.Writer, extent block.Extent, content, dir string, log func(error), writable bool) (_ *FS, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("only root can have the kernel read a filesystem")
	}
	at, err := os.MkdirTemp(dir, "platter-files-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(at)
	const name = "filesystem"
	shown, err := mount.Open(at, mount.Options{Device: device, Files: []mount.File{{Name: name, Extent: extent}}, Name: "platter-files", Log: log})
	if err != nil {
		return nil, err
	}
	f := &FS{shown: shown, root: -1, writable: writable}
	backing, err := os.OpenFile(at+"/"+name, os.O_RDWR, 0)
	err = errors.Join(err, shown.Detach())
	if err == nil {
		f.loop, err = Attach(backing)
		backing.Close()
	}
	if err == nil {
		f.root, err = attached(f.loop.Name(), content, writable)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Attach makes a file a loop device, which ends with the last who has it open.
func Attach(backing *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // another took it meanwhile
			return nil, fmt.Errorf("set up %s: %w", loop.Name(), err)
		}
	}
}

// attached mounts a device, and returns its root, open.
func attached(path, content string, writable bool) (int, error) {
	fstype, extra := options(content)
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("this kernel has no driver for %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetString(fs, "source", path)
	attributes := unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOATIME
	if !writable {
		attributes |= unix.MOUNT_ATTR_RDONLY
		err = errors.Join(err, unix.FsconfigSetFlag(fs, "ro"))
	}
	if writable && fstype == "btrfs" { // all subvolumes, not the one that is meant to be seen
		err = errors.Join(err, unix.FsconfigSetString(fs, "subvolid", "5"))
	}
	for _, o := range extra {
		err = errors.Join(err, unix.FsconfigSetFlag(fs, o))
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, fmt.Errorf("the kernel does not mount it as %s: %w%s", fstype, err, said(fs))
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return -1, fmt.Errorf("mount: %w", err)
	}
	defer unix.Close(mnt)
	return unix.Openat(mnt, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// said is why the kernel did not mount, as far as it tells.
func said(fs int) string {
	b := make([]byte, 1024)
	var list []string
	for {
		n, err := unix.Read(fs, b)
		if err != nil || n <= 0 {
			break
		}
		list = append(list, string(bytes.TrimSpace(b[:n])))
	}
	if len(list) == 0 {
		return ""
	}
	return ": " + strings.Join(list, ", ")
}

// Close unmounts.
func (f *FS) Close() (err error) {
	if f.root >= 0 {
		if f.writable {
			if err = unix.Syncfs(f.root); err != nil {
				err = fmt.Errorf("write back a filesystem: %w", err)
			}
		}
		unix.Close(f.root)
	}
	if f.loop != nil {
		f.loop.Close()
	}
	f.shown.Wait()
	return err
}

// Folder is the root folder, open until Close.
func (f *FS) Folder() int { return f.root }

// Root returns the root folder.
func (f *FS) Root() (tree.Node, error) { return open(f.root, ".") }

// A node is open by its path only, until something is read of it.
type node struct {
	fd   int    // O_PATH
	path string // by which it can be opened for reading
	st   tree.Stat
}

// open opens what a folder has under a name.
func open(folder int, name string) (*node, error) {
	fd, err := unix.Openat(folder, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	n := &node{fd: fd, path: "/proc/self/fd/" + strconv.Itoa(fd)}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK { // an open link cannot be asked
		n.path = fmt.Sprintf("/proc/self/fd/%d/%s", folder, name)
	}
	n.st = tree.Stat{
		ID:   tree.ID{st.Ino, uint64(st.Dev_major)<<32 | uint64(st.Dev_minor)},
		Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Links: st.Nlink, Size: int64(st.Size),
		Major: st.Rdev_major, Minor: st.Rdev_minor,
		Access: time.Unix(st.Atime.Sec, int64(st.Atime.Nsec)), Modify: time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)),
	}
	return n, nil
}

func (n *node) Stat() tree.Stat { return n.st }
func (n *node) Close() error    { return unix.Close(n.fd) }

func (n *node) Child(_ context.Context, e tree.Entry) (tree.Node, error) {
	child, err := open(n.fd, e.Name)
	if err != nil {
		return nil, err
	}
	return child, nil
}

func (n *node) Entries(ctx context.Context, f func(tree.Entry) error) error {
	dir, err := os.Open(n.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if err := f(tree.Entry{Name: name}); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return ctx.Err()
		} else if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
	}
}

func (n *node) Target(context.Context) (string, error) {
	b := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", b)
	if err != nil {
		return "", err
	}
	return string(b[:size]), nil
}

func (n *node) Xattrs(context.Context) ([]tree.Xattr, error) {
	list, get := unix.Listxattr, unix.Getxattr
	if n.st.Type() == unix.S_IFLNK {
		list, get = unix.Llistxattr, unix.Lgetxattr
	}
	names, err := grow(func(b []byte) (int, error) { return list(n.path, b) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []tree.Xattr
	for _, name := range strings.Split(strings.TrimRight(string(names), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.SGI_ACL_") { // XFS shows ACLs twice
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return get(n.path, name, b) })
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		all = append(all, tree.Xattr{Name: name, Value: value})
	}
	return all, nil
}

func grow(read func([]byte) (int, error)) ([]byte, error) {
	size, err := read(nil)
	if err != nil || size == 0 {
		return nil, err
	}
	b := make([]byte, size)
	size, err = read(b)
	return b[:max(size, 0)], err
}

func (n *node) Open(context.Context) (tree.File, error) {
	f, err := os.Open(n.path)
	if err != nil {
		return nil, err
	}
	return &file{f}, nil
}

type file struct{ *os.File }

func (f *file) Data(off int64) (block.Extent, error) {
	from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return block.Extent{}, io.EOF
	} else if err != nil {
		return block.Extent{}, err
	}
	to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	if err != nil {
		return block.Extent{}, err
	}
	return block.Extent{Offset: from, Length: to - from}, nil
}
