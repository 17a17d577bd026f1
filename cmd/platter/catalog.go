package main

import (
	"context"

	"platter/catalog"
)

func runCatalogRebuild(ctx context.Context, c *call, _ []string) error {
	r, err := c.openRepository(ctx)
	if err != nil {
		return err
	}
	cat, report, err := catalog.Rebuild(ctx, c.catalogOptions(r, c.opts.lockWait), r, newCountProgress(c.term, "catalog rebuild", "segments"))
	c.term.clear()
	defer c.finish(r, cat)
	if err != nil {
		return err
	}
	for _, w := range report.Warnings {
		c.term.notef("platter: %s", w)
	}
	if c.term.json {
		c.term.object("summary", report)
	} else {
		c.term.summaryf("catalog of %s and %s (%s) made in %s\n", plural(report.ManifestsAdded, "image"), plural(report.Added, "segment"),
			plural(report.Records, "record"), tookText(report.Elapsed))
	}
	if report.Skipped > 0 {
		return advise(incompletef("catalog rebuild: %s could not be read", plural(report.Skipped, "object")), "see what that means with: platter verify")
	}
	return nil
}
