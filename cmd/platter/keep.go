package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"platter/internal/agent/config"
	"platter/internal/job"
	"platter/retention"
)

// policy is what the flags say to keep. No rule at all is a mistake, and never
// "keep nothing".
func (c *call) policy() (retention.Policy, error) {
	o := c.opts
	p := retention.Policy{
		Last: o.keepLast, Hourly: o.keepHourly, Daily: o.keepDaily, Weekly: o.keepWeekly,
		Monthly: o.keepMonthly, Yearly: o.keepYearly, Within: o.keepWithin,
	}
	if p == (retention.Policy{}) {
		return p, advise(usagef("prune: %s", retention.ErrNoRule), "say what to keep, as in: platter prune --keep-daily 7 --keep-weekly 4, or once and for all in %s", c.opts.configFile())
	}
	return p, nil
}

// rules are what the flags say to keep, or where there are none the config.
func (c *call) rules() ([]retention.Rule, error) {
	policy, none := c.policy()
	if none == nil {
		return []retention.Rule{{Policy: policy}}, nil
	}
	conf, err := config.Load(c.opts.configFile())
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(conf.Policies) == 0 {
		return nil, none
	}
	if err != nil {
		return nil, adviseConfig(err)
	}
	return conf.Policies, nil
}

func runPrune(ctx context.Context, c *call, args []string) error {
	if c.opts.lost {
		return c.buryLost(ctx, args)
	}
	rules, err := c.rules()
	if err != nil {
		return err
	}
	suspended, err := c.suspended()
	if err != nil {
		return err
	}
	env, done, err := c.writing(ctx)
	if err != nil {
		return err
	}
	defer done()
	r, err := job.Prune(ctx, env, job.PruneOptions{
		Suspended: suspended, Rules: rules, Volumes: args, DryRun: c.opts.dryRun, MaxDelete: c.opts.pruneShare, MaxCount: c.opts.pruneCount,
	})
	c.term.clear()
	if r != nil {
		for _, v := range r.Verdicts {
			c.record.Touched(v.Volume)
		}
		c.printPrune(r)
	}
	if errors.Is(err, job.ErrTooMany) {
		return advise(err, "look at the reasons with --dry-run; if that is meant, allow it once: --max-delete 100%%")
	}
	return err
}

// buryLost says of images that are gone that they are lost.
func (c *call) buryLost(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return usagef("prune: --lost is for all volumes: leave out %s", args[0])
	}
	env, done, err := c.writing(ctx)
	if err != nil {
		return err
	}
	defer done()
	list, err := job.BuryLost(ctx, env, c.opts.dryRun)
	c.term.clear()
	for i := range list {
		if c.term.json {
			c.term.object("lost_image", list[i])
		} else {
			c.term.printf("lost: %s\n", &list[i])
		}
	}
	switch {
	case c.term.json:
	case c.opts.dryRun:
		c.term.summaryf("dry run: %s would be given up for lost\n", plural(len(list), "image"))
	default:
		c.term.summaryf("%s given up for lost\n", plural(len(list), "image"))
	}
	return err
}

func (c *call) printPrune(r *job.PruneReport) {
	if c.term.json {
		c.term.object("summary", r)
		return
	}
	if r.DryRun || c.term.verbose {
		var t table
		t.row("", "IMAGE", "TIME", "VOLUME", "REASON")
		for _, v := range r.Verdicts {
			t.row(verdict(v.Keep), fmt.Sprintf("%.8s", v.Image), timeText(v.Time), v.Volume, v.Reason)
		}
		c.term.table(t)
	}
	switch {
	case r.Refused:
		return
	case r.DryRun:
		c.term.summaryf("dry run: %s would be kept, %d forgotten\n", plural(r.Kept, "image"), r.Dropped)
		return
	}
	c.term.summaryf("%s kept, %d forgotten", plural(r.Kept, "image"), r.Dropped)
	if r.Dropped > 0 {
		c.term.summaryf("; reclaim the space with: platter gc")
	}
	c.term.summaryf("\n")
}

func verdict(keep bool) string {
	if keep {
		return "keep"
	}
	return "forget"
}

func runCollect(ctx context.Context, c *call, _ []string) error {
	env, done, err := c.writing(ctx)
	if err != nil {
		return err
	}
	defer done()
	r, err := job.Collect(ctx, env, job.CollectOptions{
		Grace: c.opts.grace, MinAge: c.opts.minAge, MaxDelete: c.opts.maxDelete,
		MaxUnused: c.opts.maxUnused, LimitRead: c.opts.limitRead, LimitWrite: c.opts.limitWrite, DryRun: c.opts.dryRun,
	})
	c.term.clear()
	if r != nil {
		c.record.Stored = r.Moved
		c.printCollect(r)
	}
	return err
}

func (c *call) printCollect(r *job.CollectReport) {
	for _, n := range r.Notices {
		c.term.notef("notice: %s", n)
	}
	if c.term.json {
		c.term.object("summary", r)
		return
	}
	var t table
	if len(r.Condemned) > 0 {
		t.row("CONDEMNED", "SIZE", "SINCE", "GOES AFTER")
	}
	for _, s := range r.Condemned {
		t.row(s.Segment, bytesText(s.Size), timeText(s.Since), timeText(s.Goes))
	}
	c.term.table(t)
	c.printRepacked(r)
	if r.DryRun {
		c.term.summaryf("dry run, nothing touched:\n")
	}
	c.term.summaryf("%s: %s in use; %d condemned, %d spared; %d deleted, %s freed\n",
		plural(r.Segments, "segment"), bytesText(r.Live), len(r.Condemned), r.Spared, len(r.Deleted), bytesText(r.Freed))
	if r.Waiting > 0 {
		c.term.summaryf("%s go when their grace is over, by another platter gc\n", bytesText(r.Waiting))
	}
}

// printRepacked tells what was moved, or would be.
func (c *call) printRepacked(r *job.CollectReport) {
	var t table
	merged := 0
	for _, s := range r.Repacked {
		if s.Merged {
			merged++
		}
		if len(t.rows) == 0 {
			t.row("REPACKED", "SIZE", "IN USE", "WHY")
		}
		t.row(s.Segment, bytesText(s.Size), bytesText(s.Live), map[bool]string{false: "unused", true: "small"}[s.Merged])
	}
	if r.DryRun || c.term.verbose {
		c.term.table(t)
	}
	if n := len(r.Repacked); n > 0 {
		c.term.summaryf("%s repacked, %d of them for being small: %s moved", plural(n, "segment"), merged, bytesText(r.Moved))
		if !r.DryRun {
			c.term.summaryf(" to %s", plural(r.Written, "new one"))
		}
		c.term.summaryf("\n")
	}
}
