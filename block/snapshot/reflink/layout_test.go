package reflink

import (
	"testing"
	"unsafe"
)

func TestLayoutStructIsTheKernels(t *testing.T) {
	if got, want := unsafe.Sizeof(fiemap{}), uintptr(32+56*BatchExtents); got != want {
		t.Errorf("struct fiemap has %d bytes, want %d", got, want)
	}
}
