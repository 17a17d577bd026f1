package main

import (
	"context"
	"strings"

	"platter/internal/job"
)

func runNBD(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	return job.ServeNBD(ctx, env, job.NBDOptions{
		OfferOptions: c.offerOptions(args[0]),
		Unix:         c.opts.unix, Listen: c.opts.listen,
		Certificate: c.opts.tlsCertificate, Key: c.opts.tlsKey, Clients: c.opts.tlsClients,
		Ready: c.printOffer,
	})
}

func (c *call) offerOptions(image string) job.OfferOptions {
	return job.OfferOptions{Image: image, Overlay: c.opts.overlay, Writable: c.opts.writable}
}

func (c *call) printOffer(o job.NBDOffer) {
	if c.term.json {
		c.term.object("ready", o)
		return
	}
	c.term.summaryf("image %s of %s, %s, is at %s\n", o.Image[:shortID], o.Volume, bytesText(o.Size), o.URI)
	c.term.summaryf("  writes are %s; stop with Ctrl-C\n", o.Writes)
}

func runExport(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	r, err := job.Export(ctx, env, job.ExportOptions{Image: args[0], Target: args[1], Format: c.opts.format})
	c.term.clear()
	if err != nil {
		return err
	}
	if c.term.json {
		c.term.object("summary", r)
		return nil
	}
	c.term.summaryf("%s: image %s of %s as %s, %s on disk, in %s\n", clean(r.Target), r.Image.ID.String()[:shortID], r.Image.Volume,
		r.Format, bytesText(r.Bytes), tookText(r.Elapsed))
	return nil
}

func runMount(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	return job.Mount(ctx, env, job.MountOptions{OfferOptions: c.offerOptions(args[0]), Dir: args[1], Ready: c.printMount})
}

func (c *call) printMount(o job.MountOffer) {
	if c.term.json {
		c.term.object("ready", o)
		return
	}
	c.term.summaryf("image %s of %s is at %s: %s\n", o.Image[:shortID], o.Volume, clean(o.Dir), strings.Join(o.Files, ", "))
	c.term.summaryf("  stop with Ctrl-C, or umount %s\n", clean(o.Dir))
}

func runBoot(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	r, err := job.Boot(ctx, env, job.BootOptions{
		Image: args[0], Firmware: c.opts.firmware, Bus: c.opts.bus, Memory: c.opts.vmMemory, Limit: c.opts.timeout,
		Picture: c.opts.picture, Emulate: c.opts.emulate, Adapt: c.opts.adapt,
	})
	if r != nil {
		c.record.Used(r.Image)
		c.printBoot(r)
	}
	return err
}

func (c *call) printBoot(r *job.BootReport) {
	if c.term.json {
		c.term.object("summary", r)
		return
	}
	by := r.Firmware
	if !r.KVM {
		by += ", emulated"
	}
	c.term.summaryf("image %s of %s, started by %s: %s after %s\n", r.Image.ID.String()[:shortID], r.Image.Volume, by, r.Verdict, tookText(r.Elapsed))
	if r.Where != "" {
		c.term.summaryf("  the %s said: %s\n", r.Where, clean(r.Reason))
	}
	if r.Picture != "" {
		c.term.summaryf("  the last screen is in %s\n", clean(r.Picture))
	}
	c.printAdapted(r.Adapted)
	if c.opts.verbose {
		c.term.summaryf("%s\n", strings.TrimSpace(clean(r.Serial)+"\n"+clean(r.Screen)))
	}
}
