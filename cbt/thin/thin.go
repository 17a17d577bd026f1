// Package thin is the tracker of LVM's thin volumes: it compares which blocks
// of the pool two snapshots are mapped to, that of the parent image, which is
// kept, and the one being imaged. Where both have the same block nobody wrote,
// since a block that a snapshot holds on to is never written in place.
//
// The history is the kept snapshot. It is believed if it is the very one that
// the generation names, in the same pool with the same metadata, and has as
// many blocks as it had.
package thin

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"platter/block"
	"platter/block/command"
	"platter/block/snapshot"
	"platter/block/snapshot/lvm"
	"platter/cbt"
)

// Name is the tracker's name in manifests, reports and --tracker.
const Name = "lvm-thin"

// Opener opens trackers of thin volumes.
type Opener struct{}

// Name implements cbt.Opener.
func (Opener) Name() string { return Name }

// Method implements cbt.Opener.
func (Opener) Method() string { return lvm.MethodThin }

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
	if !ok || v.Method() != lvm.MethodThin {
		return nil, fmt.Errorf("tracker %s: the view is of method %s", Name, v.Method())
	}
	pool := w.Pool()
	if pool == nil {
		return nil, fmt.Errorf("tracker %s: LVM does not list the pool of %s", Name, w.Volume().Path())
	}
	return &tracker{view: v, lvm: w, pool: pool}, nil
}

// A point is what a generation says: which snapshot, and what proves that it
// is still the one.
type point struct {
	Version  int    `json:"thin"` // of this format
	Pool     string `json:"pool"` // UUIDs
	Metadata string `json:"metadata"`
	Origin   string `json:"origin"`
	Volume   string `json:"volume"`   // UUID of the snapshot
	Snapshot string `json:"snapshot"` // its ID
	ThinID   int    `json:"id"`       // within the pool
	Created  string `json:"created"`  // the pool's transaction then
	Mapped   int64  `json:"mapped"`   // sectors
	Size     int64  `json:"size"`     // bytes
}

const version = 1

func decode(g cbt.Generation) (p point, err error) {
	err = g.Decode(Name, &p, func() bool {
		return p.Version == version && p.Snapshot != ""
	})
	return p, err
}

type tracker struct {
	view snapshot.View
	lvm  *lvm.View
	pool *lvm.Volume
}

func (*tracker) Name() string { return Name }

func (*tracker) Close() error { return nil }

// Mark names the snapshot being imaged.
func (t *tracker) Mark(ctx context.Context) (cbt.Generation, error) {
	p := t.now()
	var err error
	if p.Mapped, err = lvm.Mapped(ctx, t.lvm.Volume()); err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

// now is the snapshot being imaged, without what only the kernel knows.
func (t *tracker) now() point {
	v := t.lvm.Volume()
	return point{
		Version: version, Pool: t.pool.UUID, Metadata: t.pool.MetadataUUID, Origin: v.OriginUUID,
		Volume: v.UUID, Snapshot: t.view.ID(), ThinID: v.ThinID, Created: v.Transaction, Size: t.view.Info().Size,
	}
}

// Changed compares the snapshot that since names with the one being imaged.
func (t *tracker) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	p, err := decode(since)
	if err != nil {
		return nil, err
	}
	if err := t.joinsUp(p); err != nil {
		return nil, err
	}
	set := cbt.NewSet(p.Size)
	err = lvm.Metadata(ctx, t.pool, func(device string) error {
		created, mapped, err := details(ctx, device, p.ThinID)
		if err != nil {
			return err
		}
		if created != p.Created || mapped != p.Mapped {
			return fmt.Errorf("the kept snapshot was made in the pool's transaction %s and had %d sectors mapped, now the pool says %s and %d: %w",
				p.Created, p.Mapped, created, mapped, cbt.ErrHistoryLost)
		}
		list, err := command.Run(ctx, "thin_delta", "--metadata-snap",
			"--thin1", strconv.Itoa(p.ThinID), "--thin2", strconv.Itoa(t.lvm.Volume().ThinID), device)
		if err != nil {
			return err
		}
		return delta(list, func(block.Extent) {}, set.Add)
	})
	if err != nil {
		return nil, fmt.Errorf("compare with the kept snapshot: %w", err)
	}
	return set, nil
}

// Holes tells the view what the pool has no blocks for: what differs from itself
// nowhere is all that there is.
func (t *tracker) Holes(ctx context.Context) error {
	mapped := cbt.NewSet(t.view.Info().Size)
	err := lvm.Metadata(ctx, t.pool, func(device string) error {
		id := strconv.Itoa(t.lvm.Volume().ThinID)
		list, err := command.Run(ctx, "thin_delta", "--metadata-snap", "--thin1", id, "--thin2", id, device)
		if err != nil {
			return err
		}
		return delta(list, mapped.Add, mapped.Add)
	})
	if err != nil {
		return fmt.Errorf("ask what the pool has no blocks for: %w", err)
	}
	t.lvm.Holes(mapped.NextOut)
	return nil
}

// joinsUp returns an error unless the kept snapshot is the one of p.
func (t *tracker) joinsUp(p point) error {
	lost := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, cbt.ErrHistoryLost)...)
	}
	n := t.now()
	switch {
	case p.Pool != n.Pool:
		return lost("the parent's snapshot is in the pool with UUID %s, this volume in %s", p.Pool, n.Pool)
	case p.Metadata != n.Metadata:
		return lost("the pool's metadata was replaced: it was volume %s, now it is %s", p.Metadata, n.Metadata)
	case p.Origin != n.Origin:
		return lost("the parent's snapshot is of the volume with UUID %s, this one is %s", p.Origin, n.Origin)
	case p.Size != n.Size:
		return lost("the volume had %d bytes, now it has %d", p.Size, n.Size)
	}
	kept := t.lvm.Sibling(p.Snapshot)
	switch {
	case kept == nil:
		return lost("the snapshot kept since the parent image (platter-%s) is gone", p.Snapshot)
	case kept.UUID != p.Volume || kept.ThinID != p.ThinID:
		return lost("the snapshot %s is another one than the parent's", kept.Path())
	}
	return nil
}

// Commit keeps the snapshot that was imaged, in place of the parent's.
func (t *tracker) Commit(ctx context.Context, _ cbt.Generation) error { return t.view.Keep(ctx) }

// details returns what a pool's metadata says of one of its volumes: the
// transaction that made it, and how many sectors are mapped.
func details(ctx context.Context, device string, id int) (created string, mapped int64, err error) {
	out, err := command.Run(ctx, "thin_ls", "--metadata-snap", "--no-headers", "--format", "DEV,TRANSACTION,MAPPED_SECTORS", device)
	if err != nil {
		return "", 0, err
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == strconv.Itoa(id) {
			mapped, err = strconv.ParseInt(f[2], 10, 64)
			return f[1], mapped, err
		}
	}
	return "", 0, fmt.Errorf("the pool has no volume %d: %w", id, cbt.ErrHistoryLost)
}
