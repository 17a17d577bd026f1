package lvm

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"platter/block"
	"platter/block/command"
	"platter/block/snapshot"
)

// MethodThin is the name of Thin.
const MethodThin = "lvm-thin"

// A pool that is this full gets no snapshot more: a kept one holds on to what
// its volume overwrites, and a full pool stops all volumes in it.
const (
	maxDataFull     = 90 // percent
	maxMetadataFull = 90
)

// Thin takes snapshots of thin volumes.
type Thin struct{}

// Name implements snapshot.Provider.
func (Thin) Name() string { return MethodThin }

// Fits implements snapshot.Provider.
func (Thin) Fits(ctx context.Context, d block.Device) snapshot.Fit {
	v, g, err := open(ctx, d)
	if err != nil {
		return snapshot.Fit{Why: err.Error()}
	}
	if why := thinUnfit(v, g); why != "" {
		return snapshot.Fit{Why: why}
	}
	return snapshot.Fit{
		OK: true, Why: "a thin volume of pool " + v.VG + "/" + v.Pool,
		Cost: "what is overwritten until the next image stays in the pool",
	}
}

// thinUnfit says why there can be no thin snapshot of a volume, "" if there can.
func thinUnfit(v *Volume, g group) string {
	if v.Kind != "thin" {
		return v.Path() + " is no thin volume"
	}
	pool := g.byName(v.Pool)
	switch {
	case pool == nil:
		return "LVM does not list the pool " + v.VG + "/" + v.Pool
	case pool.Health != '-':
		return fmt.Sprintf("the pool %s needs repair or room (lvs says %q of its health)", pool.Path(), pool.Health)
	case pool.DataFull >= maxDataFull:
		return fmt.Sprintf("the pool %s is %.0f %% full, and a snapshot holds on to what is overwritten: extend it (lvextend --extents +20%%FREE %s) or give unused blocks back (fstrim)",
			pool.Path(), pool.DataFull, pool.Path())
	case pool.MetadataFull >= maxMetadataFull:
		return fmt.Sprintf("the metadata of pool %s is %.0f %% full: extend it (lvextend --poolmetadatasize +256M %s)",
			pool.Path(), pool.MetadataFull, pool.Path())
	}
	return ""
}

// Mapped returns how many sectors of an active thin volume have blocks of its
// pool.
func Mapped(ctx context.Context, v *Volume) (int64, error) {
	out, err := command.Run(ctx, "dmsetup", "status", "--target", "thin", v.mapped(""))
	if err != nil {
		return 0, err
	}
	// "0 196608 thin 6144 6143"
	f := strings.Fields(string(out))
	if len(f) < 4 || f[2] != "thin" {
		return 0, fmt.Errorf("status of %s: %q", v.Path(), strings.TrimSpace(string(out)))
	}
	return strconv.ParseInt(f[3], 10, 64)
}

// Take implements snapshot.Provider.
func (Thin) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	v, g, err := open(ctx, d)
	if err != nil {
		return nil, err
	}
	if why := thinUnfit(v, g); why != "" {
		return nil, fmt.Errorf("%s: %w", why, snapshot.ErrUnfit)
	}
	// The snapshot is active now, and not again at each boot.
	w, err := take(ctx, MethodThin, d, v, o, "--setactivationskip", "y", "--ignoreactivationskip")
	if err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", v.Path(), err)
	}
	return w, nil
}

// Snapshots implements snapshot.Provider.
func (Thin) Snapshots(ctx context.Context, d block.Device) ([]snapshot.Snapshot, error) {
	return snapshots(ctx, d, MethodThin)
}

// Remove implements snapshot.Provider.
func (Thin) Remove(ctx context.Context, s snapshot.Snapshot) error { return removeNamed(ctx, s) }
