package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"

	"platter/image"
	"platter/internal/job"
)

// errShell means that the menu was left for a shell.
var errShell = errors.New("shell")

// menu asks what to do until a shell is wanted.
func (r *rescuer) menu(ctx context.Context) error {
	if !r.term.asks {
		return usagef("rescue-menu: there is no terminal to ask on; answers are read with --unattended")
	}
	steps := []struct {
		text string
		do   func(context.Context) error
	}{
		{"restore a disk", r.guide},
		{"set up the network", r.askNetwork},
		{"mount a disk with a repository", r.askMount},
		{"a shell; \"exit\" comes back here", func(context.Context) error { return errShell }},
		{"reboot", func(ctx context.Context) error { return after(ctx, "reboot") }},
		{"power off", func(ctx context.Context) error { return after(ctx, "poweroff") }},
	}
	for {
		r.term.notef("\nPlatter rescue")
		var texts []string
		for _, s := range steps {
			texts = append(texts, s.text)
		}
		n, err := r.choose(ctx, texts, 0)
		if err == nil {
			err = steps[n].do(ctx)
		}
		switch {
		case errors.Is(err, errShell):
			return nil
		case ctx.Err() != nil || errors.Is(err, errNoInput):
			return err
		case err != nil:
			r.term.notef("rescue: %s", oneLine(ctx, err))
		}
	}
}

// errNoInput means that the terminal is gone.
var errNoInput = errors.New("nobody answers")

// line asks for a line; nothing typed means what there was before.
func (r *rescuer) line(ctx context.Context, question, before string) (string, error) {
	if before != "" {
		question += " [" + clean(before) + "]"
	}
	answer, err := r.term.ask(ctx, question+": ")
	if err != nil {
		return "", errors.Join(errNoInput, err)
	}
	if answer = strings.TrimSpace(answer); answer == "" {
		answer = before
	}
	return answer, nil
}

// choose has one of texts chosen by its number.
func (r *rescuer) choose(ctx context.Context, texts []string, before int) (int, error) {
	for i, text := range texts {
		r.term.notef(" %2d  %s", i+1, clean(text))
	}
	for {
		answer, err := r.line(ctx, "number", strconv.Itoa(before+1))
		if err != nil {
			return 0, err
		}
		n, err := strconv.Atoi(answer)
		if err == nil && n >= 1 && n <= len(texts) {
			return n - 1, nil
		}
		r.term.notef("want a number from 1 to %d", len(texts))
	}
}

func (r *rescuer) askNetwork(ctx context.Context) error {
	network, err := r.line(ctx, "network: dhcp, or INTERFACE ADDRESS/BITS [GATEWAY [DNS...]]", orElse(r.answers.Network, "dhcp"))
	if err != nil {
		return err
	}
	r.answers.Network = network
	return r.connect(ctx, network)
}

func (r *rescuer) askMount(ctx context.Context) error {
	device, err := r.line(ctx, "file system to mount at "+repositoryDir+": a path, LABEL=... or UUID=...", r.answers.Mount)
	if err != nil || device == "" {
		return err
	}
	r.answers.Mount = device
	return mountRepository(ctx, device)
}

// guide leads through a restore: repository, volume, moment, target, plan.
func (r *rescuer) guide(ctx context.Context) error {
	location, err := r.line(ctx, "repository: a directory, s3:https://HOST/BUCKET/PREFIX, sftp:USER@HOST:PATH", orElse(r.answers.Repository, r.opts.repo))
	if err != nil {
		return err
	}
	r.answers.Repository, r.opts.repo = location, location
	if err := r.askKeys(ctx, location); err != nil {
		return err
	}
	env, done, err := r.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	m, err := r.askImage(ctx, env)
	if err != nil {
		return err
	}
	target, err := r.askTarget(ctx, m)
	if err != nil {
		return err
	}
	r.opts.yes = false
	if err := r.restore(ctx, env, m.ID.String(), target); err != nil {
		return err
	}
	r.term.notef("restored; take the medium out before the machine starts again")
	return nil
}

// askKeys asks for what a bucket wants to be opened with.
func (r *rescuer) askKeys(ctx context.Context, location string) error {
	if !strings.HasPrefix(location, "s3:") || os.Getenv("AWS_ACCESS_KEY_ID") != "" {
		return nil
	}
	id, err := r.line(ctx, "access key ID", "")
	if err != nil {
		return err
	}
	secret, err := r.term.secret(ctx, "secret access key: ")
	if err != nil {
		return errors.Join(errNoInput, err)
	}
	return errors.Join(os.Setenv("AWS_ACCESS_KEY_ID", id), os.Setenv("AWS_SECRET_ACCESS_KEY", string(secret)))
}

// momentsShown is how many images of a volume are listed, the newest ones.
const momentsShown = 30

func (r *rescuer) askImage(ctx context.Context, env *job.Env) (*image.Manifest, error) {
	all, _, err := job.Images(ctx, env, "")
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("there are no images in this repository")
	}
	var volumes []string
	for _, m := range all {
		if !slices.Contains(volumes, m.Volume) {
			volumes = append(volumes, m.Volume)
		}
	}
	r.term.notef("\nvolume")
	n, err := r.choose(ctx, volumes, 0)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(m *image.Manifest) bool { return m.Volume != volumes[n] })
	if len(all) > momentsShown {
		r.term.notef("(the newest %d of %d images; others are restored from the shell)", momentsShown, len(all))
		all = all[len(all)-momentsShown:]
	}
	known := r.imageNotes(ctx, env)
	var moments []string
	for _, m := range all {
		moments = append(moments, strings.Join(append([]string{timeText(m.Time), bytesText(m.Size)}, append(notes(m), standing(known.Of(m))...)...), ", "))
	}
	r.term.notef("\nmoment")
	if n, err = r.choose(ctx, moments, len(moments)-1); err != nil {
		return nil, err
	}
	return all[n], nil
}

func (r *rescuer) askTarget(ctx context.Context, m *image.Manifest) (string, error) {
	disks, err := r.disks()
	if err != nil {
		return "", err
	}
	var texts, paths []string
	for _, d := range disks {
		text := describeTarget(d.Info)
		if d.Size < m.Size {
			text += ", too small"
		}
		texts, paths = append(texts, text), append(paths, d.Path)
	}
	r.term.notef("\ntarget: all that it holds will be lost; the plan comes first")
	for i, text := range texts {
		r.term.notef(" %2d  %s", i+1, clean(text))
	}
	for {
		answer, err := r.line(ctx, "number, or a path", "")
		if err != nil {
			return "", err
		}
		n, err := strconv.Atoi(answer)
		switch {
		case strings.HasPrefix(answer, "/"):
			return answer, nil
		case err == nil && n >= 1 && n <= len(paths):
			return paths[n-1], nil
		}
		r.term.notef("want one of the numbers, or a path that begins with /")
	}
}
