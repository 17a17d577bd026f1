package guest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"platter/internal/export/rescue/cpio"
	"platter/internal/export/rescue/ramfs"
	"platter/vmtests/debian"
)

// zfsPrograms are ZFS's tools, as programs are.
var zfsPrograms = []string{"zfs", "zpool", "zstream"}

func zfsArchive(cache, release string) string {
	return filepath.Join(cache, "guest", "zfs-"+release+".cpio")
}

// BuildZFS builds ZFS for the guests' kernel, unless cache has it, in ten minutes
// or so: Debian has its source only. Needs root. What the tools say goes to log.
func BuildZFS(ctx context.Context, cache string, log io.Writer) error {
	k, err := debian.FetchKernel(ctx, cache)
	if err != nil {
		return err
	}
	return keep(zfsArchive(cache, k.Release), func() ([]byte, error) {
		work, err := os.MkdirTemp(cache, "zfs-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(work)
		root := filepath.Join(work, "root")
		if err := debian.InstallZFS(ctx, k, root, log); err != nil {
			return nil, err
		}
		return archiveZFS(ctx, k, root)
	})
}

// archiveZFS returns what guests need of a system that has ZFS.
func archiveZFS(ctx context.Context, k *debian.Kernel, root string) ([]byte, error) {
	added, err := k.Added(ctx, root)
	if err != nil {
		return nil, err
	}
	b := ramfs.New(root)
	b.Dir("etc/zfs")
	for _, p := range zfsPrograms {
		if err := b.Program(p); err != nil {
			return nil, err
		}
	}
	// Threads that are cancelled look for it, and are linked with nothing.
	if err := b.Library("libgcc_s.so.1"); err != nil {
		return nil, err
	}
	order := added.Order("zfs")
	if len(order) == 0 {
		return nil, fmt.Errorf("no module of ZFS was built for kernel %s", k.Release)
	}
	if err := addModules(b, "order-zfs", order); err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	err = cpio.Write(&archive, b.Entries)
	return archive.Bytes(), err
}
