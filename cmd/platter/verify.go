package main

import (
	"context"
	"fmt"

	"platter/internal/job"
)

func runVerify(ctx context.Context, c *call, args []string) error {
	if c.opts.readData && c.opts.subset > 0 {
		return usagef("verify: --read-data reads everything: leave out it or --read-data-subset")
	}
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	r, err := job.Verify(ctx, env, job.VerifyOptions{Images: args, ReadData: c.opts.readData, Subset: c.opts.subset})
	c.term.clear()
	if r == nil {
		return err
	}
	c.record.Read = r.BytesRead
	for _, d := range r.Damage {
		c.record.Touched(d.Volume)
	}
	if c.term.json {
		c.term.object("summary", r)
		return err
	}
	for _, d := range r.Damage {
		c.term.printf("%s\n", damageText(d))
	}
	c.term.summaryf("verified %s and %s (%s) in %s: %s\n", plural(r.Images, "image"), plural(r.Segments, "segment"), r.Scope,
		tookText(r.Elapsed), found(r))
	if r.BytesRead > 0 {
		c.term.summaryf("  read %s, %s checked, %s of maps\n", bytesText(r.BytesRead), plural(r.Blocks, "block"), plural(r.Pages, "page"))
	}
	return err
}

func found(r *job.VerifyReport) string {
	if len(r.Damage) == 0 {
		return "no damage"
	}
	return plural(len(r.Damage), "place") + " damaged"
}

func damageText(d job.Damage) string {
	text := "damaged: "
	if d.Image != "" {
		text += fmt.Sprintf("image %.8s of %s, %d bytes at %d: ", d.Image, d.Volume, d.Extent.Length, d.Extent.Offset)
	}
	return text + d.Object + ": " + d.Problem
}
