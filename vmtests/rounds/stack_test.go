package rounds

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"platter/block/command"
)

// A stack is what a device is made of.
type stack struct {
	path    string
	tracker string
	// build makes it, assemble is for later boots.
	build, assemble func(w *world)
	// resize makes the device another size, as far as it can be.
	resize func(w *world, size int64)
	// snapshot makes one of the device to go back to, as vg/back; nil where
	// there is none.
	snapshot func(w *world)
	// off takes it apart, as a machine does that is shut down in order.
	off func(w *world)
}

func stacks() map[string]*stack {
	return map[string]*stack{"thin": thin(), "thick": thick(), "era": era(), "zfs": zvol()}
}

func group(w *world) {
	w.tool("vgcreate", "--yes", "--physicalextentsize", "128k", "vg", "/dev/vda")
}

// thin is a volume in a pool.
func thin() *stack {
	return &stack{
		path: "/dev/vg/lv", tracker: "lvm-thin",
		build: func(w *world) {
			group(w)
			w.tool("lvcreate", "--yes", "--type", "thin-pool", "--zero", "n", "--size", "256m", "--poolmetadatasize", "4m", "--chunksize", "64k", "--name", "pool", "vg")
			w.tool("lvcreate", "--yes", "--virtualsize", "16m", "--thinpool", "pool", "--name", "lv", "vg")
		},
		assemble: activate,
		resize:   func(w *world, size int64) { resize(w, size) },
		snapshot: func(w *world) { w.tool("lvcreate", "--yes", "--snapshot", "--name", "back", "vg/lv") },
		off:      deactivate,
	}
}

// thick is a volume outside pools.
func thick() *stack {
	return &stack{
		path: "/dev/vg/lv", tracker: "lvm-thick",
		build: func(w *world) {
			group(w)
			w.tool("lvcreate", "--yes", "--wipesignatures", "n", "--size", "16m", "--name", "lv", "vg")
		},
		assemble: activate,
		resize: func(w *world, size int64) {
			w.tool("lvchange", "--activate", "n", "vg/lv")
			defer w.tool("lvchange", "--activate", "y", "vg/lv")
			resize(w, size)
		},
		snapshot: func(w *world) { w.tool("lvcreate", "--yes", "--snapshot", "--size", "32m", "--name", "back", "vg/lv") },
		off:      deactivate,
	}
}

// era is a dm-era device upon a volume, with its metadata on another.
func era() *stack {
	assemble := func(w *world) {
		size := w.tool("blockdev", "--getsz", "/dev/vg/lv")
		w.tool("dmsetup", "create", "era", "--table", "0 "+size+" era /dev/vg/meta /dev/vg/lv 128")
	}
	return &stack{
		path: "/dev/mapper/era", tracker: "dm-era",
		build: func(w *world) {
			group(w)
			w.tool("lvcreate", "--yes", "--wipesignatures", "n", "--size", "8m", "--name", "lv", "vg")
			w.tool("lvcreate", "--yes", "--wipesignatures", "n", "--zero", "y", "--size", "8m", "--name", "meta", "vg")
			assemble(w)
		},
		assemble: func(w *world) {
			if _, err := os.Stat("/dev/vg/lv"); err != nil {
				activate(w)
			}
			assemble(w)
		},
		// dm-era forgets what lay beyond where a device is made smaller.
		resize: func(w *world, size int64) {
			now, err := strconv.ParseInt(w.tool("blockdev", "--getsize64", "/dev/vg/lv"), 10, 64)
			w.must(err)
			if size <= now {
				return
			}
			w.tool("dmsetup", "remove", "era")
			resize(w, size)
			assemble(w)
		},
		off: func(w *world) {
			w.tool("dmsetup", "remove", "era")
			deactivate(w)
		},
	}
}

func activate(w *world) { w.tool("vgchange", "--activate", "y", "vg") }

func deactivate(w *world) { w.tool("vgchange", "--activate", "n", "vg") }

// resize is refused now and then, by LVM with reasons of its own.
func resize(w *world, size int64) {
	_, err := command.Run(w.Context(), "lvresize", "--yes", "--force", "--size", fmt.Sprint(size)+"b", "vg/lv")
	switch {
	case err == nil:
		w.count("resized")
	case strings.Contains(err.Error(), "matches existing size"):
	default:
		w.count("resize refused")
		w.Logf("round %d: %v", w.state.Round, err)
	}
}
