// Package bitmap is the tracker of disks of running virtual machines: a dirty
// bitmap that QEMU keeps, from the moment of the parent image on, of what the
// machine writes.
//
// The history is the bitmap. It is believed if it is the very one that began
// with the parent's view, has recorded all the time, and is consistent: QEMU
// marks bitmaps of disks that it has open, so that after a crash none is taken
// for whole.
package bitmap

import (
	"context"
	"encoding/json"
	"fmt"

	"platter/block/snapshot"
	"platter/block/snapshot/libvirt"
	"platter/block/snapshot/qemu"
	"platter/cbt"
)

// Name is the tracker's name in manifests, reports and --tracker.
const Name = "qemu-bitmap"

// Opener opens trackers of such disks.
type Opener struct{}

// Name implements cbt.Opener.
func (Opener) Name() string { return Name }

// Method implements cbt.Opener.
func (Opener) Method() string { return qemu.Method }

// Base implements cbt.Opener.
func (Opener) Base(g cbt.Generation) string {
	p, err := decode(g)
	if err != nil {
		return ""
	}
	return p.View
}

// Open implements cbt.Opener.
func (Opener) Open(_ context.Context, v snapshot.View, _ snapshot.Consumer) (cbt.Tracker, error) {
	q, ok := qemu.Of(v)
	if !ok {
		return nil, fmt.Errorf("tracker %s: the view is of method %s", Name, v.Method())
	}
	return &tracker{q}, nil
}

// LibvirtName is the name of the tracker of disks that libvirt manages.
const LibvirtName = "libvirt-checkpoint"

// Libvirt opens trackers of disks that libvirt manages: it keeps the bitmaps, as
// parts of checkpoints.
type Libvirt struct{}

// Name implements cbt.Opener.
func (Libvirt) Name() string { return LibvirtName }

// Method implements cbt.Opener.
func (Libvirt) Method() string { return libvirt.Method }

// Base implements cbt.Opener.
func (Libvirt) Base(g cbt.Generation) string { return Opener{}.Base(g) }

// Open implements cbt.Opener.
func (Libvirt) Open(_ context.Context, v snapshot.View, _ snapshot.Consumer) (cbt.Tracker, error) {
	l, ok := v.(*libvirt.View)
	if !ok {
		return nil, fmt.Errorf("tracker %s: the view is of method %s", LibvirtName, v.Method())
	}
	return &checkpoints{l}, nil
}

type checkpoints struct{ view *libvirt.View }

func (*checkpoints) Name() string { return LibvirtName }

func (*checkpoints) Close() error { return nil }

// Mark names the checkpoint that began with the view.
func (c *checkpoints) Mark(context.Context) (cbt.Generation, error) {
	return json.Marshal(point{version, c.view.ID(), c.view.Info().Size})
}

// Changed returns what libvirt says was written since the parent's checkpoint.
func (c *checkpoints) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	p, err := decode(since)
	if err != nil {
		return nil, err
	}
	size := c.view.Info().Size
	if p.Size != size {
		return nil, fmt.Errorf("the disk had %d bytes, now it has %d: %w", p.Size, size, cbt.ErrHistoryLost)
	}
	set := cbt.NewSet(size)
	if err := c.view.Dirty(ctx, p.View, set.Add); err != nil {
		return nil, fmt.Errorf("%w: %w", err, cbt.ErrHistoryLost)
	}
	return set, nil
}

// Commit keeps the checkpoint that began with the view, in place of those before.
func (c *checkpoints) Commit(ctx context.Context, _ cbt.Generation) error { return c.view.Keep(ctx) }

// A point is what a generation says: with which view the bitmap began.
type point struct {
	Version int    `json:"bitmap"` // of this format
	View    string `json:"view"`   // its ID
	Size    int64  `json:"size"`   // of the disk, bytes
}

const version = 1

func decode(g cbt.Generation) (p point, err error) {
	err = g.Decode(Name, &p, func() bool {
		return p.Version == version && p.View != ""
	})
	return p, err
}

type tracker struct{ view *qemu.View }

func (*tracker) Name() string { return Name }

func (*tracker) Close() error { return nil }

// Mark names the bitmap that began with the view.
func (t *tracker) Mark(context.Context) (cbt.Generation, error) {
	return json.Marshal(point{version, t.view.ID(), t.view.Info().Size})
}

// Changed returns what the parent's bitmap had recorded when the view was
// taken.
func (t *tracker) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	p, err := decode(since)
	if err != nil {
		return nil, err
	}
	b, ok := t.view.Bitmap(p.View)
	size := t.view.Info().Size
	switch {
	case p.Size != size:
		err = fmt.Errorf("the disk had %d bytes, now it has %d", p.Size, size)
	case !ok && t.view.Persistent():
		err = fmt.Errorf("QEMU has no bitmap platter-%s for this disk any more: it was removed, the machine was killed before it could store it, or the disk is another file than it was", p.View)
	case !ok:
		err = fmt.Errorf("QEMU has no bitmap platter-%s any more: only a disk that is a qcow2 keeps one when the machine is off", p.View)
	case b.Inconsistent:
		err = fmt.Errorf("the bitmap platter-%s is inconsistent: the machine was killed, or crashed", p.View)
	case !b.Recording:
		err = fmt.Errorf("the bitmap platter-%s does not record: somebody has stopped it", p.View)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, cbt.ErrHistoryLost)
	}
	set := cbt.NewSet(size)
	if err := t.view.Dirty(ctx, p.View, set.Add); err != nil {
		return nil, fmt.Errorf("read the bitmap platter-%s: %w: %w", p.View, err, cbt.ErrHistoryLost)
	}
	return set, nil
}

// Commit keeps the bitmap that began with the view, in place of the parent's.
func (t *tracker) Commit(ctx context.Context, _ cbt.Generation) error { return t.view.Keep(ctx) }
