// Package reflink is the tracker of files on btrfs and XFS: it compares where
// the extents of two copies lie, the one that the parent image was made from
// and the one that is imaged now.
//
// The copies share what was not written since. It costs time by the number of
// extents, reads no data, and needs nothing to have been watched: reboots and
// crashes do not matter to it. Extents that btrfs has compressed count as
// changed, because their place does not say which part of them a file uses.
package reflink

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"platter/block/snapshot"
	"platter/block/snapshot/reflink"
	"platter/cbt"
)

// Name is the tracker's name.
const Name = "reflink"

// A generation names a copy, and says what it looked like when it was made:
//
//	 0     'R'
//	 1     version, 1
//	 2:10  ID of the copy
//	10:18  inode
//	18:26  size in bytes
//	26:34  time of its last change, ns
const generationSize = 34

type opener struct{}

// New returns the opener.
func New() cbt.Opener { return opener{} }

func (opener) Name() string   { return Name }
func (opener) Method() string { return reflink.Name }

func (opener) Open(_ context.Context, v snapshot.View, _ snapshot.Consumer) (cbt.Tracker, error) {
	view, ok := v.(*reflink.View)
	if !ok {
		return nil, fmt.Errorf("tracker %s: a view by %s is no copy of a file", Name, v.Method())
	}
	return &tracker{view: view, batch: reflink.BatchExtents}, nil
}

func (opener) Base(g cbt.Generation) string {
	if len(g) != generationSize || g[0] != 'R' {
		return ""
	}
	return hex.EncodeToString(g[2:10])
}

type tracker struct {
	view  *reflink.View
	batch uint32 // extents asked for at a time
}

func (*tracker) Name() string { return Name }

// Mark names the copy that is imaged.
func (t *tracker) Mark(context.Context) (cbt.Generation, error) {
	f, err := os.Open(t.view.Path())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return generation(t.view.ID(), f)
}

func generation(id string, f *os.File) (cbt.Generation, error) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != 8 {
		return nil, fmt.Errorf("copy %s: its ID %q is not 16 hex digits", f.Name(), id)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	g := append(cbt.Generation{'R', 1}, raw...)
	g = binary.BigEndian.AppendUint64(g, st.Ino)
	g = binary.BigEndian.AppendUint64(g, uint64(st.Size))
	return binary.BigEndian.AppendUint64(g, uint64(st.Mtim.Nano())), nil
}

// Changed compares the copy that a generation names with the one imaged.
func (t *tracker) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	base, err := t.base(ctx, since)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	now, err := os.Open(t.view.Path())
	if err != nil {
		return nil, err
	}
	defer now.Close()
	set := cbt.NewSet(t.view.Info().Size)
	if err := compare(ctx, base, now, t.batch, set); err != nil {
		return nil, err
	}
	return set, nil
}

// base opens the copy that a generation names, if it is still what it was.
func (t *tracker) base(ctx context.Context, since cbt.Generation) (*os.File, error) {
	id := opener{}.Base(since)
	if id == "" || since[1] != 1 {
		return nil, fmt.Errorf("generation of %d bytes is none of tracker %s: %w", len(since), Name, cbt.ErrHistoryLost)
	}
	all, err := reflink.New().Snapshots(ctx, t.view.Device())
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.ID != id {
			continue
		}
		f, err := os.OpenFile(s.Name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		is, err := generation(id, f)
		if err == nil && string(is) != string(since) {
			err = fmt.Errorf("the copy %s was changed since: %w", s.Name, cbt.ErrHistoryLost)
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	return nil, fmt.Errorf("the copy %s of %s is gone: %w", id, t.view.Device().Path, cbt.ErrHistoryLost)
}

// Commit keeps the copy that was imaged, in place of those before.
func (t *tracker) Commit(ctx context.Context, _ cbt.Generation) error { return t.view.Keep(ctx) }

func (*tracker) Close() error { return nil }
