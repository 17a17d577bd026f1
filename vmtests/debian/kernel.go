// Package debian has Debian's kernel for the machines of tests, and what it is
// built with.
package debian

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"platter/internal/export/rescue/apt"
)

// A Kernel is one of Debian's kernels, unpacked in the cache.
type Kernel struct {
	Release string // as uname -r says
	Image   string // the bootable file
	Modules string // the folder lib/modules/RELEASE
	deps    map[string][]string
}

// CacheDir returns the folder that keeps what tests download: the environment's
// PLATTER_CACHE, else platter-tests among the user's caches.
func CacheDir() (string, error) {
	if dir := os.Getenv("PLATTER_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "platter-tests"), err
}

// FetchKernel returns the kernel kept in cache, downloading it the first time.
func FetchKernel(ctx context.Context, cache string) (*Kernel, error) {
	return fetchKernel(ctx, cache, "cloud-amd64", "linux-image-*-cloud-amd64")
}

// FetchHardwareKernel is FetchKernel for real hardware, which has drivers that
// the one for virtual machines lacks, AHCI among them.
func FetchHardwareKernel(ctx context.Context, cache string) (*Kernel, error) {
	return fetchKernel(ctx, cache, "amd64", "linux-image-*[0-9]-amd64")
}

// fetchKernel has the newest kernel of a flavour, of which pattern is what the
// packages are called.
func fetchKernel(ctx context.Context, cache, flavour, pattern string) (*Kernel, error) {
	if kept, _ := filepath.Glob(filepath.Join(cache, "packages", pattern)); len(kept) > 0 {
		return openKernel(kept[len(kept)-1])
	}
	name, err := apt.KernelPackage(ctx, "linux-image-"+flavour)
	if err != nil {
		return nil, err
	}
	tree, err := apt.Unpack(ctx, cache, name, []string{name}, func(tree string) error {
		return apt.Run(ctx, "depmod", "-b", tree, strings.TrimPrefix(name, "linux-image-"))
	})
	if err != nil {
		return nil, err
	}
	return openKernel(tree)
}

func openKernel(tree string) (*Kernel, error) {
	images, _ := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return nil, errors.New("no kernel in " + tree)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	k := &Kernel{
		Release: release, Image: images[0],
		Modules: filepath.Join(tree, "lib/modules", release),
		deps:    map[string][]string{},
	}
	return k, k.readDeps()
}

// Added returns the modules that a system in root has for the kernel.
func (k *Kernel) Added(ctx context.Context, root string) (*Kernel, error) {
	if err := apt.Run(ctx, "depmod", "-b", root, k.Release); err != nil {
		return nil, err
	}
	added := &Kernel{Release: k.Release, Modules: filepath.Join(root, "lib/modules", k.Release), deps: map[string][]string{}}
	return added, added.readDeps()
}

// Headers names the package, of the kernel's own version, that modules are built
// with: NAME=VERSION.
func (k *Kernel) Headers() (string, error) {
	versions, err := apt.Versions(filepath.Join(k.Modules, "../../.."))
	if err != nil {
		return "", err
	}
	// linux-image-RELEASE_VERSION_ARCHITECTURE.deb; a colon in a version is %3a.
	words := strings.Split(strings.TrimSpace(versions), "_")
	if len(words) != 3 || words[0] != "linux-image-"+k.Release {
		return "", fmt.Errorf("find the version of kernel %s: its package is %q", k.Release, versions)
	}
	return "linux-headers-" + k.Release + "=" + strings.ReplaceAll(words[1], "%3a", ":"), nil
}

func (k *Kernel) readDeps() error {
	f, err := os.Open(filepath.Join(k.Modules, "modules.dep"))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		path, deps, _ := strings.Cut(lines.Text(), ":")
		k.deps[moduleName(path)] = append([]string{path}, strings.Fields(deps)...)
	}
	return lines.Err()
}

// moduleName is what modprobe calls the module in a file.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// Order returns the files of modules and of all they need, in the order in
// which they are loaded. Names that are built into the kernel are left out.
func (k *Kernel) Order(names ...string) []string {
	var order []string
	seen := map[string]bool{}
	var add func(path string)
	add = func(path string) {
		if seen[path] {
			return
		}
		seen[path] = true
		for _, dep := range k.deps[moduleName(path)][1:] {
			add(dep)
		}
		order = append(order, filepath.Join(k.Modules, path))
	}
	for _, name := range names {
		if all := k.deps[strings.ReplaceAll(name, "-", "_")]; len(all) > 0 {
			add(all[0])
		}
	}
	return order
}
