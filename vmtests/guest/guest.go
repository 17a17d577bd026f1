// Package guest runs programs on Debian's kernel in an emulated machine: tests
// of what the host's kernel may lack, such as LVM, md and dm-era, and of what
// would hurt the host, such as power cuts.
//
// A guest has an initial file system in memory with the tools, the program
// under test beside them, and the disks that it was given, which outlive it. It
// never outlives the call that started it.
package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"platter/internal/export/rescue/apt"
	"platter/internal/export/rescue/cpio"
	"platter/vmtests/debian"
)

// A System is a kernel and an initial file system, ready to start.
type System struct {
	Release string // of the kernel, as uname -r says
	kernel  string
	base    string
	zfs     string // is there once BuildZFS has been
}

// Fetch returns the system kept in cache. The first time it downloads Debian's
// kernel and packages and puts the system together, in some ten seconds.
func Fetch(ctx context.Context, cache string) (*System, error) {
	s, err := fetch(ctx, cache)
	if err != nil {
		return nil, fmt.Errorf("make the guest's system: %w", err)
	}
	return s, nil
}

func fetch(ctx context.Context, cache string) (*System, error) {
	k, err := debian.FetchKernel(ctx, cache)
	if err != nil {
		return nil, err
	}
	wanted := sha256.Sum256([]byte(strings.Join(packages, " ")))
	tree, err := apt.Unpack(ctx, cache, fmt.Sprintf("guest-%x", wanted[:6]), packages, nil)
	if err != nil {
		return nil, err
	}
	versions, err := apt.Versions(tree)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%s\n%s\n%s",
		k.Release, versions, initScript, lvmConfig, modules, programs))
	name := fmt.Sprintf("%s-%x", k.Release, key[:6])
	s := &System{
		Release: k.Release,
		kernel:  filepath.Join(cache, "guest", "vmlinux-"+k.Release),
		base:    filepath.Join(cache, "guest", name+".cpio"),
		zfs:     zfsArchive(cache, k.Release),
	}
	return s, errors.Join(
		keep(s.kernel, func() ([]byte, error) { return bootable(k.Image) }),
		keep(s.base, func() ([]byte, error) {
			entries, err := base(k, tree)
			if err != nil {
				return nil, err
			}
			var b bytes.Buffer
			err = cpio.Write(&b, entries)
			return b.Bytes(), err
		}))
}

// bootable returns the kernel in the form that starts fastest.
func bootable(path string) ([]byte, error) {
	image, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	plain, err := extract(image)
	if errors.Is(err, errNotLZ4) {
		return image, nil
	}
	return plain, err
}

// keep makes a file once. A file that has its name is whole.
func keep(path string, create func() ([]byte, error)) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	body, err := create()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(body)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
