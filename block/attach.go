package block

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Attach makes a device of an extent of another, for tools that want one: a
// loop device, whether or not the kernel knows the partition. detach ends it
// when all that was written to it is on the device below.
func Attach(path string, e Extent) (dev string, detach func() error, err error) {
	below, err := openHandle(path, os.O_RDWR, 0)
	if err != nil {
		return "", nil, fmt.Errorf("attach a loop device to %s: %w", path, explain(err))
	}
	defer below.Close()
	sector, _, err := below.sectorSizes()
	if err != nil {
		return "", nil, fmt.Errorf("ask %s for its sector size: %w", path, err)
	}
	config := unix.LoopConfig{Fd: uint32(below.f.Fd()), Size: uint32(sector), Info: unix.LoopInfo64{Offset: uint64(e.Offset), Sizelimit: uint64(e.Length)}}
	f, err := freeLoop(&config)
	if err != nil {
		return "", nil, fmt.Errorf("attach a loop device to %s: %w", path, err)
	}
	return f.Name(), func() error {
		err := f.Sync()
		if e := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); e != nil {
			err = errors.Join(err, fmt.Errorf("detach %s: %w: losetup -d %s", f.Name(), e, f.Name()))
		}
		return errors.Join(err, f.Close())
	}, nil
}

// freeLoop configures a loop device that nobody uses. Others look for one too,
// so it is tried again.
func freeLoop(config *unix.LoopConfig) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, explain(err)
	}
	defer control.Close()
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		f, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, explain(err)
		}
		if err = unix.IoctlLoopConfigure(int(f.Fd()), config); err == nil {
			return f, nil
		}
		f.Close()
		if !errors.Is(err, unix.EBUSY) || try == 50 {
			return nil, fmt.Errorf("configure %s: %w", f.Name(), err)
		}
	}
}
