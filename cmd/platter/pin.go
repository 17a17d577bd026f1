package main

import (
	"context"
	"fmt"
	"os/user"

	"platter/image/repo"
	"platter/internal/agent/config"
	"platter/internal/job"
)

// who is the person at work, for pins.
func who(host string) string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return name + "@" + host
}

func runPin(ctx context.Context, c *call, args []string) error {
	if c.opts.reason == "" {
		return advise(usagef("pin: say why, for whoever wonders in a year"), "as in: platter pin --reason 'before the move' %s", args[0])
	}
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	pin, err := job.Pin(ctx, env, job.PinOptions{
		Image: args[0], Reason: c.opts.reason, Hold: c.opts.hold, Until: c.opts.until, By: who(env.Host), Wait: c.opts.lockWait,
	})
	if err != nil {
		return err
	}
	c.printPins("pinned", *pin)
	return nil
}

func runUnpin(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	removed, err := job.Unpin(ctx, env, job.UnpinOptions{Image: args[0], Hold: c.opts.hold})
	c.printPins("no longer pinned", removed...)
	return err
}

func (c *call) printPins(what string, pins ...repo.Pin) {
	for _, p := range pins {
		if c.term.json {
			c.term.object("pin", p)
		} else {
			c.term.summaryf("image %.8s of %s is %s: %s\n", p.Image, p.Volume, what, p.String())
		}
	}
}

func runUndelete(ctx context.Context, c *call, args []string) error {
	env, done, err := c.writing(ctx)
	if err != nil {
		return err
	}
	defer done()
	r, err := job.Undelete(ctx, env, job.UndeleteOptions{
		Image: args[0], Reason: orElse(c.opts.reason, "undeleted"), Until: c.opts.until, By: who(env.Host), Wait: c.opts.lockWait,
	})
	c.term.clear()
	if r == nil {
		return err
	}
	if c.term.json {
		c.term.object("summary", r)
		return err
	}
	c.term.summaryf("image %.8s of %s is back, %s stored again; it is pinned (%s), or the next prune would forget it: when that is right, platter unpin %.8s\n",
		r.Image.ID, r.Image.Volume, bytesText(r.Stored), r.Pin.String(), r.Image.ID)
	return err
}

func runConfigCheck(_ context.Context, c *call, _ []string) error {
	conf, err := config.Load(c.opts.configFile())
	if err != nil {
		return adviseConfig(err)
	}
	if c.term.json {
		c.term.object("summary", conf)
		return nil
	}
	c.term.summaryf("%s: no mistakes; %s\n", plural(len(conf.Files), "file"), policies(len(conf.Policies)))
	return nil
}

func policies(n int) string {
	if n == 1 {
		return "1 policy"
	}
	return fmt.Sprintf("%d policies", n)
}

func adviseConfig(err error) error {
	return advise(usagef("%s", err), "nothing was done; see docs/retention.md for every key")
}
