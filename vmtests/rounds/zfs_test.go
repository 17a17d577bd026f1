package rounds

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"platter/block"
)

// zvol is a volume of ZFS. There is no udev that would make its link.
func zvol() *stack {
	const volume = "pool/lv"
	return &stack{
		path: "/dev/zvol/" + volume, tracker: "zfs",
		build: func(w *world) {
			w.tool("sgdisk", "--zap-all", "--new", "1:2048:0", "/dev/vda")
			w.tool("zpool", "create", "-f", "-o", "cachefile=none", "pool", "/dev/vda1")
			w.tool("zfs", "create", "-s", "-b", "8k", "-V", "16m", volume)
			w.link(volume)
		},
		assemble: func(w *world) {
			w.tool("zpool", "import", "-f", "-d", "/dev/vda1", "-o", "cachefile=none", "pool")
			w.link(volume)
		},
		resize: func(w *world, size int64) {
			w.tool("zfs", "set", fmt.Sprintf("volsize=%d", (size+8191)/8192*8192), volume)
			w.count("resized")
		},
		give:   func(*world) {}, // the pool has it at once
		revert: func(w *world) { rollback(w, volume) },
		views:  func(w *world) int { return len(snapshots(w, volume)) },
		off: func(w *world) {
			w.must(os.Remove("/dev/zvol/" + volume))
			w.tool("zpool", "export", "pool")
		},
	}
}

// rollback goes back to a snapshot of just before, or as one who knows better than
// the program to the oldest of its own, by which all later ones are lost.
func rollback(w *world, volume string) {
	if all := snapshots(w, volume); len(all) > 1 && w.random.IntN(2) == 0 {
		for _, s := range all[1:] {
			for line := range strings.Lines(w.tool("zfs", "holds", "-H", s)) {
				w.tool("zfs", "release", strings.Split(line, "\t")[1], s)
			}
		}
		w.tool("zfs", "rollback", "-r", all[0])
		w.count("reverted to a snapshot of the program's")
		return
	}
	w.tool("zfs", "snapshot", volume+"@back")
	w.changes()
	w.tool("zfs", "rollback", volume+"@back")
	w.tool("zfs", "destroy", volume+"@back")
	w.count("reverted")
}

// snapshots are those of the program's that a volume has, oldest first.
func snapshots(w *world, volume string) []string {
	return strings.Fields(w.tool("zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-s", "createtxg", volume))
}

// link makes what udev does elsewhere, once the volume has its device.
func (w *world) link(volume string) {
	w.Helper()
	path := "/dev/zvol/" + volume
	w.must(os.MkdirAll(filepath.Dir(path), 0o755))
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		w.must(err)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		all, err := filepath.Glob("/dev/zd*")
		w.must(err)
		for _, device := range all {
			if block.Zvol(device) == volume {
				w.must(os.Symlink(device, path))
				return
			}
		}
	}
	w.Fatalf("%s has no device", volume)
}
