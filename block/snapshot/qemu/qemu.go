// Package qemu takes still views of the disks of running virtual machines, by
// QEMU itself: what the machine overwrites meanwhile QEMU first copies to a
// file of ours, and offers both together, by NBD, as the disk that was.
//
// At the same moment QEMU begins a dirty bitmap, which from then on records what
// the machine writes: what a tracker asks for the next time. A bitmap belongs to
// one consumer and goes on recording until an image made later is durable, so
// that a run that fails or dies takes nothing away.
//
// All that is left in QEMU has a name that begins with platter- and says for
// whom, and by which process, it was made.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"platter/block"
	"platter/block/qmp"
	"platter/block/snapshot"
)

// Method is the name of these views in manifests and reports.
const Method = "qemu"

// Provider takes such views.
type Provider struct{}

// Name implements snapshot.Provider.
func (Provider) Name() string { return Method }

// Fits implements snapshot.Provider.
func (Provider) Fits(ctx context.Context, d block.Device) snapshot.Fit {
	if _, _, mine := place(d.Path); !mine {
		return snapshot.Fit{}
	}
	m, found, err := look(ctx, d.Path)
	if err != nil {
		return snapshot.Fit{Why: err.Error()}
	}
	defer m.Close()
	if why := snapshot.Roomy(found.size); why != "" {
		return snapshot.Fit{Why: why}
	}
	return snapshot.Fit{
		OK: true, Why: "a disk of a running QEMU",
		Cost: "what the machine overwrites meanwhile is copied to " + snapshot.ScratchDir(),
	}
}

// prefix begins all our names.
const prefix = snapshot.Prefix + "-"

// A label is a name of something of ours in QEMU: platter-ID-CONSUMER-RUN, and
// for a frozen copy of a bitmap, what that is of.
type label struct {
	id, tag, run string
	of           string // ID of the bitmap that this is a copy of
}

func (l label) String() string {
	s := prefix + l.id + "-" + l.tag + "-" + l.run
	if l.of != "" {
		s += ".of." + l.of
	}
	return s
}

// parse returns what a name says, if it is one of ours.
func parse(name string) (l label, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return l, false
	}
	rest, l.of, _ = strings.Cut(rest, ".of.")
	words := strings.SplitN(rest, "-", 3)
	if len(words) != 3 || len(words[0]) != 16 || len(words[1]) != 16 {
		return l, false
	}
	l.id, l.tag, l.run = words[0], words[1], words[2]
	return l, true
}

// Snapshots lists bitmaps, and the work of a run: its name is that of the job.
func (Provider) Snapshots(ctx context.Context, d block.Device) ([]snapshot.Snapshot, error) {
	if _, _, mine := place(d.Path); !mine {
		return nil, nil
	}
	m, found, err := look(ctx, d.Path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	jobs, err := jobs(ctx, m)
	if err != nil {
		return nil, err
	}
	var all []snapshot.Snapshot
	add := func(kind, name string, kept bool) {
		if l, ok := parse(name); ok {
			all = append(all, snapshot.Snapshot{
				Method: Method, Name: d.Path + " " + kind + " " + name, ID: first(l.of, l.id), Tag: l.tag, Run: l.run,
				Kept: kept && l.of == "" && !snapshot.Running(l.run),
			})
			if s := &all[len(all)-1]; kind == kindJob || l.of != "" {
				s.ID = kind + l.id // never the base of an image
			}
		}
	}
	// Jobs come first: while they are there, what they use cannot go.
	for _, j := range jobs {
		if j.Device != "" {
			add(kindJob, j.Device, false)
		}
	}
	for _, b := range found.bitmaps {
		add(kindBitmap, b.Name, true)
	}
	return all, nil
}

const (
	kindJob    = "job"
	kindBitmap = "bitmap"
)

// Remove implements snapshot.Provider.
func (Provider) Remove(ctx context.Context, s snapshot.Snapshot) error {
	rest, name, _ := cutLast(s.Name)
	path, kind, _ := cutLast(rest)
	l, ok := parse(name)
	if !ok {
		return fmt.Errorf("remove %s: it is none of Platter's", s.Name)
	}
	m, found, err := look(ctx, path)
	if err != nil {
		return err
	}
	defer m.Close()
	if kind == kindJob {
		return (&work{m: &connection{m, 1}, label: l, node: found.node}).clear(ctx)
	}
	return removeBitmap(ctx, m, found.node, name)
}

// cutLast is strings.Cut at the last space.
func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// removeBitmap removes a bitmap that may be gone.
func removeBitmap(ctx context.Context, m *qmp.Client, node, name string) error {
	return gone(m.Do(ctx, "block-dirty-bitmap-remove", map[string]string{"node": node, "name": name}, nil))
}

// gone takes what was not found for removed.
func gone(err error) error {
	said := (*qmp.Error)(nil)
	if !errors.As(err, &said) {
		return err
	}
	for _, words := range []string{"not found", "Failed to find", "Cannot find", "is not found", "No block export", "Unable to find"} {
		if said.Class == "DeviceNotFound" || strings.Contains(strings.ToLower(said.Desc), strings.ToLower(words)) {
			return nil
		}
	}
	return err
}

type jobInfo struct{ Device string } // its ID

func jobs(ctx context.Context, m *qmp.Client) (list []jobInfo, err error) {
	err = m.Do(ctx, "query-block-jobs", nil, &list)
	return list, err
}
