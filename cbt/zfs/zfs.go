// Package zfs is the tracker of ZFS volumes (zvols): it reads what zfs send
// would send of what changed between two snapshots, that of the parent image,
// which is kept, and the one being imaged. ZFS finds that by the age of its
// blocks, without comparing.
//
// The history is the kept snapshot. It is believed if it is the very one that
// the generation names, and the stream says that it is between the two.
//
// What was never written ZFS sends as free every time, since it has no age. That is
// not read, no more than the holes of a file are: the stream says that there is
// nothing, and its checksums that it says so.
//
// A stream carries the data too, as it is stored (compressed, and encrypted if it
// is), and ZFS reads that from the disks to send it. It is dropped: what the image
// is made of is read from the snapshot's device right after, out of ZFS's cache as
// far as that is large enough. Making the image of the stream would save that much
// memory, at the cost of decompressing what ZFS has, of data that is not proven by
// a second reading, and of a second path from a device to an image.
package zfs

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"platter/block"
	"platter/block/command"
	"platter/block/snapshot"
	"platter/block/snapshot/zfs"
	"platter/cbt"
)

// Name is the tracker's name in manifests, reports and --tracker.
const Name = "zfs"

// Opener opens trackers of ZFS volumes.
type Opener struct{}

// Name implements cbt.Opener.
func (Opener) Name() string { return Name }

// Method implements cbt.Opener.
func (Opener) Method() string { return zfs.Method }

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
	w, ok := zfs.Of(v)
	if !ok {
		return nil, fmt.Errorf("tracker %s: the view is of method %s", Name, v.Method())
	}
	return &tracker{w}, nil
}

// A point is what a generation says: which snapshot, and what proves that it
// is still the one.
type point struct {
	Version   int    `json:"zfs"`      // of this format
	Volume    uint64 `json:"volume"`   // guid
	Snapshot  string `json:"snapshot"` // its ID
	GUID      uint64 `json:"guid"`     // of the snapshot
	Created   uint64 `json:"created"`  // the pool's transaction group then
	Size      int64  `json:"size"`     // bytes
	BlockSize int64  `json:"block"`    // bytes
}

const version = 1

func decode(g cbt.Generation) (p point, err error) {
	err = g.Decode(Name, &p, func() bool {
		return p.Version == version && p.Snapshot != ""
	})
	return p, err
}

type tracker struct{ view *zfs.View }

func (*tracker) Name() string { return Name }

func (*tracker) Close() error { return nil }

// now is the snapshot being imaged.
func (t *tracker) now() point {
	s := t.view.Volume()
	return point{
		Version: version, Volume: t.view.Origin().GUID, Snapshot: t.view.ID(), GUID: s.GUID, Created: s.Created,
		Size: t.view.Info().Size, BlockSize: s.BlockSize,
	}
}

// Mark names the snapshot being imaged.
func (t *tracker) Mark(context.Context) (cbt.Generation, error) { return json.Marshal(t.now()) }

// Changed asks what would be sent between the snapshot that since names and the
// one being imaged.
func (t *tracker) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	p, err := decode(since)
	if err != nil {
		return nil, err
	}
	if err := t.joinsUp(p); err != nil {
		return nil, err
	}
	set, holes := cbt.NewSet(p.Size), cbt.NewSet(p.Size)
	note := func(e block.Extent, freed bool) {
		set.Add(e)
		if freed {
			holes.Add(inside(e, holes.Unit(), p.Size))
		}
	}
	var h head
	read := func(r io.Reader) (err error) { h, err = readStream(r, note); return err }
	// Raw: as it is stored, without the work of unpacking, or the keys.
	if err := command.Read(ctx, read, "zfs", "send", "--raw", "-i", t.view.Sibling(p.Snapshot).Name, t.view.Volume().Name); err != nil {
		return nil, fmt.Errorf("compare with the kept snapshot: %w", err)
	}
	if err := t.proves(h, p); err != nil {
		return nil, err
	}
	t.view.Holes(holes.Next)
	return set, nil
}

// inside returns the whole units in an extent, of which the last of the device may
// be short.
func inside(e block.Extent, unit, size int64) block.Extent {
	from, end := (e.Offset+unit-1)/unit*unit, e.End()
	if end < size {
		end = end / unit * unit
	}
	return block.Extent{Offset: from, Length: end - from}
}

// joinsUp returns an error unless the kept snapshot is the one of p.
func (t *tracker) joinsUp(p point) error {
	n, kept := t.now(), t.view.Sibling(p.Snapshot)
	switch {
	case p.Volume != n.Volume:
		return lost("the parent's snapshot is of the volume with guid %d, this one is %d", p.Volume, n.Volume)
	case p.Size != n.Size:
		return lost("the volume had %d bytes, now it has %d", p.Size, n.Size)
	case p.BlockSize != n.BlockSize:
		return lost("the volume had blocks of %d bytes, now they have %d", p.BlockSize, n.BlockSize)
	case kept == nil:
		return lost("the snapshot kept since the parent image (platter-%s) is gone", p.Snapshot)
	case kept.GUID != p.GUID || kept.Created != p.Created:
		return lost("the snapshot %s is another one than the parent's: its guid is %d and not %d", kept.Name, kept.GUID, p.GUID)
	case kept.Size != p.Size:
		return lost("the snapshot %s has %d bytes, the parent image %d", kept.Name, kept.Size, p.Size)
	case !zfs.HolesAreSent():
		return lost("ZFS is set to send only holes that it takes for new (its parameter send_holes_without_birth_time is 0)")
	}
	return nil
}

// proves returns an error unless a stream is between the snapshot of p and the
// one being imaged.
func (t *tracker) proves(h head, p point) error {
	n := t.now()
	switch {
	case h.from != p.GUID || h.to != n.GUID:
		return lost("zfs send sent what is between the snapshots with guids %d and %d, and not %d and %d", h.from, h.to, p.GUID, n.GUID)
	case h.blockSize != 0 && h.blockSize != p.BlockSize:
		return lost("zfs send says that the volume has blocks of %d bytes, and not %d", h.blockSize, p.BlockSize)
	}
	return nil
}

func lost(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, cbt.ErrHistoryLost)...)
}

// Commit keeps the snapshot that was imaged, in place of the parent's.
func (t *tracker) Commit(ctx context.Context, _ cbt.Generation) error { return t.view.Keep(ctx) }
