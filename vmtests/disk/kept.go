package disk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"platter/internal/export/rescue/apt"
)

// buildOnce builds the disk, or copies the one that was built of the same files
// before.
func (b *builder) buildOnce(ctx context.Context) error {
	key, err := b.digest()
	if err != nil {
		return err
	}
	kept := filepath.Join(b.Cache, "disks", fmt.Sprintf("%x.raw", key[:12]))
	if _, err := os.Stat(kept); err != nil {
		if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
			return err
		}
		if err := b.build(ctx); err != nil {
			return err
		}
		fresh := fmt.Sprintf("%s.%d", kept, os.Getpid())
		defer os.Remove(fresh)
		// The rename is last: a file that has its name is whole.
		return errors.Join(sparse(fresh, b.Size), copySparse(fresh, 0, b.Disk.Path, 0, b.Size), os.Rename(fresh, kept))
	}
	return errors.Join(os.RemoveAll(b.Disk.Path), sparse(b.Disk.Path, b.Size), copySparse(b.Disk.Path, 0, kept, 0, b.Size))
}

// digest stands for all that the disk is made of and how.
func (b *builder) digest() ([sha256.Size]byte, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%v %v %v %v %v %s", b.Parts, b.Size, b.Loaders, b.Root, b.Stack, b.grubConfig())
	if b.Stack != Plain {
		io.WriteString(h, makeVolume+Passphrase)
	}
	if b.has(GRUBForBIOS) {
		versions, err := apt.Versions(filepath.Join(b.grub, "../../../.."))
		if err != nil {
			return [sha256.Size]byte{}, err
		}
		fmt.Fprint(h, versions)
	}
	err := filepath.WalkDir(b.work, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil || info.IsDir() {
			return err
		}
		name, _ := filepath.Rel(b.work, path)
		fmt.Fprintf(h, "%s %v %d ", name, info.Mode(), info.Size())
		if info.Mode()&fs.ModeSymlink != 0 {
			to, err := os.Readlink(path)
			fmt.Fprint(h, to)
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(h, f)
		return err
	})
	return [sha256.Size]byte(h.Sum(nil)), err
}
