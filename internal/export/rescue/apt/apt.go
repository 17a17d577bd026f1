// Package apt fetches files of Debian's packages by way of apt. Nothing is
// installed on the host.
package apt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// versionsFile, in a folder of unpacked packages, lists the packages' files,
// whose names hold their versions.
const versionsFile = "versions"

// Unpack returns the folder in cache that holds the files of Debian packages.
// It is known by its name; the packages are downloaded and unpacked into it the
// first time.
//
// finish completes the folder before it gets its name; it may be nil.
func Unpack(ctx context.Context, cache, name string, packages []string, finish func(tree string) error) (string, error) {
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
	if err := download(ctx, work, packages); err != nil {
		return "", err
	}
	tree := filepath.Join(work, "tree")
	if err := unpackAll(ctx, work, tree, len(packages)); err != nil {
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

// Newest returns the files of the newest versions of packages that apt knows,
// whose names hold their versions, without fetching them.
func Newest(ctx context.Context, packages []string) (files []string, err error) {
	err = refreshed(ctx, func() error {
		files = nil
		out, err := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "--print-uris", "download"}, packages...)...).Output()
		if err != nil {
			return fmt.Errorf("apt-get download: %w: %s", err, stderr(err))
		}
		for line := range strings.Lines(string(out)) {
			if words := strings.Fields(line); len(words) >= 2 {
				files = append(files, words[1])
			}
		}
		if len(files) != len(packages) {
			return fmt.Errorf("apt knows %d of the packages %s", len(files), strings.Join(packages, " "))
		}
		return nil
	})
	return files, err
}

// KernelPackage returns the package of the newest kernel that a package such as
// linux-image-amd64 depends on.
func KernelPackage(ctx context.Context, meta string) (name string, err error) {
	err = refreshed(ctx, func() error {
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", meta).Output()
		if err != nil {
			return fmt.Errorf("apt-cache depends %s: %w: %s", meta, err, stderr(err))
		}
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "linux-image-") && word != meta {
				name = word
				return nil
			}
		}
		return fmt.Errorf("apt knows no kernel of %s, run apt-get update", meta)
	})
	return name, err
}

// refreshed does what needs apt's lists of packages. They may be absent, or old
// and name files that the archive no longer has: root may fetch new ones and try
// again.
func refreshed(ctx context.Context, do func() error) error {
	err := do()
	if err == nil || os.Getuid() != 0 {
		return err
	}
	if err := Run(ctx, "apt-get", "-qq", "update"); err != nil {
		return err
	}
	return do()
}

func stderr(err error) string {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return strings.TrimSpace(string(exit.Stderr))
	}
	return ""
}

// Versions returns the names of the package files in an unpacked folder.
func Versions(tree string) (string, error) {
	b, err := os.ReadFile(filepath.Join(tree, versionsFile))
	return string(b), err
}

func unpackAll(ctx context.Context, work, tree string, n int) error {
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb")) // in order
	if len(debs) != n {
		return fmt.Errorf("download %d packages: got %d files", n, len(debs))
	}
	var versions strings.Builder
	for _, deb := range debs {
		if err := Run(ctx, "dpkg-deb", "-x", deb, tree); err != nil {
			return err
		}
		fmt.Fprintln(&versions, filepath.Base(deb))
	}
	return os.WriteFile(filepath.Join(tree, versionsFile), []byte(versions.String()), 0o644)
}

// download fetches packages into dir.
func download(ctx context.Context, dir string, names []string) error {
	return refreshed(ctx, func() error {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "-o", "APT::Sandbox::User=root", "download"}, names...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("download %s (does apt-get update help?): %w: %s", strings.Join(names, " "), err, out)
		}
		return nil
	})
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Run runs a tool, which may lie outside a normal user's path.
func Run(ctx context.Context, name string, args ...string) error {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if err != nil {
			path, err = exec.LookPath(dir + name)
		}
	}
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
