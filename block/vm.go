package block

import (
	"os"

	"golang.org/x/sys/unix"
)

// QEMU takes shared locks on bytes of the disks it has open: 100+i for each
// thing it does (bit i of its permissions), 200+i for each that it does not
// let others do at the same time. Bit 1 is writing.
const (
	vmDoes     = 100
	vmForbids  = 200
	vmBits     = 4
	vmWriteBit = 1
)

// virtual returns how virtual machines, and restores to files, use a disk.
func virtual(path string) []Usage {
	h, err := openHandle(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer h.Close()
	// A restore of ours takes the same locks, and another one besides.
	if h.lock(unix.LOCK_SH) == unix.EWOULDBLOCK {
		return []Usage{{path, UsedOther, "a running restore", true}}
	}
	writes := h.locked(vmDoes+vmWriteBit, 1)
	if !writes && !h.locked(vmDoes, vmBits) {
		return nil
	}
	return []Usage{{path, UsedVM, "a virtual machine", writes}}
}

// locked reports whether any other open file holds a lock on a range.
func (h *handle) locked(start, n int64) bool {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: n}
	err := h.do(func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock) })
	return err == nil && lock.Type != unix.F_UNLCK
}

// lock takes a lock of flock, which QEMU does not know, without waiting.
func (h *handle) lock(kind int) error {
	return h.do(func(fd int) error { return unix.Flock(fd, kind|unix.LOCK_NB) })
}

// keepFromVM has virtual machines refuse the disk for as long as h is open:
// we write to it, and let no one else write. It returns false if one has the
// disk already.
func (h *handle) keepFromVM() bool {
	for _, start := range []int64{vmDoes, vmForbids} {
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: start, Len: vmBits}
		// A filesystem without locks is no reason to stop.
		_ = h.do(func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock) })
	}
	// Shared locks meet without a conflict, so look who else has some.
	return !h.locked(vmDoes, vmBits)
}
