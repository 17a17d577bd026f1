package block

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A residency tells which pages of a file lie in the page cache. Asking
// beforehand is what keeps a cold file out of it: a read that is told not to
// wait (RWF_NOWAIT) starts readahead before it gives up.
type residency struct {
	mem []byte // the file mapped, never touched
}

// minCached is the shortest run of cached pages, in bytes, that is worth a
// call of its own when its neighbours come from the device.
const minCached = 64 << 10

// open maps the file. Where that fails every page counts as not cached.
func (r *residency) open(h *handle, size int64) {
	if size == 0 || size != int64(int(size)) {
		return
	}
	_ = h.do(func(fd int) (err error) {
		r.mem, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
		return err
	})
}

func (r *residency) close() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
		r.mem = nil
	}
}

func (r *residency) known() bool { return r.mem != nil }

// A run is a stretch of a read, all of it cached or none.
type run struct {
	length int
	cached bool
}

// runs splits n bytes at off, which begin on a page and lie within the file.
func (r *residency) runs(off int64, n int) []run {
	vec := make([]byte, roundUp(n, pageSize)/pageSize)
	if off%pageSize != 0 || mincore(r.mem[off:off+int64(n)], vec) != nil {
		return []run{{length: n}}
	}
	runs := pageRuns(vec)
	// The last page may be cut off by the file's end.
	runs[len(runs)-1].length -= len(vec)*pageSize - n
	return runs
}

// pageRuns merges pages that are cached or not, and cached runs that are too
// short into what surrounds them.
func pageRuns(vec []byte) []run {
	var runs []run
	for i := 0; i < len(vec); {
		cached, j := vec[i]&1 != 0, i
		for j < len(vec) && (vec[j]&1 != 0) == cached {
			j++
		}
		length := (j - i) * pageSize
		if cached && length < minCached && length < len(vec)*pageSize {
			cached = false
		}
		if k := len(runs) - 1; k >= 0 && runs[k].cached == cached {
			runs[k].length += length
		} else {
			runs = append(runs, run{length, cached})
		}
		i = j
	}
	return runs
}

func mincore(b, vec []byte) error {
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	runtime.KeepAlive(b)
	if e != 0 {
		return e
	}
	return nil
}
