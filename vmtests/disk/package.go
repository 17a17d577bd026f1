package disk

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// unpack returns the folder in cache that holds a Debian package's files. The
// first time it downloads the package from Debian's archive. Nothing is
// installed: the host's own boot files stay as they are.
//
// finish completes the folder before it gets its name; it may be nil.
func unpack(ctx context.Context, cache, name string, finish func(tree string) error) (string, error) {
	kept := filepath.Join(cache, "packages", name)
	if _, err := os.Stat(kept); err == nil {
		return kept, nil
	}
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := download(ctx, work, name); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("download the package %s: got %d files, want 1", name, len(debs))
	}
	tree := filepath.Join(work, "tree")
	if err := run(ctx, "dpkg-deb", "-x", debs[0], tree); err != nil {
		return "", err
	}
	if finish != nil {
		if err := finish(tree); err != nil {
			return "", err
		}
	}
	// The rename is last: a folder that has its name is whole. Another process
	// may have been faster, which is as good.
	if err := os.Rename(tree, kept); err != nil && !isDir(kept) {
		return "", err
	}
	return kept, nil
}

// download fetches a package into dir. Old lists of packages name files that
// the archive no longer has: root may fetch new lists and try again.
func download(ctx context.Context, dir, name string) error {
	get := func() ([]byte, error) {
		cmd := exec.CommandContext(ctx, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name)
		cmd.Dir = dir
		return cmd.CombinedOutput()
	}
	out, err := get()
	if err != nil && os.Getuid() == 0 {
		if err := run(ctx, "apt-get", "-qq", "update"); err != nil {
			return err
		}
		out, err = get()
	}
	if err != nil {
		return fmt.Errorf("download the package %s (does apt-get update help?): %w: %s", name, err, out)
	}
	return nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
