package rounds

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	}
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
