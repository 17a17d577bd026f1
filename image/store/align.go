package store

import "unsafe"

// Align is what O_DIRECT asks of addresses, offsets and lengths, in bytes.
const Align = 4096

// AllocAligned returns n zero bytes at an address that is a multiple of Align.
func AllocAligned(n int) []byte {
	b := make([]byte, n+Align)
	skip := -int(addr(b)) & (Align - 1)
	return b[skip : skip+n : skip+n]
}

// IsAligned reports whether p begins at a multiple of Align.
func IsAligned(p []byte) bool { return addr(p)&(Align-1) == 0 }

// The heap does not move, so that an address once aligned stays so.
func addr(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
