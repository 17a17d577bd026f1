package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"platter/internal/export/files"
	"platter/internal/job"
)

func runFiles(ctx context.Context, c *call, args []string) (err error) {
	ways := 0
	for _, asked := range []bool{c.opts.to != "", c.opts.tar != "", c.opts.cat, c.opts.deep} {
		if asked {
			ways++
		}
	}
	if ways > 1 {
		return usagef("files: --to, --tar, --cat and --recursive are one or the other")
	}
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	opts := job.FilesOptions{Spec: args[0], Kernel: c.opts.kernel, Deep: c.opts.deep, To: c.opts.to}
	told := false // whether standard output is taken by what was asked for
	switch {
	case c.opts.cat:
		opts.Cat, told = c.term.data(), true
	case c.opts.tar == "-":
		opts.Tar, told = c.term.data(), true
	case c.opts.tar != "":
		f, err := os.OpenFile(c.opts.tar, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%w: remove it first, or name another file", err)
		} else if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		opts.Tar = f
	case c.opts.to == "":
		opts.List = c.printFile
	}
	report, err := job.Files(ctx, env, opts)
	if report != nil {
		c.record.Used(report.Image)
	}
	if report == nil || report.Report == nil {
		return err
	}
	c.printFiles(report, told)
	if err == nil && report.Missing > 0 {
		err = incompletef("files: %s missing", plural(report.Missing, "file or attribute is"))
	}
	return err
}

// data is standard output for bytes of anybody's. On a terminal they are made
// harmless.
func (t *terminal) data() io.Writer {
	if t.full {
		return t.cleaned()
	}
	return t.out
}

// cleaned is the screen, for text.
func (t *terminal) cleaned() io.Writer {
	return writer(func(p []byte) (int, error) {
		t.printf("%s", string(p))
		return len(p), t.broken
	})
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// printFile prints a line as ls -l does, owners as numbers.
func (c *call) printFile(l files.Line) error {
	if c.term.json {
		c.term.object("file", l)
		return c.term.broken
	}
	if l.Type == "" {
		c.term.printf("%s: %s\n", l.Path, l.Error)
		return c.term.broken
	}
	name := l.Path
	if l.Target != "" {
		name += " -> " + l.Target
	}
	size := strconv.FormatInt(l.Size, 10)
	if l.Device != "" {
		size = strings.Replace(l.Device, ":", ", ", 1)
	}
	c.term.printf("%s %3d %6d %6d %12s %s %s\n", modeText(l), l.Links, l.UID, l.GID, size, timeText(l.Time), name)
	if l.Error != "" {
		c.term.printf("  %s\n", l.Error)
	}
	return c.term.broken
}

// modeText is -rwsr-xr-t, with a + behind where there are attributes.
func modeText(l files.Line) string {
	n, _ := strconv.ParseUint(l.Mode, 8, 32)
	b := []byte(map[string]string{"folder": "d", "link": "l", "block": "b", "char": "c", "fifo": "p", "socket": "s"}[l.Type])
	if len(b) == 0 {
		b = []byte("-")
	}
	for i := range 9 {
		letter := byte('-')
		if n>>(8-i)&1 != 0 {
			letter = "rwx"[i%3]
		}
		b = append(b, letter)
	}
	for i, special := range []string{"sS", "sS", "tT"} {
		if n>>(11-i)&1 == 0 {
			continue
		}
		at := 3 * (i + 1)
		if b[at] == 'x' {
			b[at] = special[0]
		} else {
			b[at] = special[1]
		}
	}
	if len(l.Xattrs) > 0 {
		return string(append(b, '+'))
	}
	return string(append(b, ' '))
}

// printFiles tells what was copied, beside standard output if that is taken.
func (c *call) printFiles(r *job.FilesReport, told bool) {
	if c.term.json && !told {
		c.term.object("summary", r)
		return
	}
	say := c.term.summaryf
	if told {
		say = func(format string, args ...any) {
			if !c.term.quiet && c.opts.tar != "" {
				c.term.notef(strings.TrimSuffix(format, "\n"), args...)
			}
		}
	}
	say("%s, %s and %s of other kinds from image %s of %s: %s\n", plural(r.Files, "file"), plural(r.Folders, "folder"),
		plural(r.Others, "thing"), r.Image.ID.String()[:shortID], r.Image.Volume, bytesText(r.Bytes))
	if r.NoOwners {
		c.term.notef("  notice: owners are not kept: only root can give files away")
	}
	for _, f := range r.Failed {
		c.term.notef("  missing: %s", f)
	}
	if n := r.Missing - int64(len(r.Failed)); n > 0 {
		c.term.notef("  and %d more", n)
	}
}
