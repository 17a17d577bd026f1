package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"platter/image/store/location"
	"platter/internal/agent/config"
	"platter/internal/agent/doctor"
)

func runDoctor(ctx context.Context, c *call, _ []string) error {
	p := &doctor.Patient{State: c.opts.stateDir(), Location: c.opts.repo}
	conf, err := config.Load(c.opts.configFile())
	switch {
	case err == nil:
		p.Config, p.Files = conf, conf.Files
	case !errors.Is(err, fs.ErrNotExist):
		return adviseConfig(err)
	}
	if location.IsPath(c.opts.repo) {
		p.Path = c.opts.repo
	}
	p.Secrets = secretFiles(conf)
	p.Repo, p.Problem = c.openRepository(ctx)
	if p.Repo != nil {
		defer c.finish(p.Repo, nil)
	}
	r := doctor.Look(ctx, p)
	c.printDoctor(r)
	if len(r.Findings) == 0 {
		return ctx.Err()
	}
	return incompletef("doctor: %s", plural(len(r.Findings), "finding"))
}

// secretFiles are those that the environment and the config name.
func secretFiles(conf *config.Config) (list []string) {
	add := func(path string) {
		if path != "" {
			list = append(list, path)
		}
	}
	for _, name := range []string{passwordVar + "_FILE", keyFileVar, identityVar} {
		add(os.Getenv(name))
	}
	if conf == nil {
		return list
	}
	for _, r := range conf.Repositories {
		add(r.EnvironmentFile)
		for _, v := range r.Environment {
			if name, path, _ := strings.Cut(v, "="); strings.HasSuffix(name, "_FILE") {
				add(path)
			}
		}
	}
	for _, n := range conf.Notifiers {
		add(n.URLFile)
		add(n.TokenFile)
		add(n.PasswordFile)
	}
	return list
}

func (c *call) printDoctor(r *doctor.Report) {
	if c.term.json {
		for _, f := range r.Findings {
			c.term.object("finding", f)
		}
		c.term.object("summary", r)
		return
	}
	for _, f := range r.Findings {
		c.term.printf("%s: %s\n  %s\n", f.Check, f.Text, f.Remedy)
	}
	for _, k := range r.Checks {
		switch {
		case k.Skipped != "":
			c.term.summaryf("%s: not looked at: %s\n", k.Name, k.Skipped)
		case k.Found == 0:
			c.term.summaryf("%s: in order\n", k.Name)
		}
	}
}
