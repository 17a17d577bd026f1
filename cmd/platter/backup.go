package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"platter/internal/job"
)

func runBackup(ctx context.Context, c *call, args []string) error {
	switch {
	case c.opts.all && len(args) > 0:
		return advise(usagef("backup: --all is every disk, and there is %s besides", plural(len(args), "device")), "leave one of them out")
	case !c.opts.all && len(args) == 0:
		return advise(usagef("backup: DEVICE... is missing"), "usage: platter backup DEVICE... [FLAGS], or --all for every disk; see what there is with: platter devices")
	case c.opts.volume != "" && (len(args) > 1 || c.opts.all):
		return advise(usagef("backup: --volume names one volume, and there are %d devices", len(args)), "image them one by one, or leave --volume out")
	}
	env, done, err := c.writing(ctx)
	if err != nil {
		return err
	}
	defer done()
	if c.opts.all {
		if args, err = c.disks(env); err != nil {
			return err
		}
	}
	reports, err := job.Backup(ctx, env, job.BackupOptions{
		Devices: args, Volume: c.opts.volume, Tags: c.opts.tags, Tracker: c.opts.tracker, Ways: ways(), Audit: c.opts.audit, Live: c.opts.live,
		RepositoryOnDevice: c.opts.onDevice, AllBlocks: c.opts.allBlocks, Hooks: c.opts.hooks, Together: c.opts.together,
		AllowUnreadable: c.opts.allowUnreadable, ReplaceDevice: c.opts.replaceDevice, DryRun: c.opts.dryRun,
		LimitRead: c.opts.limitRead,
	})
	c.term.clear()
	if len(reports) > 0 && reports[0].Together && !c.term.json {
		first := reports[0]
		c.term.summaryf("%s at one moment, %s; filesystems stood still for %d ms\n",
			plural(len(reports), "device"), first.Image.Time.Format(time.RFC3339Nano), first.Frozen.Milliseconds())
	}
	for _, r := range reports {
		c.record.Imaged(r.Image)
		c.printBackup(r)
		err = errors.Join(err, incomplete(r), withheld("backup", r.Absent))
	}
	return err
}

// disks are what --all means, and what it leaves out is said.
func (c *call) disks(env *job.Env) ([]string, error) {
	disks, left, err := job.Disks(env, c.opts.onDevice)
	if err != nil {
		return nil, err
	}
	for _, l := range left {
		if c.term.json {
			c.term.object("left_out", l)
		} else {
			c.term.notef("platter: not %s: %s", l.Device, l.Why)
		}
	}
	if len(disks) == 0 {
		return nil, advise(errors.New("backup: --all finds no disk to image"), "name devices; see what there is with: platter devices")
	}
	return disks, nil
}

// withheld is the error for images that the repository should show.
func withheld(command string, list []job.Absent) error {
	if len(list) == 0 {
		return nil
	}
	more := ""
	if len(list) > 1 {
		more = fmt.Sprintf("; and %d more, which platter verify lists", len(list)-1)
	}
	return advise(incompletef("%s: an image is missing: %s%s", command, &list[0], more),
		"the store was set back to an older state, or withholds it: look for it among the store's older versions and in copies; if it is lost for good, say so: platter prune --lost")
}

func (c *call) printBackup(r *job.BackupReport) {
	if c.term.json {
		c.term.object("summary", r)
		return
	}
	m, s := r.Image, r.Image.Stats
	what := "image " + m.ID.String()[:shortID]
	if r.DryRun {
		what = "dry run, nothing stored"
	}
	c.term.summaryf("%s: %s, %s in %s\n", m.Volume, what, bytesText(m.Size), tookText(r.Elapsed))
	c.term.summaryf("  compared %s\n", trackingText(m))
	for _, p := range m.Tracker.Passed {
		c.term.summaryf("  not by %s: %s\n", p.Way, p.Why)
	}
	c.term.summaryf("  read %s at %s/s: zero %s, free %s, unchanged %s, known %s, new %s\n",
		bytesText(s.Read), bytesText(perSecond(s.Read, r.Elapsed)), bytesText(s.Zero), bytesText(s.Free), bytesText(s.Unchanged), bytesText(s.Known), bytesText(s.New))
	for _, text := range freeTexts(m) {
		c.term.summaryf("  free in %s\n", text)
	}
	if text := auditText(m); text != "" {
		c.term.summaryf("  read besides, to prove the tracker: %s\n", text)
	}
	if text := changesText(m); text != "" {
		c.term.summaryf("  differs in %s\n", text)
	}
	c.term.summaryf("  stored %s, and %s for maps and footers\n", bytesText(s.Stored), bytesText(s.Overhead))
	for _, w := range m.Warnings {
		c.term.notef("platter: %s: %s", m.Volume, w)
	}
}

// incomplete is the error for an image that is made, yet not to be trusted in
// all its parts.
func incomplete(r *job.BackupReport) error {
	m := r.Image
	switch {
	case len(m.Unreadable) > 0:
		first := m.Unreadable[0]
		return incompletef("backup %s: %s in %s could not be read, the first at %d; the image holds zeros there",
			m.Device.Path, bytesText(unreadable(m)), plural(len(m.Unreadable), "range"), first.Offset)
	case m.Missed():
		return advise(incompletef("backup %s: a tracker missed a write at %v: this image is right, every block of it was compared", m.Device.Path, m.Audit.Missed[0]),
			"images made since the last one that compared every block may lack that write; report this, with `platter show --json` of the image")
	case m.Fuzzy:
		return advise(incompletef("backup %s: the image is fuzzy: the device was in use while it was read", m.Device.Path),
			"for a still image, stop what writes to the device, or image a snapshot of it")
	}
	return nil
}
