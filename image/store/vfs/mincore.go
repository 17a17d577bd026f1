package vfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mincore sets the lowest bit of in[i] where page i of m is in memory.
func mincore(m, in []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), uintptr(unsafe.Pointer(unsafe.SliceData(in))))
	if errno != 0 {
		return errno
	}
	return nil
}
