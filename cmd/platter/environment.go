package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"platter/catalog"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store/location"
	"platter/internal/agent/history"
	"platter/internal/job"
	"platter/internal/quantity"
)

// reading opens what a command that changes nothing works with. It does
// without a catalog where there is none, or where another process holds it.
func (c *call) reading(ctx context.Context) (*job.Env, func(), error) {
	return c.environment(ctx, func(r *repo.Repo) (*catalog.Catalog, error) {
		path := c.catalogDir(r)
		if _, err := os.Stat(path); err != nil {
			c.detailf("no catalog at %s: going on without", path)
			return nil, nil
		}
		cat, err := c.openCatalog(ctx, r, 0)
		if err == nil || errors.Is(err, catalog.ErrForeign) || ctx.Err() != nil {
			return cat, err
		}
		if errors.Is(err, catalog.ErrLocked) || errors.Is(err, fs.ErrPermission) {
			c.detailf("%s: going on without the catalog", err)
		} else {
			c.term.notef("platter: %s: going on without the catalog", err)
		}
		return nil, nil
	})
}

// writing opens what a command that changes the repository works with. It
// waits for another process that holds the catalog.
func (c *call) writing(ctx context.Context) (*job.Env, func(), error) {
	return c.environment(ctx, func(r *repo.Repo) (*catalog.Catalog, error) {
		return c.openCatalog(ctx, r, c.opts.lockWait)
	})
}

// environment opens the repository and, by open, its catalog. The caller calls
// the function returned when its job is over.
func (c *call) environment(ctx context.Context, open func(*repo.Repo) (*catalog.Catalog, error)) (*job.Env, func(), error) {
	r, err := c.openRepository(ctx)
	if err != nil {
		return nil, nil, err
	}
	cat, err := open(r)
	if err != nil {
		return nil, nil, errors.Join(err, r.Store.Close())
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	env := &job.Env{
		Repo: r, Catalog: cat, Memory: c.opts.memory, Version: versionText(), Host: host,
		Progress: newProgress(c.term), Warn: func(s string) { c.term.notef("platter: %s", s) },
	}
	return env, func() { c.finish(r, cat) }, nil
}

// finish closes what environment opened. What fails here costs the next run
// time, and this run nothing.
func (c *call) finish(r *repo.Repo, cat *catalog.Catalog) {
	var err error
	if cat != nil {
		err = cat.Close()
	}
	if err = errors.Join(err, r.Store.Close()); err != nil {
		c.term.notef("platter: %s", err)
	}
}

func (c *call) openRepository(ctx context.Context) (*repo.Repo, error) {
	r, _, err := c.unlock(ctx)
	return r, err
}

// unlock opens the repository with the password and keys of the environment
// or, where there are none and it needs some, with a password it asks for. It
// returns what it opened the repository with.
func (c *call) unlock(ctx context.Context) (*repo.Repo, *keys.Credentials, error) {
	k, err := c.credentials(ctx)
	if err != nil {
		return nil, nil, advise(fmt.Errorf("open repository: %w", err), unlockAdvice)
	}
	st, err := location.Open(ctx, c.opts.repo, c.locationOptions())
	switch {
	case errors.Is(err, location.ErrSyntax):
		return nil, nil, adviseName(err)
	case errors.Is(err, location.ErrMissing):
		return nil, nil, advise(fmt.Errorf("open repository %s: %w: there is no such directory", c.opts.repo, repo.ErrNoRepository),
			"name it with -r or PLATTER_REPOSITORY, or make one: platter init -r %s", c.opts.repo)
	case err != nil:
		return nil, nil, fmt.Errorf("open repository: %w", err)
	}
	r, err := repo.Unlock(ctx, st, k)
	if errors.Is(err, keys.ErrCredentials) && k.Empty() && c.term.asks {
		if k.Passphrase, err = c.term.secret(ctx, fmt.Sprintf("password for repository %s: ", clean(st.Location()))); err == nil {
			r, err = repo.Unlock(ctx, st, k)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(adviseUnlock(fmt.Errorf("open repository %w", err), st.Location(), k), st.Close())
	}
	return r, k, nil
}

// locationOptions are for stores that are reached by a network.
func (c *call) locationOptions() location.Options {
	return location.Options{
		UploadLimit: c.opts.limitUpload, DownloadLimit: c.opts.limitDownload, Patience: c.opts.retryFor,
		Notify: func(s string) { c.term.notef("platter: %s", s) },
	}
}

// adviseName is for a name of a repository that cannot be one.
func adviseName(err error) error {
	return advise(usagef("%s", err), "name a directory, a bucket or sftp:USER@HOST:PATH; for a directory with a colon in its name, write ./NAME")
}

// catalogDir is where the catalog of a repository is: where --catalog says, or
// a folder for each repository, so that no two ever meet in one.
func (c *call) catalogDir(r *repo.Repo) string {
	if c.opts.catalog != "" {
		return c.opts.catalog
	}
	return filepath.Join(c.opts.stateDir(), "catalog", fmt.Sprintf("%x", r.ID))
}

// openCatalog opens the catalog as it is: jobs bring it up to date.
func (c *call) openCatalog(ctx context.Context, r *repo.Repo, wait time.Duration) (*catalog.Catalog, error) {
	return catalog.Open(ctx, c.catalogOptions(r, wait))
}

func (c *call) catalogOptions(r *repo.Repo, wait time.Duration) catalog.Options {
	return catalog.Options{
		Dir: c.catalogDir(r), Repository: r.Identity(), BlockSize: r.Config.BlockSize,
		Memory: c.opts.memory / 4, LockWait: wait, Waiting: func(process string) { c.tellHolder(process, wait) },
	}
}

// tellHolder says for whom this process waits.
func (c *call) tellHolder(process string, wait time.Duration) {
	what := "process " + process
	runs, err := history.In(c.opts.stateDir()).Runs(history.Filter{})
	if err != nil {
		runs = nil // the number has to do
	}
	for i := range runs {
		if r := &runs[i]; r.Outcome == history.Running && strconv.Itoa(r.Process.PID) == process {
			what += fmt.Sprintf(", a %s since %s", r.Kind, timeText(r.Start))
			if r.Job != "" {
				what += " of the agent's job " + r.Job
			}
		}
	}
	c.term.notef("platter: waiting up to %s for the catalog, which another platter has (%s)", quantity.FormatSpan(wait), what)
}

// detailf is a notice for those who asked for more.
func (c *call) detailf(format string, args ...any) {
	if c.term.verbose {
		c.term.notef("platter: "+format, args...)
	}
}
