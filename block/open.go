package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OpenOptions say how a device is opened for reading.
type OpenOptions struct {
	// Live opens a device even though it may be written to meanwhile.
	Live bool
}

// Open opens a whole disk, a partition, a loop device, a volume or a regular
// file for reading.
//
// It returns an error wrapping ErrInUse, which says by whom and what to do,
// when something may write to the device or a part of it, unless opts.Live.
// The Source it returns also has the methods of Observer.
func Open(path string, opts OpenOptions) (Source, error) {
	return host().open(path, opts)
}

// An Observer tells how a Source of Open is being read. It is safe for
// concurrent use.
type Observer interface {
	// Direct reports whether the device is read past the page cache.
	Direct() bool
	// Usage returns how the device was in use when it was opened.
	Usage() []Usage
	// Live reports whether something could write to the device from the start.
	Live() bool
	// Still returns nil if nothing has written to the device since it was
	// opened, as far as the kernel's counters and the file's times tell;
	// otherwise an error that says what was seen.
	Still() error
	// Moment names what the device held when it was opened: whoever opens it
	// again and gets the same name reads the same bytes. It is false where
	// nothing proves that. Still says whether it was so until the end.
	Moment() (name string, proven bool)
}

func (s system) open(path string, opts OpenOptions) (*source, error) {
	st, err := statDevice(path)
	if err != nil {
		return nil, err
	}
	used, err := s.inUse(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if w := written(used); len(w) > 0 && !opts.Live {
		return nil, refuseLive(path, w)
	}
	src := &source{path: path, system: s, usage: used}
	if err := src.open(st); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, explain(err)), src.Close())
	}
	return src, nil
}

// statDevice returns what is at path, refusing what cannot be imaged.
func statDevice(path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return st, fmt.Errorf("open %s: %w", path, explain(err))
	}
	if what := unfit(st.Mode); what != "" {
		return st, fmt.Errorf("open %s: is %s: name a disk, a partition, a volume or a disk image file", path, what)
	}
	return st, nil
}

// unfit names what is neither a block device nor a regular file.
func unfit(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFBLK, unix.S_IFREG:
		return ""
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFIFO:
		return "a pipe"
	case unix.S_IFSOCK:
		return "a socket"
	}
	return "neither a device nor a file"
}

// explain adds to an error of the system what can be done about it.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0:
		return fmt.Errorf("%w: not even root may here: a container or a security policy forbids it", cause(err))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as root, or as a user who may access it", cause(err))
	case errors.Is(err, unix.ENOMEDIUM):
		return fmt.Errorf("%w: the drive is empty", cause(err))
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: the device is gone", cause(err))
	}
	return cause(err)
}

// cause strips a PathError, whose path the caller names himself.
func cause(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// source is a device or file that is read. It implements Source and Observer.
type source struct {
	path   string
	system system
	node   node // of sysfs; zero for files
	info   Info
	usage  []Usage

	direct   *handle // opened with O_DIRECT; nil where that is refused
	buffered *handle // always there for files; for devices only without direct
	resident residency
	mark     mark
}

func (s *source) open(st unix.Stat_t) (err error) {
	regular := st.Mode&unix.S_IFMT == unix.S_IFREG
	s.direct, err = openHandle(s.path, os.O_RDONLY|unix.O_DIRECT|unix.O_NONBLOCK, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if s.direct == nil || regular {
		if s.buffered, err = openHandle(s.path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
	}
	if err := s.same(st); err != nil {
		return err
	}
	if regular {
		err = s.openFile(st)
	} else {
		err = s.openDevice(st)
	}
	if err != nil {
		return err
	}
	s.mark, err = s.observe()
	return err
}

// same checks that what was looked at for usages is what was opened.
func (s *source) same(st unix.Stat_t) error {
	for _, h := range []*handle{s.direct, s.buffered} {
		if h == nil {
			continue
		}
		now, err := h.stat()
		if err != nil {
			return err
		}
		if now.Dev != st.Dev || now.Ino != st.Ino || now.Rdev != st.Rdev {
			return errors.New("replaced by another file while it was opened")
		}
	}
	return nil
}

func (s *source) openFile(st unix.Stat_t) error {
	s.info = Info{Path: s.path, Kind: KindFile, Size: st.Size, LogicalSector: 512, PhysicalSector: 512}
	abs, err := filepath.Abs(s.path)
	if err != nil {
		return err
	}
	s.info.Name = fileName(abs)
	s.resident.open(s.buffered, st.Size)
	// Readahead would make pages look as if they had been cached before.
	_ = s.buffered.do(func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM) })
	return s.examine()
}

func (s *source) openDevice(st unix.Stat_t) (err error) {
	h := s.any()
	if s.info, err = describe(s.path, h); err != nil {
		return err
	}
	if s.info.Size == 0 {
		return errors.New("the device is empty: it has no medium, or nothing is attached to it")
	}
	if s.node, err = s.system.node(st.Rdev); err != nil {
		return err
	}
	s.system.identify(s.node, &s.info)
	return s.examine()
}

// any returns the handle that is read by.
func (s *source) any() *handle {
	if s.direct != nil {
		return s.direct
	}
	return s.buffered
}

// describe asks a block device for its sizes.
func describe(path string, h *handle) (Info, error) {
	size, err := h.deviceSize()
	if err != nil {
		return Info{}, fmt.Errorf("ask for the size: %w", err)
	}
	logical, physical, err := h.sectorSizes()
	if err != nil {
		return Info{}, fmt.Errorf("ask for the sector size: %w", err)
	}
	return Info{Path: path, Kind: KindOther, Size: size, LogicalSector: logical, PhysicalSector: physical}, nil
}

func (s *source) Info() Info     { return s.info }
func (s *source) Direct() bool   { return s.direct != nil }
func (s *source) Usage() []Usage { return s.usage }
func (s *source) Live() bool     { return len(written(s.usage)) > 0 }

func (s *source) Close() error {
	s.resident.close()
	return errors.Join(s.direct.Close(), s.buffered.Close())
}
