package block

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A Disk is what a partition table is rewritten on. A *Target is one.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Size() int64     // bytes
	SectorSize() int // bytes, logical
}

// wipeReach is how far from the image's end, and from the disk's, the
// signatures of what was there before may lie: of arrays, pools and GPTs.
const wipeReach = 1 << 20

// WipeBeyond zeroes the first MiB behind an image of imageSize bytes and the
// last MiB of the disk, so that no array, pool or table that was on the disk
// before comes back to life. It goes before a Fit is
// written, and writes nothing to the image's own bytes.
func WipeBeyond(d Disk, imageSize int64) error {
	size := d.Size()
	near := min(size, imageSize+wipeReach)
	far := max(near, size-wipeReach)
	for _, e := range []Extent{{imageSize, near - imageSize}, {far, size - far}} {
		if e.Length <= 0 {
			continue
		}
		// Aligned, and thus past the page cache but for odd ends.
		if _, err := d.WriteAt(scratch(int(e.Length)), e.Offset); err != nil {
			return fmt.Errorf("wipe old signatures behind the image: %w", err)
		}
	}
	return nil
}

// ErrReread means that the kernel goes on with the partition table it had: a
// notice, the restore itself is whole.
var ErrReread = errors.New("the kernel has not read the new partition table")

// RereadTable has the kernel read a disk's partition table again. It returns
// nil for files and partitions, and an error wrapping ErrReread when the
// kernel did not do it.
func (t *Target) RereadTable() error {
	if t.file || t.info.Kind == KindPartition {
		return nil
	}
	err := t.any().do(func(fd int) error { return unix.IoctlSetInt(fd, unix.BLKRRPART, 0) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		return nil // the kernel shows no partitions of it: a volume, a loop device as most are
	}
	if err != nil {
		return fmt.Errorf("%w of %s: %w: run 'partprobe %s', or restart", ErrReread, t.path, err, t.path)
	}
	return nil
}
