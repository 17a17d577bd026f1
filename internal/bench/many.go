package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"platter/internal/bench/workload"
)

// manyFigures are those of a repository of ten million small blocks.
type manyFigures struct {
	Rebuild sample // of the catalog, from nothing
	Cold    sample // a restore of 1 GiB without a catalog
}

// many fills a repository, loses its catalog, restores one disk, and rebuilds.
func (r *runner) many(ctx context.Context, program string) (*manyFigures, error) {
	work, err := os.MkdirTemp(r.dir, "many-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	at := func(name string) string { return filepath.Join(work, name) }
	platter := func(catalog string, args ...string) (sample, error) {
		all := append([]string{program}, args...)
		s, _, err := measure(ctx, command{args: append(all, "-r", at("repo"), "--catalog", at(catalog))})
		return s, err
	}
	if _, err := platter("catalog", "init", "--no-encryption", "--block-size", "4KiB"); err != nil {
		return nil, err
	}
	r.say("a repository of %d blocks\n", workload.ManyBlocks)
	for part := range workload.ManyParts {
		err := workload.MakeMany(at("part.raw"), part)
		if err == nil {
			_, err = platter("catalog", "backup", at("part.raw"), "--all-blocks", "--volume", "bench/part")
		}
		if err != nil {
			return nil, err
		}
	}
	if err := errors.Join(os.Remove(at("part.raw")), workload.MakeOne(at("one.raw"))); err != nil {
		return nil, err
	}
	if _, err := platter("catalog", "backup", at("one.raw"), "--all-blocks", "--volume", "bench/one"); err != nil {
		return nil, err
	}

	m := &manyFigures{}
	if err := r.cache.prepare(); err != nil {
		return nil, err
	}
	if m.Cold, err = platter("none", "restore", "bench/one", at("back.raw"), "--yes"); err != nil {
		return nil, err
	}
	if err := equal(ctx, at("back.raw"), at("one.raw")); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(at("none")), os.RemoveAll(at("catalog"))); err != nil {
		return nil, err
	}
	if m.Rebuild, err = platter("catalog", "catalog", "rebuild"); err != nil {
		return nil, err
	}
	r.say("catalog rebuilt in %.1f s, 1 GiB restored without one in %.1f s\n", m.Rebuild.Wall.Seconds(), m.Cold.Wall.Seconds())
	return m, nil
}
