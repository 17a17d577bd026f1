package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"platter/internal/bench/workload"
)

const mib = 1 << 20

// A runner runs the tools in turn and keeps their samples.
type runner struct {
	dir     string
	server  string // the program of a server for S3
	disks   workload.Disks
	cache   *cache
	samples map[string]map[string][]sample // by tool and step
	say     func(format string, args ...any)
}

// round runs every step of one tool in an empty folder.
func (r *runner) round(ctx context.Context, t tool) error {
	work, err := os.MkdirTemp(r.dir, "round-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Mkdir(filepath.Join(work, "out"), 0o700); err != nil {
		return err
	}
	p := places{
		first: r.disks.First, second: r.disks.Second,
		repo: filepath.Join(work, "repo"), out: filepath.Join(work, "out", "restored.raw"),
	}
	if t.server {
		url, stop, err := serve(ctx, r.server, p.repo)
		if err != nil {
			return err
		}
		defer stop()
		p.url = url
	}
	// Nothing of one round is found again in the next, borg's caches neither.
	env := append(t.env, "HOME="+work, "XDG_CACHE_HOME="+filepath.Join(work, "cache"), "XDG_CONFIG_HOME="+filepath.Join(work, "config"))
	for _, c := range t.start(p) {
		c.env = env
		if _, _, err := measure(ctx, c); err != nil {
			return err
		}
	}
	for _, s := range t.steps {
		taken, err := r.step(ctx, s, p, env)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", t.name, s.name, err)
		}
		r.keep(t.name, s.name, taken)
	}
	return nil
}

func (r *runner) keep(tool, step string, s sample) {
	if r.samples[tool] == nil {
		r.samples[tool] = map[string][]sample{}
	}
	r.samples[tool][step] = append(r.samples[tool][step], s)
	r.say("%-17s %-19s %7.2f s  CPU %7.2f s  peak %4d MiB  stored %5d MiB  others' CPU %5.1f s\n", tool, step,
		s.Wall.Seconds(), s.CPU.Seconds(), s.Peak/mib, s.Stored/mib, s.Foreign.Seconds())
}

func (r *runner) step(ctx context.Context, s step, p places, env []string) (sample, error) {
	var warm []string
	var err error
	if s.reads != nil {
		warm = []string{s.reads(p)}
	} else if warm, err = filesBelow(p.repo); err != nil {
		return sample{}, err
	}
	if err := r.cache.prepare(warm...); err != nil {
		return sample{}, err
	}
	c := s.command(p)
	c.env = env
	taken, _, err := measure(ctx, c)
	if err != nil {
		return taken, err
	}
	if taken.Stored, err = bytesBelow(p.repo); err != nil {
		return taken, err
	}
	if s.restores != nil {
		out := p.out
		if s.out != nil {
			out = s.out(p)
		}
		err = errors.Join(equal(ctx, out, s.restores(p)), os.Remove(out))
	}
	return taken, err
}

// equal compares two files byte for byte.
func equal(ctx context.Context, a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, mib), make([]byte, mib)
	for off := int64(0); ; off += mib {
		na, errA := io.ReadFull(fa, bufA)
		nb, errB := io.ReadFull(fb, bufB)
		if !bytes.Equal(bufA[:na], bufB[:nb]) {
			return fmt.Errorf("%s differs from %s in the MiB at %d", a, b, off)
		}
		switch {
		case errors.Is(errA, io.EOF), errors.Is(errA, io.ErrUnexpectedEOF):
			return ctx.Err()
		case errA != nil || errB != nil:
			return errors.Join(errA, errB)
		}
	}
}

// filesBelow lists the regular files of a folder.
func filesBelow(dir string) (paths []string, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	return paths, err
}

// bytesBelow sums the lengths of a folder's files.
func bytesBelow(dir string) (n int64, err error) {
	paths, err := filesBelow(dir)
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		n += info.Size()
	}
	return n, err
}

// hugeFigures are those of the huge, nearly empty disk.
type hugeFigures struct {
	Full, Second sample
	Changed      int64 // bytes rewritten in between
}

// huge images the huge disk on two nights with platter.
func (r *runner) huge(ctx context.Context, t tool) (*hugeFigures, error) {
	work, err := os.MkdirTemp(r.dir, "huge-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	p := places{first: filepath.Join(work, "huge.raw"), repo: filepath.Join(work, "repo")}
	if err := workload.MakeHuge(p.first); err != nil {
		return nil, err
	}
	for _, c := range t.start(p) {
		if _, _, err := measure(ctx, c); err != nil {
			return nil, err
		}
	}
	h := &hugeFigures{}
	backup := t.steps[0].command(p)
	if h.Full, err = r.hugeNight(ctx, p, backup); err != nil {
		return nil, err
	}
	if h.Changed, err = workload.ChangeHuge(p.first); err != nil {
		return nil, err
	}
	h.Second, err = r.hugeNight(ctx, p, backup)
	r.say("8 TiB disk with 4 GiB of data: full %.1f s, second night %.1f s\n", h.Full.Wall.Seconds(), h.Second.Wall.Seconds())
	return h, err
}

// hugeNight does not warm the cache: reading 8 TiB of holes would take hours.
func (r *runner) hugeNight(ctx context.Context, p places, backup command) (sample, error) {
	if err := r.cache.prepare(); err != nil {
		return sample{}, err
	}
	s, _, err := measure(ctx, backup)
	if err != nil {
		return s, err
	}
	s.Stored, err = bytesBelow(p.repo)
	return s, err
}

// median returns the middle one, the lower of two.
func median(all []time.Duration) time.Duration { return all[(len(all)-1)/2] }
