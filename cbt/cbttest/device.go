package cbttest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/vmtests/loop"
)

// file is a regular file or a block device, opened to be written to.
type file struct {
	*os.File
	resize func(size int64) error
}

// File returns a regular file of zeros as a Device. It ends with the test.
func File(t testing.TB, size int64) Device {
	t.Helper()
	return FileAt(t, filepath.Join(t.TempDir(), "device"), size)
}

// FileAt is File, made at path.
func FileAt(t testing.TB, path string, size int64) Device {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &file{f, f.Truncate}
}

// Loop returns a loop device of zeros as a Device. It ends with the test, which
// is skipped where there are no loop devices.
func Loop(t testing.TB, size int64) Device {
	t.Helper()
	if why := loop.Unavailable(t.Context()); why != "" {
		t.Skip("SKIPPED, this needs loop devices: ", why)
	}
	backing := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(backing, nil, 0o600), os.Truncate(backing, size)); err != nil {
		t.Fatal(err)
	}
	d, err := loop.Attach(t.Context(), backing, loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	})
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	resize := func(size int64) error {
		if err := os.Truncate(backing, size); err != nil {
			return err
		}
		out, err := exec.CommandContext(t.Context(), "losetup", "--set-capacity", d.Path).CombinedOutput()
		if err != nil {
			return fmt.Errorf("losetup --set-capacity %s: %w: %s", d.Path, err, out)
		}
		return nil
	}
	return &file{f, resize}
}

// Size asks the kernel each time: another may have resized the device.
func (f *file) Size() int64 {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		panic(err) // every file and block device can
	}
	return size
}

func (f *file) Zero(e block.Extent) error {
	return f.allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, "zero", e)
}

func (f *file) Discard(e block.Extent) error {
	return f.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, "discard", e)
}

// allocate works on files and on block devices, and keeps their page cache in
// step, which the ioctls of block devices do not on all kernels.
func (f *file) allocate(mode uint32, verb string, e block.Extent) error {
	err := unix.Fallocate(int(f.Fd()), mode, e.Offset, e.Length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%s %s: %w", verb, f.Name(), errors.ErrUnsupported)
	}
	return err
}

func (f *file) Resize(size int64) error { return f.resize(size) }

// BlockDevice returns a block device as a Device. It is closed with the test.
// resize makes it another size, or says that it cannot.
func BlockDevice(t testing.TB, path string, resize func(size int64) error) Device {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &file{f, resize}
}
