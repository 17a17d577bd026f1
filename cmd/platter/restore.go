package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"platter/block"
	"platter/internal/export/adapt"
	"platter/internal/job"
)

func runRestore(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	if len(args) == 2 && !strings.Contains(args[1], "=") {
		return c.restore(ctx, env, args[0], args[1])
	}
	set, err := job.FindSet(ctx, env, args[0])
	if err != nil {
		return err
	}
	targets, err := job.Assign(set, args[1:])
	if err != nil {
		return err
	}
	if len(targets) > 1 && (c.opts.newIDs || c.opts.adapt) {
		return usagef("restore: --adapt and --new-ids are for one disk: restore the disk that the system starts from by itself, by its image's ID")
	}
	// All of them are planned before the first is written to.
	for _, t := range targets {
		if _, err := job.Restore(ctx, env, job.RestoreOptions{Image: t.Image.ID.String(), Target: t.Target, InPlace: c.opts.inPlace, Grow: c.opts.grow, DryRun: true, Adapt: c.adaptOptions()}); err != nil {
			return adviseRestore(err)
		}
	}
	for _, t := range targets {
		if err := c.restore(ctx, env, t.Image.ID.String(), t.Target); err != nil {
			return err
		}
	}
	if n := len(set) - len(targets); n > 0 {
		c.term.notef("platter: %s of the set %s not restored: no target was named", plural(n, "image"), wereText(n))
	}
	return nil
}

func wereText(n int) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// restore writes one image to one target.
func (c *call) restore(ctx context.Context, env *job.Env, image, target string) error {
	known := ways()
	if c.opts.compareAll {
		known = job.Ways{}
	}
	report, err := job.Restore(ctx, env, job.RestoreOptions{
		Image: image, Target: target, InPlace: c.opts.inPlace, Grow: c.opts.grow, Ways: known, State: c.opts.stateDir(), NoReadBack: c.opts.noReadBack, DryRun: c.opts.dryRun,
		Adapt:      c.adaptOptions(),
		Confirm:    func(p *job.RestorePlan) (bool, error) { return c.confirm(ctx, p) },
		LimitWrite: c.opts.limitWrite,
	})
	c.term.clear()
	if report != nil && report.Plan != nil && report.Plan.Image != nil {
		c.record.Used(report.Plan.Image)
		c.record.Stored = report.Written
	}
	if err != nil {
		return adviseRestore(err)
	}
	if c.opts.dryRun {
		c.printPlan(report.Plan)
		return nil
	}
	c.printRestore(report)
	return nil
}

func (c *call) adaptOptions() job.AdaptOptions {
	return job.AdaptOptions{
		Hardware: c.opts.adapt, Firmware: c.opts.firmware, NewIDs: c.opts.newIDs, Reset: c.opts.reset,
		Machine: os.Getenv("PLATTER_RESCUE") != "",
	}
}

func adviseRestore(err error) error {
	if errors.Is(err, job.ErrConfirm) && !errors.As(err, new(advised)) {
		return advise(err, "nothing was written; look at the plan with --dry-run, then say --yes")
	}
	return err
}

// confirm shows the plan and asks, where there is something to lose and
// somebody to ask.
func (c *call) confirm(ctx context.Context, p *job.RestorePlan) (bool, error) {
	if c.opts.dryRun {
		return true, nil
	}
	if c.term.json {
		c.printPlan(p)
	} else if !c.term.quiet || p.Destroys != "" && !c.opts.yes {
		c.term.notef("%s", planHead(p))
		for _, line := range planLines(p) {
			c.term.notef("  %s", line)
		}
	}
	switch {
	case p.Destroys == "" || c.opts.yes:
		return true, nil
	case !c.term.asks:
		return false, advise(fmt.Errorf("restore to %s: this would destroy what is there, and there is no terminal to ask on: %w", p.Target.Path, job.ErrConfirm),
			"nothing was written; if this is what you want, say --yes")
	}
	answer, err := c.term.ask(ctx, fmt.Sprintf("All data on %s will be lost. Type yes to go on: ", clean(p.Target.Path)))
	return answer == "yes", err
}

func (c *call) printPlan(p *job.RestorePlan) {
	if c.term.json {
		c.term.object("plan", p)
		return
	}
	c.term.printf("%s\n", planHead(p))
	for _, line := range planLines(p) {
		c.term.printf("  %s\n", line)
	}
}

func planHead(p *job.RestorePlan) string {
	m := p.Image
	if part := p.Partition; part != nil {
		return fmt.Sprintf("restore partition %d of image %s of %s, taken %s, %s", part.Number, m.ID.String()[:shortID], m.Volume, timeText(m.Time), bytesText(part.Length))
	}
	return fmt.Sprintf("restore image %s of %s, taken %s, %s", m.ID.String()[:shortID], m.Volume, timeText(m.Time), bytesText(m.Size))
}

func planLines(p *job.RestorePlan) []string {
	lines := []string{"to " + targetText(p)}
	if p.Destroys != "" {
		lines = append(lines, "destroys: "+p.Destroys)
	}
	for i, s := range p.Steps {
		lines = append(lines, fmt.Sprintf("%d. %s", i+1, clean(s)))
	}
	for _, n := range p.Notices {
		lines = append(lines, "notice: "+clean(n))
	}
	return lines
}

func targetText(p *job.RestorePlan) string {
	if p.Create {
		return p.Target.Path + ", a new file"
	}
	return describeTarget(p.Target)
}

// describeTarget tells a device from the one beside it.
func describeTarget(d block.Info) string {
	words := []string{d.Path, d.Kind, bytesText(d.Size), d.Model}
	if d.Serial != "" {
		words = append(words, "serial "+d.Serial)
	}
	if c := contentText(d); c != "" {
		words = append(words, "holding "+c)
	}
	var said []string
	for _, w := range words {
		if w != "" {
			said = append(said, w)
		}
	}
	return strings.Join(said, ", ")
}

func (c *call) printRestore(r *job.RestoreReport) {
	if c.term.json {
		c.term.object("summary", r)
		return
	}
	m := r.Plan.Image
	what, size := "image", r.Plan.Fit.Length
	if p := r.Plan.Partition; p != nil {
		what = fmt.Sprintf("partition %d of image", p.Number)
	}
	c.term.summaryf("%s: %s %s of %s restored in %s, %s/s\n", r.Plan.Target.Path, what, m.ID.String()[:shortID], m.Volume,
		tookText(r.Elapsed), bytesText(perSecond(size, r.Elapsed)))
	c.term.summaryf("  written %s, zeroed %s, equal already %s\n", bytesText(r.Written), bytesText(r.Zeroed), bytesText(r.Kept))
	c.printRollback(r)
	if g := r.Grown; g != nil && g.Filesystem != "" {
		c.term.summaryf("  partition %d has %s now, and %s\n", g.Partition.Number, bytesText(g.Partition.Length), g.Filesystem)
	}
	for _, line := range r.Adapted {
		c.term.summaryf("  %s\n", clean(line))
	}
	if r.Trusted > 0 && r.ReadBack {
		c.term.summaryf("  what was looked at was read back: every block of it is the image's\n")
	} else if r.ReadBack {
		c.term.summaryf("  read back: every block is the image's\n")
	} else {
		c.term.summaryf("  not read back\n")
	}
	// Those of the plan were shown with it.
	for _, n := range r.Notices[min(len(r.Plan.Notices), len(r.Notices)):] {
		c.term.notef("  notice: %s", n)
	}
}

// printAdapted says what was changed of an image, and what was not.
func (c *call) printAdapted(r *adapt.Report) {
	if r == nil {
		return
	}
	for _, line := range r.Changes {
		c.term.summaryf("  changed: %s\n", clean(line))
	}
	for _, line := range r.Left {
		c.term.notef("  notice: %s", clean(line))
	}
}

func (c *call) printRollback(r *job.RestoreReport) {
	b := r.Rollback
	if b == nil {
		return
	}
	if b.Resumed != "" {
		c.term.summaryf("  a rollback that began at %s had been cut off: it is done now\n", b.Resumed)
	}
	if b.Why != "" {
		c.term.summaryf("  every block was compared: %s\n", b.Why)
		return
	}
	c.term.summaryf("  looked at %s: %s differ from image %.8s, %s were written since, says tracker %s; not looked at %s\n", bytesText(b.Looked),
		bytesText(b.Differs), b.Parent, bytesText(b.Written), b.Tracker, bytesText(r.Trusted))
}
