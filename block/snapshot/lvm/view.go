package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
	"platter/block/snapshot"
)

// Tags of snapshots.
const (
	tagOurs     = snapshot.Prefix
	tagConsumer = snapshot.Prefix + ".consumer="
	tagRun      = snapshot.Prefix + ".run="
	tagTaken    = snapshot.Prefix + ".taken=" // Unix time, seconds
	tagKept     = snapshot.Prefix + ".kept"
	tagSeqno    = snapshot.Prefix + ".seqno=" // of the group, when the snapshot had become the kept one
)

const namePrefix = snapshot.Prefix + "-"

// A View is an open snapshot of a volume.
type View struct {
	snapshot.Holed
	method   string
	id       string
	taken    time.Time
	consumer string
	volume   *Volume // the snapshot
	before   int64   // the group's Seqno when it was about to be taken
	group    group   // when it had been taken
	kept     bool
}

// take makes a snapshot with lvcreate and the arguments given, and opens it.
func take(ctx context.Context, method string, d block.Device, v *Volume, o snapshot.Options, args ...string) (*View, error) {
	w := &View{method: method, id: snapshot.NewID(), taken: time.Now(), consumer: o.Consumer.Tag(), before: v.Seqno}
	s := Volume{VG: v.VG, Name: namePrefix + w.id}
	args = append(args, "--snapshot", "--yes", "--name", s.Name, "--permission", "r",
		"--addtag", tagOurs, "--addtag", tagConsumer+w.consumer, "--addtag", tagRun+o.Run,
		"--addtag", tagTaken+strconv.FormatInt(w.taken.Unix(), 10), v.Path())
	if _, err := command.Run(ctx, "lvcreate", args...); err != nil {
		return nil, errors.Join(err, forget(ctx, &s))
	}
	if err := w.open(ctx, d, &s); err != nil {
		return nil, errors.Join(err, forget(ctx, &s))
	}
	return w, nil
}

func (w *View) open(ctx context.Context, d block.Device, s *Volume) error {
	g, err := list(ctx, s.VG)
	if err != nil {
		return err
	}
	if w.volume = g.byName(s.Name); w.volume == nil {
		return fmt.Errorf("snapshot %s is gone", s.Path())
	}
	w.group = g
	src, err := block.Open(w.volume.Device(""), block.OpenOptions{})
	if err != nil {
		return err
	}
	w.Source = snapshot.As(d.Info, src)
	return nil
}

// forget removes a snapshot that may have been made, whatever ended the run.
func forget(ctx context.Context, s *Volume) error {
	ctx = context.WithoutCancel(ctx)
	g, err := list(ctx, s.VG)
	if err != nil || g.byName(s.Name) == nil {
		return err
	}
	return remove(ctx, s.Path())
}

func remove(ctx context.Context, paths ...string) error {
	_, err := command.Run(ctx, "lvremove", append([]string{"--yes", "--force"}, paths...)...)
	return err
}

// Method implements snapshot.View.
func (w *View) Method() string { return w.method }

// ID implements snapshot.View.
func (w *View) ID() string { return w.id }

// Taken implements snapshot.View.
func (w *View) Taken() time.Time { return w.taken }

// Volume describes the snapshot as it was when it was taken.
func (w *View) Volume() *Volume { return w.volume }

// Sibling returns the snapshot of an ID that was in the same volume group when
// the view was taken, nil if there was none.
func (w *View) Sibling(id string) *Volume { return w.group.byName(namePrefix + id) }

// Pool returns the pool of a thin snapshot, nil for others.
func (w *View) Pool() *Volume {
	return w.group.find(func(v *Volume) bool { return v.UUID == w.volume.PoolUUID })
}

// Keep implements snapshot.View. What it replaces are those that were there
// when it was taken: younger ones are of a run that began later.
func (w *View) Keep(ctx context.Context) error {
	if _, err := command.Run(ctx, "lvchange", "--addtag", tagKept, w.volume.Path()); err != nil {
		return fmt.Errorf("keep the snapshot %s: %w", w.volume.Path(), err)
	}
	w.kept = true
	var old []string
	for _, v := range w.group {
		s, ok := describe(v, w.method)
		if !ok || v.UUID == w.volume.UUID || v.OriginUUID != w.volume.OriginUUID || s.Tag != w.consumer {
			continue
		}
		if s.Kept || !snapshot.Running(s.Run) {
			old = append(old, v.Path())
		}
	}
	if len(old) > 0 {
		if err := remove(ctx, old...); err != nil {
			return fmt.Errorf("remove what snapshot %s replaces: %w", w.volume.Path(), err)
		}
	}
	if w.method == MethodThick {
		return w.seal(ctx)
	}
	return nil
}

// seal notes the state of the group on the snapshot, the note included.
func (w *View) seal(ctx context.Context) error {
	g, err := list(ctx, w.volume.VG)
	if err != nil || len(g) == 0 {
		return err
	}
	_, err = command.Run(ctx, "lvchange", "--addtag", tagSeqno+strconv.FormatInt(g[0].Seqno+1, 10), w.volume.Path())
	return err
}

// Untouched reports whether nothing at all was changed in the volume group
// between the run that kept a snapshot and the view.
func (w *View) Untouched(kept *Volume) bool {
	return slices.Contains(kept.Tags, tagSeqno+strconv.FormatInt(w.before, 10))
}

// Activation names the time since a view's volume was last activated, among all
// there are: LVM changes the size of a volume that has classic snapshots only
// while it is not active. "" if the kernel does not tell.
func (w *View) Activation() string {
	var st unix.Stat_t
	origin := w.group.byUUID(w.volume.OriginUUID)
	if origin == nil || unix.Stat(origin.Device(""), &st) != nil {
		return ""
	}
	seq, err1 := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/diskseq", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	boot, err2 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err1 != nil || err2 != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + "/" + strings.TrimSpace(string(seq))
}

// Close implements snapshot.View.
func (w *View) Close() error {
	err := w.Source.Close()
	ctx := context.Background()
	switch {
	case !w.kept:
		return errors.Join(err, remove(ctx, w.volume.Path()))
	case w.volume.Pool != "":
		// Nobody needs the device of a kept snapshot, and it has the filesystem's
		// UUID a second time. A classic one has to stay, to go on collecting.
		_, e := command.Run(ctx, "lvchange", "--activate", "n", w.volume.Path())
		return errors.Join(err, e)
	}
	return err
}

// describe returns what the tags of a volume say, if it is a snapshot of ours.
func describe(v *Volume, method string) (snapshot.Snapshot, bool) {
	s := snapshot.Snapshot{Method: method, Name: v.Path()}
	id, named := strings.CutPrefix(v.Name, namePrefix)
	if !named || !slices.Contains(v.Tags, tagOurs) || (v.Pool != "") != (method == MethodThin) {
		return s, false
	}
	s.ID = id
	for _, tag := range v.Tags {
		switch {
		case tag == tagKept:
			s.Kept = true
		case strings.HasPrefix(tag, tagConsumer):
			s.Tag = tag[len(tagConsumer):]
		case strings.HasPrefix(tag, tagRun):
			s.Run = tag[len(tagRun):]
		case strings.HasPrefix(tag, tagTaken):
			if n, err := strconv.ParseInt(tag[len(tagTaken):], 10, 64); err == nil {
				s.Time = time.Unix(n, 0)
			}
		}
	}
	return s, true
}

// snapshots lists those of a device, by one method.
func snapshots(ctx context.Context, d block.Device, method string) ([]snapshot.Snapshot, error) {
	v, g, err := open(ctx, d)
	if errors.Is(err, snapshot.ErrUnfit) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []snapshot.Snapshot
	for _, s := range g {
		if s.OriginUUID != v.UUID {
			continue
		}
		if d, ok := describe(s, method); ok {
			all = append(all, d)
		}
	}
	return all, nil
}

// removeNamed removes a snapshot by VG/LV, if it is still there and ours.
func removeNamed(ctx context.Context, s snapshot.Snapshot) error {
	vg, name, _ := strings.Cut(s.Name, "/")
	g, err := list(ctx, vg)
	if err != nil {
		return err
	}
	v := g.byName(name)
	if v == nil {
		return nil
	}
	if _, ok := describe(v, s.Method); !ok {
		return fmt.Errorf("remove %s: it is no snapshot of Platter's", s.Name)
	}
	return remove(ctx, s.Name)
}
