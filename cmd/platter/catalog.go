package main

import (
	"context"
	"fmt"
	"os"

	"platter/catalog"
)

func runCatalogCheck(ctx context.Context, c *call, _ []string) error {
	r, err := c.openRepository(ctx)
	if err != nil {
		return err
	}
	var cat *catalog.Catalog
	defer func() { c.finish(r, cat) }()
	if _, err := os.Stat(c.catalogDir(r)); err != nil {
		return advise(fmt.Errorf("catalog check: there is no catalog: %w", err), "the next backup makes one, and so does: platter catalog rebuild")
	}
	if cat, err = c.openCatalog(ctx, r, c.opts.lockWait); err != nil {
		return err
	}
	report, err := cat.Check(ctx, r)
	if err != nil {
		return err
	}
	c.printCheck(report)
	if report.Different == 0 {
		return nil
	}
	return advise(fmt.Errorf("catalog check: %s from the repository", plural(report.Different, "difference")),
		"no image is harmed by that; make the catalog anew with: platter catalog rebuild")
}

func (c *call) printCheck(r catalog.CheckReport) {
	if c.term.json {
		c.term.object("summary", r)
		return
	}
	for _, d := range r.Differences {
		c.term.printf("%s: %s\n", d.Object, d.Problem)
	}
	c.term.summaryf("compared %s, %s, %s and %s in %s: %s\n", plural(r.Manifests, "image"), plural(r.Segments, "segment"),
		plural(r.Records, "record"), plural(r.Pages, "page"), tookText(r.Elapsed), plural(r.Different, "difference"))
}

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
