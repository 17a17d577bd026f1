package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"platter/block"
	tools "platter/block/command"
	"platter/internal/export/rescue"
)

func runRescue(ctx context.Context, c *call, args []string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	opts := rescue.Options{File: args[0], Program: program, Tree: c.opts.tree, Cache: filepath.Join(cache, "platter")}
	if c.opts.answers != "" {
		if opts.Answers, err = os.ReadFile(c.opts.answers); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(opts.Cache, 0o755); err != nil {
		return err
	}
	r, err := rescue.Build(ctx, opts)
	if errors.Is(err, fs.ErrExist) {
		return advise(err, "name a file that does not exist; then write it to a stick with: cp FILE /dev/sdX")
	}
	if err != nil {
		return err
	}
	if c.term.json {
		c.term.object("summary", r)
		return nil
	}
	c.term.summaryf("%s: %s, Linux %s with %s; SHA-256 %s\n", clean(r.File), bytesText(r.Size), r.Kernel, plural(r.Modules, "driver"), r.SHA256)
	if r.Answers {
		c.term.summaryf("  whoever starts a machine from it loses what is on the target's disk: it restores without asking\n")
	}
	return nil
}

// Where the rescue medium has what the menu needs.
const (
	mediumDir      = "/run/medium"
	repositoryDir  = "/mnt/repository"
	networkProgram = "/etc/rescue/network"
)

// onMedium reports whether this is a machine that was started from the medium.
func onMedium() bool { return os.Getenv("PLATTER_RESCUE") != "" }

// A rescuer leads through a restore on a bare machine.
type rescuer struct {
	*call
	answers *rescue.Answers
	file    string // of the answers; empty where there is none
}

func runRescueMenu(ctx context.Context, c *call, _ []string) error {
	r := &rescuer{call: c, answers: &rescue.Answers{}}
	if err := r.readAnswers(); err != nil {
		return err
	}
	for name, value := range r.answers.Environment {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if err := r.trust(); err != nil {
		return err
	}
	if r.answers.Repository != "" {
		c.opts.repo = r.answers.Repository
	}
	switch {
	case !c.opts.unattended:
		return r.menu(ctx)
	case !r.answers.Unattended():
		return nil // the menu comes next
	}
	err := r.unattended(ctx)
	if err != nil {
		c.term.notef("rescue: %s", oneLine(ctx, err))
		c.term.notef("rescue: nothing more is done by itself; the menu and the shell are there")
	}
	return err
}

// readAnswers reads the answers of --answers or of the medium, and what the
// kernel's command line says besides.
func (r *rescuer) readAnswers() error {
	line := ""
	if onMedium() {
		b, err := os.ReadFile("/proc/cmdline")
		if err != nil {
			return err
		}
		line = string(b)
	}
	named, err := new(rescue.Answers).Override(line)
	if err != nil {
		return err
	}
	switch {
	case r.opts.answers != "":
		r.file = r.opts.answers
	case named != "":
		r.file = filepath.Join(mediumDir, named)
	case onMedium():
		r.file = filepath.Join(mediumDir, rescue.AnswersName)
	}
	var b []byte
	if r.file != "" {
		b, err = os.ReadFile(r.file)
		if errors.Is(err, fs.ErrNotExist) && r.opts.answers == "" && named == "" {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("answers: %w", err)
		}
	}
	if r.answers, err = rescue.ParseAnswers(b); err != nil {
		return err
	}
	_, err = r.answers.Override(line)
	return err
}

// certificates are those that the medium trusts.
const certificates = "/etc/ssl/certs/ca-certificates.crt"

// trust has the medium trust the authority that the answers name.
func (r *rescuer) trust() error {
	if r.answers.Authority == "" || !onMedium() {
		return nil
	}
	known, err := os.ReadFile(certificates)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if strings.Contains(string(known), r.answers.Authority) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(certificates), 0o755); err != nil {
		return err
	}
	return os.WriteFile(certificates, []byte(string(known)+"\n"+r.answers.Authority+"\n"), 0o644)
}

// unattended restores as the answers say.
func (r *rescuer) unattended(ctx context.Context) error {
	r.term.notef("rescue: restoring %s without asking", clean(r.answers.Image))
	if err := r.connect(ctx, r.answers.Network); err != nil {
		return err
	}
	if err := mountRepository(ctx, r.answers.Mount); err != nil {
		return err
	}
	targets, err := r.targets()
	if err != nil {
		return err
	}
	r.opts.yes = true
	if err := runRestore(ctx, r.call, append([]string{r.answers.Image}, targets...)); err != nil {
		return err
	}
	then := r.answers.Then
	// The next start from this medium must not restore again.
	if err := r.retire(ctx); err != nil && then == "reboot" {
		r.term.notef("rescue: the medium would restore again: %s; take it out, then reboot", oneLine(ctx, err))
		then = "poweroff"
	}
	r.term.notef("rescue: done")
	return after(ctx, then)
}

// connect brings a network up. Right after a start cards may still come up.
func (r *rescuer) connect(ctx context.Context, network string) error {
	if network == "" {
		return nil
	}
	var err error
	for range 10 {
		if _, err = tools.Run(ctx, networkProgram, strings.Fields(network)...); err == nil || errors.Is(err, tools.ErrMissing) || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(3 * time.Second):
		}
	}
	if err != nil {
		return fmt.Errorf("network %q: %w", network, err)
	}
	return nil
}

// mountRepository mounts the file system that a repository is on.
func mountRepository(ctx context.Context, device string) error {
	if device == "" {
		return nil
	}
	if err := os.MkdirAll(repositoryDir, 0o755); err != nil {
		return err
	}
	_, err := tools.Run(ctx, "mount", "-o", "ro", device, repositoryDir)
	return err
}

// targets are the disks that the answers mean.
func (r *rescuer) targets() (list []string, err error) {
	disks, err := r.disks()
	if err != nil {
		return nil, err
	}
	for _, t := range r.answers.Target {
		prefix := ""
		if volume, disk, ok := strings.Cut(t, "="); ok {
			prefix, t = volume+"=", disk
		}
		path, err := pickDisk(disks, t)
		if err != nil {
			return nil, err
		}
		list = append(list, prefix+path)
	}
	return list, nil
}

// pickDisk returns the path of the disk that is meant.
func pickDisk(disks []block.Device, meant string) (string, error) {
	serial, bySerial := strings.CutPrefix(meant, "serial:")
	if !bySerial && meant != "only" {
		return meant, nil
	}
	var paths []string
	for _, d := range disks {
		if !bySerial || d.Serial == serial {
			paths = append(paths, d.Path)
		}
	}
	if len(paths) != 1 {
		return "", fmt.Errorf("target %q: want one disk, and %d may be meant: %s", meant, len(paths), strings.Join(paths, " "))
	}
	return paths[0], nil
}

// disks are those that a restore may go to: all but the medium.
func (r *rescuer) disks() ([]block.Device, error) {
	all, err := block.Devices()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(d block.Device) bool {
		return d.Disk != "" || d.Kind != block.KindDisk || slices.ContainsFunc(d.Usage, func(u block.Usage) bool { return u.By == mediumDir })
	}), nil
}

// retire renames the answers on the medium.
func (r *rescuer) retire(ctx context.Context) error {
	if r.file == "" || !onMedium() || !strings.HasPrefix(r.file, mediumDir) {
		return nil
	}
	if _, err := os.Stat(r.file); err != nil {
		return nil // they came from the kernel's command line
	}
	if _, err := tools.Run(ctx, "mount", "-o", "remount,rw", mediumDir); err != nil {
		return err
	}
	err := os.Rename(r.file, r.file+".old")
	_, unmounted := tools.Run(ctx, "umount", mediumDir)
	return errors.Join(err, unmounted)
}

// after does what comes after a restore.
func after(ctx context.Context, then string) error {
	if then != "reboot" && then != "poweroff" || !onMedium() {
		return nil
	}
	_, err := tools.Run(ctx, "busybox", then)
	return err
}
