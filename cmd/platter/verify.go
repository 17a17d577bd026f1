package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
	err = errors.Join(err, forged(r))
	if c.term.json {
		c.term.object("summary", r)
		return err
	}
	for _, d := range r.Damage {
		c.term.printf("%s\n", damageText(d))
	}
	for _, f := range r.Forged {
		c.term.printf("counts for nothing: %s: %s\n", f.Object, strings.TrimPrefix(f.Problem, f.Object+": "))
	}
	c.term.summaryf("verified %s and %s (%s) in %s: %s\n", plural(r.Images, "image"), plural(r.Segments, "segment"), r.Scope,
		tookText(r.Elapsed), found(r))
	if r.BytesRead > 0 {
		c.term.summaryf("  read %s, %s checked, %s of maps\n", bytesText(r.BytesRead), plural(r.Blocks, "block"), plural(r.Pages, "page"))
	}
	if r.Attested > 0 {
		c.term.summaryf("  others may rely on %s from now on, which were read whole\n", plural(r.Attested, "segment"))
	}
	if r.Condemned > 0 {
		c.term.summaryf("  %s condemned, which no image needs: platter gc deletes them when their grace is over\n", plural(r.Condemned, "segment"))
	}
	if r.Indexes > 0 {
		c.term.summaryf("  %s of the ends of %s, and of %d that are gone\n", plural(r.Indexes, "index object"), plural(r.Indexed, "segment"), r.IndexedGone)
	}
	return err
}

// forged is the error for objects that somebody had no right to write.
func forged(r *job.VerifyReport) error {
	if len(r.Forged) == 0 {
		return nil
	}
	return advise(incompletef("verify: %s by somebody who had no right to; they count for nothing, and harm no image", plural(len(r.Forged), "object")+" written"),
		"find out whose key wrote them, and remove it: platter key list; then delete them from the store by hand")
}

func found(r *job.VerifyReport) string {
	text := "no damage"
	if len(r.Damage) > 0 {
		text = plural(len(r.Damage), "place") + " damaged"
	}
	if len(r.Forged) > 0 {
		text += ", " + plural(len(r.Forged), "object") + " forged"
	}
	return text
}

func damageText(d job.Damage) string {
	text := "damaged: "
	if d.Image != "" {
		text += fmt.Sprintf("image %.8s of %s, %d bytes at %d: ", d.Image, d.Volume, d.Extent.Length, d.Extent.Offset)
	}
	return text + d.Object + ": " + d.Problem
}
