// Package mount shows an image as files: the whole disk, each of its
// partitions, and what is known of it. The kernel's FUSE reads them, so that
// loop devices and mount work on an image that nobody has restored.
//
// Only the user who mounted it may enter: a disk is every file on it.
package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"platter/block"
	"platter/internal/export"
)

// A File is one part of a disk under a name of its own.
type File struct {
	Name string
	block.Extent
}

// Options say what to show.
type Options struct {
	Device export.Device // an export.Writer can be written to
	Files  []File
	Info   []byte // content of info.json
	Time   time.Time
	Name   string // what mount and df call it
	Log    func(error)
}

// A Mount is an image that is being shown.
type Mount struct {
	server *fuse.Server
	dir    string
}

// Open shows an image in dir, an empty directory. The Device must outlive the
// Mount.
func Open(dir string, opts Options) (*Mount, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	if len(list) > 0 {
		return nil, fmt.Errorf("mount on %s: the directory is not empty", dir)
	}
	long := 24 * time.Hour // nothing changes
	writable := isWriter(opts.Device)
	o := &fs.Options{EntryTimeout: &long, AttrTimeout: &long, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	o.MountOptions = fuse.MountOptions{
		FsName: opts.Name, Name: "platter", MaxWrite: 1 << 20, MaxReadAhead: 1 << 20, DisableXAttrs: true,
		DirectMountStrict: os.Geteuid() == 0,
		// What it says is that it took a slower way, and to standard error.
		Logger: log.New(io.Discard, "", 0),
	}
	if !writable {
		o.Options = append(o.Options, "ro")
	}
	server, err := fs.Mount(dir, &root{opts: &opts}, o)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w (is the fuse module loaded, and /dev/fuse there?)", dir, err)
	}
	return &Mount{server, dir}, nil
}

// Wait returns when somebody has unmounted it.
func (m *Mount) Wait() { m.server.Wait() }

// Close unmounts. While something still uses the files it goes away for
// newcomers at once, and Close reports it and waits for those.
func (m *Mount) Close() error {
	err := m.server.Unmount()
	if err == nil {
		return nil
	}
	if detach := unix.Unmount(m.dir, unix.MNT_DETACH); detach != nil && !errors.Is(detach, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", m.dir, errors.Join(err, detach))
	}
	return fmt.Errorf("unmount %s: it was in use, and goes when that ends: %w", m.dir, err)
}

// Detach takes the files out of their directory. They go when nobody has them
// open any more; Wait tells.
func (m *Mount) Detach() error {
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	return nil
}

func isWriter(d export.Device) bool {
	_, ok := d.(export.Writer)
	return ok
}

// root is the directory.
type root struct {
	fs.Inode
	opts *Options
}

// OnAdd makes the files.
func (r *root) OnAdd(ctx context.Context) {
	for i, f := range r.opts.Files {
		node := r.NewPersistentInode(ctx, &part{File: f, opts: r.opts}, fs.StableAttr{Mode: fuse.S_IFREG, Ino: uint64(i) + 10})
		r.AddChild(f.Name, node, false)
	}
	info := &fs.MemRegularFile{Data: r.opts.Info, Attr: fuse.Attr{Mode: 0o400}}
	info.Attr.SetTimes(nil, &r.opts.Time, &r.opts.Time)
	r.AddChild("info.json", r.NewPersistentInode(ctx, info, fs.StableAttr{Mode: fuse.S_IFREG, Ino: 2}), false)
}

// Getattr gives the directory to its owner alone.
func (r *root) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o500
	out.SetTimes(nil, &r.opts.Time, &r.opts.Time)
	return 0
}

// part is a file: a part of the disk.
type part struct {
	fs.Inode
	File
	opts *Options
}

// Getattr tells the size and mode.
func (p *part) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o400
	if isWriter(p.opts.Device) {
		out.Mode = 0o600
	}
	out.Size, out.Blocks, out.Blksize = uint64(p.Length), uint64(p.Length+511)/512, 64<<10
	out.SetTimes(nil, &p.opts.Time, &p.opts.Time)
	return 0
}

// Setattr keeps the size: a disk has one.
func (p *part) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && size != uint64(p.Length) {
		return syscall.EPERM
	}
	return p.Getattr(ctx, f, out)
}

// Open allows to keep pages in the kernel's cache. Of disks that are written
// to, parts overlap, and the cache of one would not see what another writes.
func (p *part) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if isWriter(p.opts.Device) {
		return nil, fuse.FOPEN_DIRECT_IO, 0
	}
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Read reads a part of the part.
func (p *part) Read(ctx context.Context, _ fs.FileHandle, dst []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= p.Length {
		return fuse.ReadResultData(nil), 0
	}
	dst = dst[:min(int64(len(dst)), p.Length-off)]
	if _, err := p.opts.Device.ReadAt(ctx, dst, p.Offset+off); err != nil && !errors.Is(err, io.EOF) {
		return nil, p.fail(err)
	}
	return fuse.ReadResultData(dst), 0
}

// Write writes to the overlay.
func (p *part) Write(ctx context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	w, ok := p.opts.Device.(export.Writer)
	if !ok {
		return 0, syscall.EROFS
	}
	if off >= p.Length {
		return 0, syscall.ENOSPC
	}
	data = data[:min(int64(len(data)), p.Length-off)]
	if err := w.WriteAt(ctx, data, p.Offset+off); err != nil {
		return 0, p.fail(err)
	}
	return uint32(len(data)), 0
}

// Fsync makes durable what was written.
func (p *part) Fsync(ctx context.Context, _ fs.FileHandle, _ uint32) syscall.Errno {
	if w, ok := p.opts.Device.(export.Writer); ok {
		return p.fail(w.Flush(ctx))
	}
	return 0
}

// Allocate makes ranges zero, as a discard of a loop device does.
func (p *part) Allocate(ctx context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	w, ok := p.opts.Device.(export.Writer)
	if !ok {
		return syscall.EROFS
	}
	zero := mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0
	if !zero || off > uint64(p.Length) || size > uint64(p.Length)-off {
		return syscall.EOPNOTSUPP
	}
	return p.fail(w.Zero(ctx, p.Offset+int64(off), int64(size)))
}

// Lseek finds data and holes, so that copies stay sparse.
func (p *part) Lseek(ctx context.Context, _ fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	if off >= uint64(p.Length) {
		return 0, syscall.ENXIO
	}
	at, end := p.Offset+int64(off), p.End()
	for at < end {
		list, err := p.opts.Device.Stretches(ctx, at, end-at, 2)
		if err != nil {
			return 0, p.fail(err)
		}
		for _, s := range list {
			if s.Zero == (whence == unix.SEEK_HOLE) {
				return uint64(s.Offset - p.Offset), 0
			}
			at = s.End()
		}
		if len(list) == 0 {
			break
		}
	}
	if whence == unix.SEEK_HOLE {
		return uint64(p.Length), 0
	}
	return 0, syscall.ENXIO
}

// fail logs an error, of which a reader only learns that there was one.
func (p *part) fail(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errors.Is(err, context.Canceled) {
		return syscall.EINTR
	}
	if p.opts.Log != nil {
		p.opts.Log(fmt.Errorf("mount: %s: %w", p.Name, err))
	}
	return syscall.EIO
}
