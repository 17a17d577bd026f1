package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"platter/block/command"
	"platter/block/snapshot"
)

// tagReserved is on a pool while its metadata is held still for us. It is set
// before and taken off after, so that what a dead run left is known for ours,
// after a reboot too.
const tagReserved = snapshot.Prefix + ".metadata"

// ErrReserved means that another program holds a pool's metadata still.
var ErrReserved = errors.New("another program uses the pool's metadata snapshot")

// Metadata calls read with the path of a pool's metadata while the kernel
// holds a copy of it still, which a pool can do once at a time. The copy is
// released whatever happens; what a dead run left is released first.
func Metadata(ctx context.Context, pool *Volume, read func(device string) error) (err error) {
	unlock, err := snapshot.Lock(ctx, "platter-pool-"+pool.UUID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := clear(ctx, pool); err != nil {
		return err
	}
	if _, err := command.Run(ctx, "lvchange", "--addtag", tagReserved, pool.Path()); err != nil {
		return err
	}
	// From here on all that was done is undone, also when ctx has ended.
	undo := context.WithoutCancel(ctx)
	defer func() {
		_, e := command.Run(undo, "lvchange", "--deltag", tagReserved, pool.Path())
		err = errors.Join(err, e)
	}()
	if err := message(ctx, pool, "reserve_metadata_snap"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, message(undo, pool, "release_metadata_snap")) }()
	return read("/dev/mapper/" + (&Volume{VG: pool.VG, Name: pool.Metadata}).mapped(""))
}

// clear releases what a dead run of ours holds. We have the lock: none lives.
func clear(ctx context.Context, pool *Volume) error {
	held, err := reserved(ctx, pool)
	if err != nil || !held {
		return err
	}
	g, err := list(ctx, pool.VG)
	if err != nil {
		return err
	}
	if now := g.byUUID(pool.UUID); now == nil || !slices.Contains(now.Tags, tagReserved) {
		return fmt.Errorf("%w; if none does: dmsetup message %s 0 release_metadata_snap", ErrReserved, pool.mapped("tpool"))
	}
	return message(ctx, pool, "release_metadata_snap")
}

// reserved reports whether the kernel holds a pool's metadata still. The
// fields of its status are transaction, used and all metadata blocks, used and
// all data blocks, and the root that is held or "-".
func reserved(ctx context.Context, pool *Volume) (bool, error) {
	out, err := command.Run(ctx, "dmsetup", "status", "--target", "thin-pool", pool.mapped("tpool"))
	if err != nil {
		return false, err
	}
	f := strings.Fields(string(out))
	if len(f) < 7 || f[2] != "thin-pool" {
		return false, fmt.Errorf("status of pool %s: %q", pool.Path(), strings.TrimSpace(string(out)))
	}
	return f[6] != "-", nil
}

func message(ctx context.Context, pool *Volume, words string) error {
	_, err := command.Run(ctx, "dmsetup", "message", pool.mapped("tpool"), "0", words)
	return err
}
