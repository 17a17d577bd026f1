package catalog

import (
	"context"
	"errors"
	"fmt"
)

// Rebuild makes a new catalog from the repository, beside the old one, which
// it replaces at once when it is complete; until then the old one stays as it
// was, damaged or not. It returns the new catalog, open. What Put kept is lost.
// A catalog of another repository, or of a newer platter, is left alone.
func Rebuild(ctx context.Context, opts Options, repo Repository, progress func(done, total int)) (*Catalog, SyncReport, error) {
	opts = opts.withDefaults()
	dir, err := openDirectory(ctx, opts)
	if err != nil {
		return nil, SyncReport{}, err
	}
	c, report, err := rebuildIn(ctx, dir, opts, repo, progress)
	if err != nil {
		return nil, report, errors.Join(err, dir.close())
	}
	return c, report, nil
}

func rebuildIn(ctx context.Context, dir *directory, opts Options, repo Repository, progress func(done, total int)) (*Catalog, SyncReport, error) {
	if old, err := dir.head(); err == nil && old.repository != opts.Repository {
		return nil, SyncReport{}, fmt.Errorf("rebuild catalog %s: %w", opts.Dir, old.check(opts))
	}
	head, err := dir.begin(opts)
	if err != nil {
		return nil, SyncReport{}, fmt.Errorf("rebuild catalog %s: %w", opts.Dir, err)
	}
	report, err := build(ctx, dir, opts, head, repo, progress)
	if err == nil {
		err = dir.setHead(head)
	}
	if err != nil {
		return nil, report, errors.Join(fmt.Errorf("rebuild catalog %s: %w", opts.Dir, err), dir.fs.RemoveAll(dir.path(head.index)))
	}
	if err := dir.clean(head.index); err != nil {
		return nil, report, fmt.Errorf("rebuild catalog %s: remove the old one: %w", opts.Dir, err)
	}
	c, err := load(dir, opts, head, false)
	return c, report, err
}

// build fills the index that head names.
func build(ctx context.Context, dir *directory, opts Options, head head, repo Repository, progress func(done, total int)) (SyncReport, error) {
	c, err := load(dir, opts, head, true)
	if err != nil {
		return SyncReport{}, err
	}
	report, err := c.Sync(ctx, repo, progress)
	return report, errors.Join(err, c.db.Close())
}
