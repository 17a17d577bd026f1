package rounds

import (
	"fmt"
	"os"
	"slices"
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
	// give has another volume take what this one gave up, or gives it back.
	give func(w *world)
	// revert makes a snapshot of the device, or goes back to one there is.
	revert func(w *world)
	// views is how many snapshots of the program's there are that it has opened;
	// nil, as are the two above, where devices have no snapshots.
	views func(w *world) int
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
		give:     filler,
		revert:   func(w *world) { revert(w, "lvcreate", "--yes", "--snapshot", "--name", "back", "vg/lv") },
		views:    func(w *world) int { return views(w, func(string) bool { return true }) },
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
		give: filler,
		revert: func(w *world) {
			revert(w, "lvcreate", "--yes", "--snapshot", "--size", "32m", "--name", "back", "vg/lv")
		},
		// A classic one is a snapshot once it has its exceptions.
		views: func(w *world) int {
			return views(w, func(name string) bool {
				_, err := os.Stat("/dev/mapper/" + name + "-cow")
				return err == nil
			})
		},
		off: deactivate,
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

// filler is a volume that comes and goes.
func filler(w *world) {
	if has(w, "filler") {
		w.tool("lvremove", "--yes", "--force", "vg/filler")
		return
	}
	w.tool("lvcreate", "--yes", "--wipesignatures", "n", "--size", "2m", "--name", "filler", "vg")
	w.tool("busybox", "dd", "if=/dev/urandom", "of=/dev/vg/filler", "bs=1M", "count=2", "conv=fsync")
}

// revert makes a snapshot vg/back by a tool, or goes back to the one there is.
func revert(w *world, tool string, args ...string) {
	if !has(w, "back") {
		w.tool(tool, args...)
		return
	}
	// In the foreground: it is over when the tool ends. A thin volume becomes its
	// snapshot when it is next activated.
	w.tool("lvconvert", "--merge", "vg/back")
	if has(w, "back") {
		w.tool("lvchange", "--activate", "n", "vg/lv")
	}
	w.tool("lvchange", "--activate", "y", "vg/lv")
	w.count("reverted")
}

// has reports whether there is a volume of a name, hidden or not.
func has(w *world, name string) bool {
	all := strings.Fields(w.tool("lvs", "--all", "--noheadings", "-o", "lv_name", "vg"))
	return slices.Contains(all, name) || slices.Contains(all, "["+name+"]")
}

// views counts the program's snapshots that are open: LVM is done with them then.
func views(w *world, is func(name string) bool) (n int) {
	for line := range strings.Lines(w.tool("dmsetup", "info", "--columns", "--noheadings", "--separator", " ", "-o", "name,open")) {
		name, open, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(name, "vg-platter--") && !strings.HasSuffix(name, "-cow") && open != "0" && is(name) {
			n++
		}
	}
	return n
}
