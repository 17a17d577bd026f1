package rounds

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const sector = 512

// A device is open to be written to, past nobody's back.
type device struct {
	*os.File
	size int64
}

func (w *world) device() *device {
	w.Helper()
	f, err := os.OpenFile(w.stack.path, os.O_RDWR, 0)
	w.must(err)
	size, err := f.Seek(0, 2)
	w.must(err)
	return &device{f, size}
}

// settle writes back all that is in the kernel's cache and forgets it.
func (d *device) settle() error {
	return errors.Join(d.Sync(), unix.IoctlSetInt(int(d.Fd()), unix.BLKFLSBUF, 0))
}

// erase makes zeros, or gives back, as far as the device can.
func (d *device) erase(mode uint32, off, length int64) error {
	err := unix.Fallocate(int(d.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return d.settle()
	}
	return err
}

// read returns all that a device holds, from the device.
func (w *world) read(path string) []byte {
	w.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	w.must(err)
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	size, err := f.Seek(0, 2)
	w.must(err)
	buf, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	w.must(err)
	w.Cleanup(func() { unix.Munmap(buf) })
	for off := 0; off < len(buf); {
		n, err := f.ReadAt(buf[off:min(off+1<<20, len(buf))], int64(off))
		w.must(err)
		off += n
	}
	return buf
}
