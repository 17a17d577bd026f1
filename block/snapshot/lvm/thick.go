package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
	"platter/block/snapshot"
)

// MethodThick is the name of Thick.
const MethodThick = "lvm-thick"

// Thick takes classic snapshots: each has room of its own in the volume group
// for what the volume overwrites while it is there.
type Thick struct{}

// Name implements snapshot.Provider.
func (Thick) Name() string { return MethodThick }

// Fits implements snapshot.Provider.
func (Thick) Fits(ctx context.Context, d block.Device) snapshot.Fit {
	v, g, err := open(ctx, d)
	if err != nil {
		return snapshot.Fit{Why: err.Error()}
	}
	room, why := thickRoom(ctx, v, g)
	if why != "" {
		return snapshot.Fit{Why: why}
	}
	return snapshot.Fit{
		OK: true, Why: "a logical volume, and its group has free space",
		Cost: fmt.Sprintf("%d MiB of the group, and until the next image each first write to %d KiB writes twice", room>>20, Chunk>>10),
	}
}

// Take implements snapshot.Provider.
func (Thick) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	v, g, err := open(ctx, d)
	if err != nil {
		return nil, err
	}
	room, why := thickRoom(ctx, v, g)
	if why != "" {
		return nil, fmt.Errorf("%s: %w", why, snapshot.ErrUnfit)
	}
	w, err := take(ctx, MethodThick, d, v, o, "--chunksize", strconv.Itoa(Chunk)+"b", "--size", strconv.FormatInt(room, 10)+"b")
	if err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", v.Path(), err)
	}
	return &thickView{w, room}, nil
}

// Snapshots implements snapshot.Provider.
func (Thick) Snapshots(ctx context.Context, d block.Device) ([]snapshot.Snapshot, error) {
	return snapshots(ctx, d, MethodThick)
}

// Remove implements snapshot.Provider.
func (Thick) Remove(ctx context.Context, s snapshot.Snapshot) error { return removeNamed(ctx, s) }

const (
	// Chunk is what a classic snapshot counts in, in bytes: a block of the
	// usual size. A finer one costs the kernel memory for each chunk that was
	// written.
	Chunk = 64 << 10
	// interval is for how long a snapshot should last: a night's, and a day's
	// delay.
	interval = 48 * time.Hour
	// minShare of the volume is room that is always asked for, 1/minShare.
	minShare = 20
	// leastShare of the volume is room without which none is taken.
	leastShare = 100
)

// thickRoom returns how many bytes a snapshot of v gets, or why there can be
// none.
func thickRoom(ctx context.Context, v *Volume, g group) (room int64, why string) {
	switch {
	case v.Kind == "thin" || v.Kind == "thin-pool":
		return 0, v.Path() + " is in a thin pool"
	case v.Hidden || v.Kind == "cache-pool" || v.Kind == "vdo-pool":
		return 0, v.Path() + " is part of another volume"
	case v.Origin != "":
		return 0, v.Path() + " is a snapshot itself"
	case v.Merging || v.Health != '-' && v.Health != 'm':
		return 0, fmt.Sprintf("%s is being merged or needs repair (lvs says %q of its health)", v.Path(), v.Health)
	}
	most := fullRoom(v.Size)
	room = max(most/minShare, int64(2*interval.Seconds()*rate(ctx, v, g)))
	room = roundUp(min(room, most), v.extentSize)
	if room <= v.free {
		return room, ""
	}
	least := roundUp(max(most/leastShare, 4*Chunk), v.extentSize)
	if v.free < least {
		return 0, fmt.Sprintf("the volume group %s has %d MiB free, and a snapshot of %s should get %d: add a disk (vgextend) or free some space",
			v.VG, v.free>>20, v.Path(), room>>20)
	}
	return v.free / v.extentSize * v.extentSize, ""
}

// fullRoom is what a snapshot needs when everything is overwritten: each Chunk,
// 16 bytes for each in chunks of their own, and a header.
func fullRoom(size int64) int64 {
	chunks := (size + Chunk - 1) / Chunk
	return (chunks + chunks/(Chunk/16) + 3) * Chunk
}

func roundUp(n, unit int64) int64 {
	if unit <= 0 {
		return n
	}
	return (n + unit - 1) / unit * unit
}

// rate estimates how many bytes of a volume are overwritten in a second: by
// how fast the snapshots of before have filled, or else by all that was
// written since the machine started.
func rate(ctx context.Context, v *Volume, g group) float64 {
	var most float64
	known := false
	for _, s := range g {
		d, ok := describe(s, MethodThick)
		if !ok || s.OriginUUID != v.UUID || d.Time.IsZero() {
			continue
		}
		state, err := Status(ctx, s)
		if err != nil {
			continue
		}
		used := state.Used
		if !state.Valid {
			used = 2 * s.Size // more than it had room for
		}
		known = true
		most = max(most, float64(used)/max(60, time.Since(d.Time).Seconds()))
	}
	if known {
		return most
	}
	return written(v) / max(60, uptime())
}

// written returns the bytes written to a volume since it was activated.
func written(v *Volume) float64 {
	var st unix.Stat_t
	if unix.Stat(v.Device(""), &st) != nil {
		return 0
	}
	b, _ := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	const sectorsWritten = 6
	if f := strings.Fields(string(b)); len(f) > sectorsWritten {
		n, _ := strconv.ParseFloat(f[sectorsWritten], 64)
		return n * 512
	}
	return 0
}

func uptime() float64 {
	b, _ := os.ReadFile("/proc/uptime")
	first, _, _ := strings.Cut(string(b), " ")
	n, _ := strconv.ParseFloat(first, 64)
	return n
}

// A State is how a classic snapshot is.
type State struct {
	Valid bool   // it has not run out of room
	Word  string // what the kernel calls it when it is not valid
	Used  int64  // bytes of its room
}

// Status asks the kernel how a classic snapshot is.
func Status(ctx context.Context, v *Volume) (State, error) {
	out, err := command.Run(ctx, "dmsetup", "status", "--target", "snapshot", v.mapped(""))
	if err != nil {
		return State{}, err
	}
	return state(string(out))
}

// state reads "0 65536 snapshot 256/16384 256" in sectors, or a word instead
// of the numbers.
func state(status string) (State, error) {
	f := strings.Fields(status)
	if len(f) < 4 || f[2] != "snapshot" {
		return State{}, fmt.Errorf("no snapshot: %q", status)
	}
	used, _, ok := strings.Cut(f[3], "/")
	n, err := strconv.ParseInt(used, 10, 64)
	if !ok || err != nil {
		return State{Word: strings.Join(f[3:], " ")}, nil
	}
	return State{Valid: true, Used: n * 512}, nil
}

// A thickView says why it cannot be read once it has run out of room.
type thickView struct {
	*View
	room int64
}

// ReadAt implements block.Source.
func (w *thickView) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := w.View.ReadAt(ctx, p, off)
	if err != nil && ctx.Err() == nil {
		if full := w.filled(ctx); full != nil {
			err = full
		}
	}
	return n, err
}

// Check implements block.Source.
func (w *thickView) Check() error {
	return errors.Join(w.View.Check(), w.filled(context.Background()))
}

// filled returns an error when the snapshot is none any more.
func (w *thickView) filled(ctx context.Context) error {
	s, err := Status(ctx, w.volume)
	if err != nil {
		return err
	}
	if s.Valid {
		return nil
	}
	return fmt.Errorf("snapshot %s of %d MiB (%s): %w: more was written to %s meanwhile than it had room for; give the volume group more free space, or image it when less is written",
		w.volume.Path(), w.room>>20, s.Word, snapshot.ErrFilled, w.volume.Origin)
}

// LVM returns the view of the volume itself.
func (w *thickView) LVM() *View { return w.View }

// LVM returns the view itself.
func (w *View) LVM() *View { return w }

// Of returns the LVM snapshot that a view is, if it is one.
func Of(v snapshot.View) (*View, bool) {
	l, ok := v.(interface{ LVM() *View })
	if !ok {
		return nil, false
	}
	return l.LVM(), true
}
