package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"platter/internal/export/files/tree"
)

// A Report tells what was copied.
type Report struct {
	Files   int64 `json:"files"`
	Folders int64 `json:"folders"`
	Others  int64 `json:"others"` // links, devices, …
	Bytes   int64 `json:"bytes"`  // of files, without holes
	// Failed says what is missing and why, no more than some; Missing counts
	// all.
	Failed  []string `json:"failed,omitempty"`
	Missing int64    `json:"missing"`
	// Owners were not kept, because only root can.
	NoOwners bool `json:"no_owners,omitempty"`
	// First of the errors, for its kind.
	Err error `json:"-"`
}

const maxFailed = 20

func (r *Report) fail(path string, err error) {
	r.Missing++
	if len(r.Failed) < maxFailed {
		r.Failed = append(r.Failed, fmt.Sprintf("%s: %v", path, err))
	}
	if r.Err == nil {
		r.Err = err
	}
}

// copyBuffer is how much is read at a time, in bytes.
const copyBuffer = 1 << 20

// Copy makes what n is under a name in dir, a folder that exists, or what is
// in it if the name is empty. Nothing that is there is touched. What cannot be
// read, or cannot be made here, is left out and told of.
func Copy(ctx context.Context, n tree.Node, name, dir string, memory int64) (*Report, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	b := newBudget(memory)
	c := &copier{
		top: name, dir: dir, folders: []int{fd}, owners: os.Geteuid() == 0,
		budget: b, linked: map[tree.ID]made{}, buf: make([]byte, copyBuffer), report: &Report{},
	}
	c.report.NoOwners = !c.owners
	defer c.close()
	return c.report, walk(ctx, b, c, "", n, 0)
}

// A copier makes files. The last of folders is open for the folder that is
// being filled; nobody else may enter it until it is left.
type copier struct {
	top, dir string
	folders  []int
	owners   bool
	budget   *budget
	linked   map[tree.ID]made
	buf      []byte
	report   *Report
}

// made is where a file with several names was made.
type made struct {
	path     string // below dir
	dev, ino uint64
}

func (c *copier) close() {
	for _, fd := range c.folders {
		unix.Close(fd)
	}
}

func (c *copier) here() int { return c.folders[len(c.folders)-1] }

// target is the path of a node below dir.
func (c *copier) target(p string) string {
	if c.top == "" {
		return p
	}
	return join(c.top, p)
}

func (c *copier) failed(p string, err error) error {
	if broken(err) {
		return &os.PathError{Op: "write", Path: path.Join(c.dir, c.target(p)), Err: err}
	}
	c.report.fail(c.target(p), err)
	return nil
}

// broken reports whether an error is of the target as a whole.
func broken(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) || errors.Is(err, context.Canceled)
}

func (c *copier) enter(ctx context.Context, p string, n tree.Node) error {
	name := c.target(p)
	if name == "" {
		return nil
	}
	name = path.Base(name)
	err := c.make(ctx, p, name, n)
	if err == nil {
		return nil
	}
	if err := c.failed(p, err); err != nil {
		return err
	}
	return errSkip
}

func (c *copier) make(ctx context.Context, p, name string, n tree.Node) error {
	s := n.Stat()
	if s.Type() == unix.S_IFDIR {
		return c.folder(name)
	}
	if s.Links > 1 {
		if m, ok := c.linked[s.ID]; ok {
			c.report.Others++
			return c.link(m, name)
		}
	}
	var err error
	switch s.Type() {
	case unix.S_IFREG:
		err = c.file(ctx, p, name, n)
	case unix.S_IFLNK:
		err = c.symlink(ctx, p, name, n)
	case unix.S_IFBLK, unix.S_IFCHR, unix.S_IFIFO, unix.S_IFSOCK:
		err = c.node(ctx, p, name, n)
	default:
		err = tree.Damaged("no kind of file: mode %o", s.Mode)
	}
	if err != nil || s.Links < 2 {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(c.here(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	c.linked[s.ID] = made{c.target(p), st.Dev, st.Ino}
	return c.budget.take(perEntry + len(p))
}

func (c *copier) folder(name string) error {
	if err := unix.Mkdirat(c.here(), name, 0o700); err != nil {
		return err
	}
	fd, err := unix.Openat(c.here(), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.folders = append(c.folders, fd)
	return nil
}

// leave gives a folder what it had, now that nothing more is made in it.
func (c *copier) leave(ctx context.Context, p string, n tree.Node) error {
	if c.target(p) == "" {
		return nil
	}
	fd := c.here()
	c.folders = c.folders[:len(c.folders)-1]
	defer unix.Close(fd)
	c.report.Folders++
	return c.attributes(ctx, p, n, fd)
}

// attributes gives an open file or folder its owner, mode, attributes and
// times. What does not work is told of.
func (c *copier) attributes(ctx context.Context, p string, n tree.Node, fd int) error {
	s := n.Stat()
	mode := s.Mode & 0o7777
	if c.owners {
		if err := unix.Fchown(fd, int(s.UID), int(s.GID)); err != nil {
			return c.failed(p, err)
		}
	} else {
		mode &= 0o1777 // nobody becomes the owner by running it
	}
	// Attributes may be what a mode would keep from being set.
	if err := c.xattrs(ctx, p, n, "/proc/self/fd/"+strconv.Itoa(fd), unix.Setxattr); err != nil {
		return err
	}
	err := unix.Fchmod(fd, mode)
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), times(s), 0)
	}
	if err != nil {
		return c.failed(p, err)
	}
	return nil
}

func times(s tree.Stat) []unix.Timespec {
	a, m := unix.NsecToTimespec(0), unix.NsecToTimespec(0)
	a.Sec, a.Nsec = s.Access.Unix(), int64(s.Access.Nanosecond())
	m.Sec, m.Nsec = s.Modify.Unix(), int64(s.Modify.Nanosecond())
	return []unix.Timespec{a, m}
}

func (c *copier) xattrs(ctx context.Context, p string, n tree.Node, at string, set func(string, string, []byte, int) error) error {
	list, err := n.Xattrs(ctx)
	if err != nil {
		if err := c.failed(p, err); err != nil {
			return err
		}
	}
	for _, a := range list {
		if err := set(at, a.Name, a.Value, 0); err != nil {
			if err := c.failed(p, fmt.Errorf("attribute %s: %w", a.Name, err)); err != nil {
				return err
			}
		}
	}
	return nil
}

// file makes a regular file. One that cannot be read whole is removed again.
func (c *copier) file(ctx context.Context, p, name string, n tree.Node) error {
	fd, err := unix.Openat(c.here(), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), name)
	defer out.Close()
	written, err := c.content(ctx, out, n)
	if err != nil {
		return errors.Join(err, unix.Unlinkat(c.here(), name, 0))
	}
	c.report.Files++
	c.report.Bytes += written
	return c.attributes(ctx, p, n, fd)
}

func (c *copier) content(ctx context.Context, out *os.File, n tree.Node) (written int64, err error) {
	in, err := n.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	size := n.Stat().Size
	if err := out.Truncate(size); err != nil {
		return 0, err
	}
	for off := int64(0); off < size; {
		e, err := in.Data(off)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return written, err
		}
		for off = e.Offset; off < e.End(); {
			if err := ctx.Err(); err != nil {
				return written, err
			}
			p := c.buf[:min(int64(len(c.buf)), e.End()-off)]
			if err := tree.ReadFull(in, p, off); err != nil {
				return written, err
			}
			if _, err := out.WriteAt(p, off); err != nil {
				return written, err
			}
			off, written = off+int64(len(p)), written+int64(len(p))
		}
	}
	return written, nil
}

func (c *copier) symlink(ctx context.Context, p, name string, n tree.Node) error {
	target, err := n.Target(ctx)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(target, c.here(), name); err != nil {
		return err
	}
	c.report.Others++
	return c.unopened(ctx, p, name, n)
}

// node makes a device, a pipe or a socket.
func (c *copier) node(ctx context.Context, p, name string, n tree.Node) error {
	s := n.Stat()
	if err := unix.Mknodat(c.here(), name, s.Type()|0o600, int(unix.Mkdev(s.Major, s.Minor))); err != nil {
		return err
	}
	c.report.Others++
	return c.unopened(ctx, p, name, n)
}

// unopened gives owner, mode, attributes and times to what cannot be opened
// for reading.
func (c *copier) unopened(ctx context.Context, p, name string, n tree.Node) error {
	s := n.Stat()
	fd, err := unix.Openat(c.here(), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at := "/proc/self/fd/" + strconv.Itoa(fd)
	if c.owners {
		err = unix.Fchownat(fd, "", int(s.UID), int(s.GID), unix.AT_EMPTY_PATH)
	}
	if err == nil {
		err = c.xattrs(ctx, p, n, at, unix.Setxattr)
	}
	if err == nil && s.Type() != unix.S_IFLNK {
		err = unix.Fchmodat(unix.AT_FDCWD, at, s.Mode&0o777, 0)
	}
	if err == nil {
		err = unix.UtimesNanoAt(fd, "", times(s), unix.AT_EMPTY_PATH)
	}
	return err
}

// link gives another name to what was made before. Its folder may have an
// owner by now: what has taken its place is not linked to.
func (c *copier) link(m made, name string) error {
	from, err := unix.Openat2(c.folders[0], m.path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(from)
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if st.Dev != m.dev || st.Ino != m.ino {
		return errors.New("the file that it is a link to was replaced meanwhile")
	}
	return unix.Linkat(from, "", c.here(), name, unix.AT_EMPTY_PATH)
}

// Print writes the content of a regular file, and returns its length in bytes.
func Print(ctx context.Context, n tree.Node, w io.Writer) (int64, error) {
	if kind := typeName(n.Stat().Type()); kind != "file" {
		return 0, fmt.Errorf("it is a %s, no file", kind)
	}
	in, err := n.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	return copyN(ctx, w, in, 0, n.Stat().Size, make([]byte, copyBuffer))
}

// copyN copies length bytes of a file from off on.
func copyN(ctx context.Context, w io.Writer, in io.ReaderAt, off, length int64, buf []byte) (done int64, err error) {
	for done < length {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		p := buf[:min(int64(len(buf)), length-done)]
		if err := tree.ReadFull(in, p, off+done); err != nil {
			return done, err
		}
		if _, err := w.Write(p); err != nil {
			return done, err
		}
		done += int64(len(p))
	}
	return done, nil
}
