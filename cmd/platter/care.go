package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"platter/image"
	"platter/image/repo"
	"platter/image/store/location"
	"platter/internal/job"
	"platter/internal/quantity"
)

// testAlgorithm is a variable of the tests: a repository made while it is set
// has IDs whose first 8 bytes are the same all the time.
const testAlgorithm = "PLATTER_TEST_XXH8"

func runInit(ctx context.Context, c *call, _ []string) error {
	if err := location.Check(c.opts.repo); err != nil {
		return adviseName(err)
	}
	if location.IsPath(c.opts.repo) {
		if err := vacant(c.opts.repo); err != nil {
			return err
		}
	}
	sealed, recovery, err := c.encryption(ctx)
	if err != nil {
		return err
	}
	st, err := location.Create(ctx, c.opts.repo, c.locationOptions())
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	defer st.Close()
	opts := repo.InitOptions{BlockSize: int(c.opts.blockSize), Encryption: sealed}
	if os.Getenv(testAlgorithm) == "1" {
		opts.IDAlgorithm = image.IDAlgorithm8
	}
	r, err := repo.Init(ctx, st, opts)
	if err != nil {
		return fmt.Errorf("init %w", err)
	}
	c.tellKeys(sealed, recovery, st.Location())
	if c.term.json {
		c.term.object("summary", struct {
			Repository string `json:"repository"`
			Location   string `json:"location"`
			BlockSize  int    `json:"block_size"`
			Encryption string `json:"encryption"`
		}{r.Config.Repository, st.Location(), r.Config.BlockSize, r.Config.Encryption})
		return nil
	}
	c.term.summaryf("repository %s made in %s, with blocks of %s\n", r.Config.Repository, st.Location(), quantity.FormatSize(int64(r.Config.BlockSize)))
	return nil
}

// vacant returns an error when path holds files of something else. Those of an
// init that was cut short, or of a repository, are repo.Init's to judge.
func vacant(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("init: %w", err)
	}
	other := ""
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "config":
			return nil
		case name == "keys", name == "lost+found", strings.HasPrefix(name, "."):
		default:
			other = name
		}
	}
	if other != "" {
		return advise(fmt.Errorf("init %s: the directory holds other files (%s) and no repository", path, other), "name an empty directory, or one that does not exist yet")
	}
	return nil
}

func runStats(ctx context.Context, c *call, _ []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	s, err := job.Stats(ctx, env)
	if err != nil {
		return err
	}
	if c.term.json {
		c.term.object("stats", s)
		return nil
	}
	var t table
	t.row("repository", s.Repository+" in "+env.Repo.Store.Location())
	t.row("images", fmt.Sprintf("%d of %s, of %s in all", s.Images, plural(s.Volumes, "volume"), bytesText(s.Logical)))
	t.row("blocks", fmt.Sprintf("%d in %s, %s before compression", s.Blocks, plural(s.Segments, "segment"), bytesText(s.Plain)))
	t.row("stored", fmt.Sprintf("%s%s", bytesText(s.Stored), ratio(s.Logical, s.Stored)))
	t.row("condemned", bytesText(s.Condemned))
	c.term.table(t)
	return nil
}

// ratio says how many times the stored bytes the images are.
func ratio(logical, stored int64) string {
	if stored <= 0 || logical <= 0 {
		return ""
	}
	return fmt.Sprintf(", 1/%.1f of the images", float64(logical)/float64(stored))
}

func runInspect(ctx context.Context, c *call, args []string) error {
	k, err := c.credentials(ctx)
	if err != nil {
		return err
	}
	if !c.term.json {
		return job.Inspect(ctx, nil, k, args[0], c.term)
	}
	var text bytes.Buffer
	err = job.Inspect(ctx, nil, k, args[0], &text)
	if text.Len() > 0 {
		c.term.object("file", struct {
			Path string   `json:"path"`
			Text []string `json:"text"`
		}{args[0], strings.Split(strings.TrimSpace(text.String()), "\n")})
	}
	return err
}

// version is set by the linker where the build knows better than the module.
var version string

// versionText is the version of this program.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unreleased"
}

// commit is what the program was built from, with + for changes on top.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text, mark := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			text = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			mark = "+"
		}
	}
	return text + mark
}

func runVersion(_ context.Context, c *call, _ []string) error {
	v := struct {
		Version string `json:"version"`
		Commit  string `json:"commit"`
		Go      string `json:"go"`
		System  string `json:"system"`
	}{versionText(), commit(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
	if c.term.json {
		c.term.object("version", v)
		return nil
	}
	c.term.printf("platter %s (commit %s, %s, %s)\n", v.Version, v.Commit, v.Go, v.System)
	return nil
}
