package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Verify checks another copy of the disk, in a file that may be larger: its
// partition table must be faultless and every file system clean.
func (d *Disk) Verify(ctx context.Context, path string) error {
	errs := []error{VerifyTable(ctx, path)}
	for _, p := range d.Parts {
		if p.Content != "" && p.Content != "swap" {
			errs = append(errs, d.VerifyPart(ctx, path, p))
		}
	}
	return errors.Join(errs...)
}

// VerifyTable checks a GPT with sgdisk, which says so when the backup table is
// not at the disk's end.
func VerifyTable(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, tool("sgdisk"), "-v", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		return fmt.Errorf("check partition table of %s: %w: %s", path, errUnclean(err), out)
	}
	return nil
}

// VerifyPart checks the file system of one partition, read from a copy of the
// disk at path, with the checker made for it.
func (d *Disk) VerifyPart(ctx context.Context, path string, p Part) error {
	copied, err := extract(path, p)
	if err != nil {
		return err
	}
	defer os.Remove(copied)
	args := map[string][]string{
		"vfat":  {"fsck.vfat", "-n"},
		"ext4":  {"e2fsck", "-fn"},
		"xfs":   {"xfs_repair", "-n"},
		"btrfs": {"btrfs", "check", "--readonly"},
	}[p.Content]
	out, err := exec.CommandContext(ctx, tool(args[0]), append(args[1:], copied)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("check %s of partition %s in %s: %w: %s", p.Content, p.Name, path, err, out)
	}
	return nil
}

func errUnclean(err error) error {
	if err != nil {
		return err
	}
	return errors.New("problems found")
}

// extract copies a partition into a file of its own beside the disk, zeros as
// holes.
func extract(path string, p Part) (string, error) {
	f, err := os.CreateTemp("", "platter-part-")
	if err != nil {
		return "", err
	}
	err = errors.Join(f.Truncate(p.Size), f.Close())
	if err == nil {
		err = copySparse(f.Name(), 0, path, p.Start, p.Size)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return f.Name(), err
}

// Equal compares bytes from to to, exclusive, of two files or devices.
func Equal(ctx context.Context, a, b string, from, to int64) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, mib), make([]byte, mib)
	for off := from; off < to; off += mib {
		n := min(mib, to-off)
		_, errA := fa.ReadAt(bufA[:n], off)
		_, errB := fb.ReadAt(bufB[:n], off)
		if err := errors.Join(errA, errB, ctx.Err()); err != nil {
			return fmt.Errorf("compare %s with %s at %d: %w", a, b, off, err)
		}
		if bytes.Equal(bufA[:n], bufB[:n]) {
			continue
		}
		for i := range n {
			if bufA[i] != bufB[i] {
				return fmt.Errorf("compare %s with %s: they differ at byte %d: %#02x and %#02x", a, b, off+i, bufA[i], bufB[i])
			}
		}
	}
	return nil
}
