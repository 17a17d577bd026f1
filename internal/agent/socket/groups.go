package socket

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxGroups is more than Linux allows a process to have in practice.
const maxGroups = 1024

// groupsOf returns the supplementary groups of who is at the other end of a
// socket; none if there are too many, or the kernel does not tell.
func groupsOf(fd int) (list []int) {
	var groups [maxGroups]uint32
	size := uint32(unsafe.Sizeof(groups))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&groups)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil
	}
	for _, g := range groups[:size/4] {
		list = append(list, int(g))
	}
	return list
}
