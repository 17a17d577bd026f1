// Package thick is the tracker of logical volumes outside thin pools: the
// snapshot of the parent image, which is kept, has a table of the chunks that
// were overwritten since, for it had to save what they held.
//
// The history is the kept snapshot. It is believed if it is the very one that
// the generation names and has not run out of room, and if the volume cannot have
// had another size in between.
package thick

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"platter/block/snapshot"
	"platter/block/snapshot/lvm"
	"platter/cbt"
)

// Name is the tracker's name in manifests, reports and --tracker.
const Name = "lvm-thick"

// Opener opens trackers of volumes that have classic snapshots.
type Opener struct{}

// Name implements cbt.Opener.
func (Opener) Name() string { return Name }

// Method implements cbt.Opener.
func (Opener) Method() string { return lvm.MethodThick }

// Base implements cbt.Opener.
func (Opener) Base(g cbt.Generation) string {
	p, err := decode(g)
	if err != nil {
		return ""
	}
	return p.Snapshot
}

// Open implements cbt.Opener.
func (Opener) Open(_ context.Context, v snapshot.View, _ snapshot.Consumer) (cbt.Tracker, error) {
	w, ok := lvm.Of(v)
	if !ok || v.Method() != lvm.MethodThick {
		return nil, fmt.Errorf("tracker %s: the view is of method %s", Name, v.Method())
	}
	return &tracker{v, w}, nil
}

// A point is what a generation says: which snapshot, and of what.
type point struct {
	Version  int    `json:"thick"`  // of this format
	Origin   string `json:"origin"` // UUIDs
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot"` // its ID
	Chunk    int64  `json:"chunk"`    // bytes
	Size     int64  `json:"size"`     // of the volume, bytes
	// Active is since when the volume has been active, "" if nobody knows.
	Active string `json:"active"`
}

const version = 1

func decode(g cbt.Generation) (p point, err error) {
	err = g.Decode(Name, &p, func() bool {
		return p.Version == version && p.Snapshot != "" &&
			p.Chunk >= 4096 && p.Chunk <= 1<<20 && p.Chunk&(p.Chunk-1) == 0
	})
	return p, err
}

type tracker struct {
	view snapshot.View
	lvm  *lvm.View
}

func (*tracker) Name() string { return Name }

func (*tracker) Close() error { return nil }

// Mark names the snapshot being imaged.
func (t *tracker) Mark(context.Context) (cbt.Generation, error) { return json.Marshal(t.now()) }

func (t *tracker) now() point {
	v := t.lvm.Volume()
	return point{
		Version: version, Origin: v.OriginUUID, Volume: v.UUID, Snapshot: t.view.ID(),
		Chunk: lvm.Chunk, Size: t.view.Info().Size, Active: t.lvm.Activation(),
	}
}

// Changed reads the table of the snapshot that since names. What was written
// before the view was taken is in it: a write ends only when its record is on
// the disk. What was written afterwards may be.
func (t *tracker) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	p, err := decode(since)
	if err != nil {
		return nil, err
	}
	kept, err := t.kept(ctx, p)
	if err != nil {
		return nil, err
	}
	set := cbt.NewSet(p.Size)
	if err := table(kept.Device("cow"), p.Chunk, set); err != nil {
		return nil, fmt.Errorf("the snapshot kept since the parent image, %s: %w: %w", kept.Path(), err, cbt.ErrHistoryLost)
	}
	// Valid now, so it was while the table was read.
	if err := valid(ctx, kept); err != nil {
		return nil, err
	}
	return set, nil
}

// kept returns the snapshot of p, if it is still what it was.
func (t *tracker) kept(ctx context.Context, p point) (*lvm.Volume, error) {
	lost := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, cbt.ErrHistoryLost)...)
	}
	n := t.now()
	switch {
	case p.Origin != n.Origin:
		return nil, lost("the parent's snapshot is of the volume with UUID %s, this one is %s", p.Origin, n.Origin)
	case p.Size != n.Size:
		return nil, lost("the volume had %d bytes, now it has %d", p.Size, n.Size)
	}
	kept := t.lvm.Sibling(p.Snapshot)
	switch {
	case kept == nil:
		return nil, lost("the snapshot kept since the parent image (platter-%s) is gone", p.Snapshot)
	case kept.UUID != p.Volume || kept.OriginUUID != p.Origin:
		return nil, lost("the snapshot %s is another one than the parent's", kept.Path())
	case kept.Merging:
		return nil, lost("the snapshot %s is being merged into its volume", kept.Path())
	case (p.Active == "" || p.Active != n.Active) && !t.lvm.Untouched(kept):
		// The size is what it was. If it was another one meanwhile, the volume may
		// have got other room, with what somebody else wrote there.
		return nil, lost("the volume was deactivated since, and its volume group changed: it may have had another size meanwhile")
	}
	return kept, valid(ctx, kept)
}

// valid returns an error when a snapshot has lost its table.
func valid(ctx context.Context, kept *lvm.Volume) error {
	s, err := lvm.Status(ctx, kept)
	if err != nil {
		return err
	}
	if !s.Valid {
		return fmt.Errorf("the snapshot kept since the parent image, %s of %d MiB, ran out of room (%s); the next one gets more if the volume group has it: %w",
			kept.Path(), kept.Size>>20, s.Word, cbt.ErrHistoryLost)
	}
	return nil
}

// table reads the table on a device past the page cache, which does not see
// what the kernel writes there.
func table(device string, chunk int64, set *cbt.Set) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", device, err)
	}
	f := os.NewFile(uintptr(fd), device)
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	// Whole pages, as O_DIRECT wants its buffers to lie.
	buf, err := unix.Mmap(-1, 0, int(chunk), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	return read(f, size, chunk, buf, set.Add)
}

// Commit keeps the snapshot that was imaged, in place of the parent's.
func (t *tracker) Commit(ctx context.Context, _ cbt.Generation) error { return t.view.Keep(ctx) }
