// Package reflink takes still views of files on filesystems that share extents
// between files, btrfs and XFS: disks of virtual machines, mostly.
//
// A view is a copy made by FICLONE, which takes its moment in one call and
// costs no data. Copies lie in a folder .platter beside the file, which nobody
// but their owner may enter. As long as a copy is there, it holds its extents:
// no place on the disk that it refers to is given to anything else.
package reflink

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/snapshot"
)

// Name is the method's name.
const Name = "reflink"

// folder is where copies lie, beside the file they are of.
const folder = "." + snapshot.Prefix

// States of a copy, the last part of its name.
const (
	taken = "taken"
	kept  = "kept"
)

type provider struct{}

// New returns the provider.
func New() snapshot.Provider { return provider{} }

func (provider) Name() string { return Name }

// Fits wants a file on btrfs or XFS with room for what is overwritten.
func (provider) Fits(_ context.Context, d block.Device) snapshot.Fit {
	if d.Kind != block.KindFile {
		return snapshot.Fit{Why: "is no file"}
	}
	path, err := real(d.Path)
	if err != nil {
		return snapshot.Fit{Why: err.Error()}
	}
	var on unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Statfs(path, &on), unix.Stat(path, &st)); err != nil {
		return snapshot.Fit{Why: err.Error()}
	}
	fs := map[int64]string{unix.BTRFS_SUPER_MAGIC: "btrfs", unix.XFS_SUPER_MAGIC: "XFS"}[int64(on.Type)]
	if fs == "" {
		return snapshot.Fit{Why: "the file is neither on btrfs nor on XFS, which share extents between files"}
	}
	if err := unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK); err != nil {
		return snapshot.Fit{Why: fmt.Sprintf("no copy can be made in %s: %v", filepath.Dir(path), err)}
	}
	// A filesystem that fills up stops the machine whose disk this is.
	free, used := int64(on.Bavail)*on.Bsize, st.Blocks*512
	if free < used/10 {
		return snapshot.Fit{Why: fmt.Sprintf("%d MiB are free on its filesystem; for what is overwritten a tenth of the file, %d MiB, should be", free>>20, used/10>>20)}
	}
	return snapshot.Fit{OK: true, Why: "a file on " + fs, Cost: "what is overwritten until the next image takes room on its filesystem"}
}

// Take copies the file.
func (p provider) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	views, err := p.TakeAll(ctx, []block.Device{d}, []snapshot.Options{o})
	if err != nil {
		return nil, err
	}
	return views[0], nil
}

// Snapshots lists the copies of a file.
func (provider) Snapshots(_ context.Context, d block.Device) ([]snapshot.Snapshot, error) {
	path, err := real(d.Path)
	if err != nil {
		return nil, err
	}
	return copiesIn(filepath.Dir(path), fileTag(path))
}

// InFolder lists the copies of all files in a folder, also of those that are
// gone.
func InFolder(path string) ([]snapshot.Snapshot, error) { return copiesIn(path, "") }

// copiesIn lists the copies of a file in a folder, by its tag, "" for any.
func copiesIn(beside, tag string) ([]snapshot.Snapshot, error) {
	dir := filepath.Join(beside, folder)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []snapshot.Snapshot
	for _, e := range entries {
		s, ok := parse(e.Name(), tag)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		s.Name = filepath.Join(dir, e.Name())
		if info, err := e.Info(); err == nil {
			s.Time = info.ModTime()
		}
		all = append(all, s)
	}
	return all, nil
}

// Remove deletes a copy, and the folder with the last one.
func (provider) Remove(_ context.Context, s snapshot.Snapshot) error {
	dir := filepath.Dir(s.Name)
	if filepath.Base(dir) != folder || len(strings.Split(filepath.Base(s.Name), ".")) != nameParts {
		return fmt.Errorf("remove %s: %w: no copy of ours", s.Name, fs.ErrInvalid)
	}
	if err := os.Remove(s.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(dir) // goes only when it is empty
	return nil
}

// A copy is named by what it is of, for whom, which, by which run, and its
// state: FILE.CONSUMER.ID.RUN.STATE.
const nameParts = 5

func nameOf(path string, o snapshot.Options, id, state string) string {
	return strings.Join([]string{fileTag(path), o.Consumer.Tag(), id, o.Run, state}, ".")
}

// fileTag stands for a file's name in names of its copies.
func fileTag(path string) string {
	sum := sha256.Sum256([]byte(filepath.Base(path)))
	return hex.EncodeToString(sum[:6])
}

// parse reads the name of a copy of the file with a tag, "" for any.
func parse(name, tag string) (s snapshot.Snapshot, ok bool) {
	parts := strings.Split(name, ".")
	if len(parts) != nameParts || tag != "" && parts[0] != tag || parts[4] != taken && parts[4] != kept {
		return s, false
	}
	return snapshot.Snapshot{Method: Name, Tag: parts[1], ID: parts[2], Run: parts[3], Kept: parts[4] == kept}, true
}

// openFolder makes the folder for copies. Who may write beside the file could
// have put something else in its place.
func openFolder(beside string) (*os.File, error) {
	path := filepath.Join(beside, folder)
	err := os.Mkdir(path, 0o700)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := dir.Stat()
	if err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
			err = fmt.Errorf("%s is not only ours: remove it, or chown it and chmod it 700", path)
		}
	}
	if err == nil && made {
		err = syncFolder(beside)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// real is the path of the file itself: copies lie beside it, not beside links.
func real(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}
