package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mib   = 1 << 20
	piece = 64 << 10 // bytes rewritten in one place
)

// A platter is the program with a repository of its own.
type platter struct{ program, dir string }

// A summary is what a backup reports.
type summary struct {
	Type  string `json:"message_type"`
	Image struct {
		Tracker struct {
			Name string `json:"name"`
			Why  string `json:"why"`
		} `json:"tracker"`
		Audit struct {
			Canaries int64 `json:"canary_bytes"`
			Read     int64 `json:"read_bytes"`
		} `json:"audit"`
		Stats struct {
			Read int64 `json:"read"`
		} `json:"stats"`
	} `json:"image"`
	Frozen time.Duration `json:"frozen_ns"`
	wall   time.Duration
}

func (p *platter) run(ctx context.Context, args ...string) (summary, error) {
	cmd := exec.CommandContext(ctx, p.program, args...)
	cmd.Env = append(os.Environ(), "PLATTER_REPOSITORY="+filepath.Join(p.dir, "repo"), "PLATTER_STATE="+filepath.Join(p.dir, "state"))
	var said strings.Builder
	cmd.Stderr = &said
	start := time.Now()
	out, err := cmd.Output()
	s := summary{wall: time.Since(start)}
	if err != nil {
		return s, fmt.Errorf("platter %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	for line := range strings.Lines(string(out)) {
		var read summary
		if json.Unmarshal([]byte(line), &read) == nil && read.Type == "summary" {
			read.wall = s.wall
			s = read
		}
	}
	return s, nil
}

// figures are of all nights of one disk but the first.
type figures struct {
	size, changed  int64
	tracked, whole []summary
}

// nights images a mounted disk each night by the tracer and in full, as two
// volumes, the one first in turn with the other.
func nights(ctx context.Context, p *platter, name string, size, changed int64, n int) (f figures, err error) {
	f = figures{size: size, changed: changed}
	defer os.RemoveAll(filepath.Join(p.dir, "repo"))
	defer os.RemoveAll(filepath.Join(p.dir, "state"))
	err = withDisk(p.dir, size, func(dev, file string) error {
		if _, err := p.run(ctx, "init", "--no-encryption", "-q"); err != nil {
			return err
		}
		if _, err := p.run(ctx, "tracker", "run"); err != nil {
			return err
		}
		defer p.run(context.WithoutCancel(ctx), "tracker", "stop")
		dice := rand.New(rand.NewPCG(1, 2))
		for night := range n + 1 {
			if err := change(file, changed, dice); err != nil {
				return err
			}
			unix.Sync()
			ways := [][]string{{"backup", dev, "--json", "--volume", name + "/tracked"}, {"backup", dev, "--json", "--volume", name + "/whole", "--tracker", "full"}}
			for k := range ways {
				k = (k + night) % 2
				s, err := p.run(ctx, ways[k]...)
				if err != nil {
					return err
				}
				fmt.Fprintf(os.Stderr, "%s, night %d, %s: %.2f s, %.1f MB read, %.1f MB of canaries, %.2f MB of the audit, frozen %v %s\n", name, night, s.Image.Tracker.Name,
					s.wall.Seconds(), mb(s.Image.Stats.Read), mb(s.Image.Audit.Canaries), mb(s.Image.Audit.Read), s.Frozen.Round(time.Millisecond), s.Image.Tracker.Why)
				switch {
				case night == 0: // the first image of a volume has no parent
				case k == 0:
					f.tracked = append(f.tracked, s)
				default:
					f.whole = append(f.whole, s)
				}
			}
		}
		return nil
	})
	return f, err
}

// withDisk calls f with a loop device that reads and writes past the page cache,
// on which ext4 is mounted that holds one large file.
func withDisk(dir string, size int64, f func(dev, file string) error) error {
	return withBareDisk(dir, size, func(dev, root string) error {
		return mounted(dev, root, func() error { return f(dev, filepath.Join(root, "file")) })
	})
}

// withBareDisk is withDisk with nothing mounted; root is where it can be.
func withBareDisk(dir string, size int64, f func(dev, root string) error) (err error) {
	path := filepath.Join(dir, "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	defer os.Remove(path)
	if err := errors.Join(os.Truncate(path, size), command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)); err != nil {
		return err
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", path).Output()
	if err != nil {
		return fmt.Errorf("attach a loop device to %s: %w", path, err)
	}
	dev := strings.TrimSpace(string(out))
	defer func() { err = errors.Join(err, command("losetup", "--detach", dev)) }()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	defer os.Remove(root)
	if err := mounted(dev, root, func() error { return fill(filepath.Join(root, "file"), size/10*9) }); err != nil {
		return err
	}
	return f(dev, root)
}

func mounted(dev, root string, f func() error) error {
	if err := command("mount", dev, root); err != nil {
		return err
	}
	return errors.Join(f(), command("umount", root))
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// fill writes a file whose every GiB is the same bytes, which LZ4 cannot make less.
func fill(path string, size int64) error {
	noise := make([]byte, 1<<30)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for rest := size; rest > 0; {
		n, err := f.Write(noise[:min(rest, int64(len(noise)))])
		if err != nil {
			return err
		}
		rest -= int64(n)
	}
	return f.Sync()
}

// change rewrites so many bytes of a file, in pieces all over it.
func change(path string, bytes int64, dice *rand.Rand) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte{byte(dice.Uint32()), byte(dice.Uint32()), byte(dice.Uint32())})
	buf := make([]byte, piece)
	for range bytes / piece {
		noise.Read(buf)
		if _, err := f.WriteAt(buf, dice.Int64N(fi.Size()/piece)*piece); err != nil {
			return err
		}
	}
	return f.Sync()
}

// report prints what docs/benchmarks.md shows.
func report(small, large figures) {
	fmt.Println("| disk | way | wall s, median | min … max | read MB | of the disk | canaries MB | audit MB | filesystems stood still |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for _, f := range []figures{small, large} {
		row(f, "by the tracer", f.tracked)
		row(f, "compared in full", f.whole)
	}
	fmt.Printf("\nRewritten each night: %.1f MB, in pieces of 64 KiB.\n", mb(small.changed))
	for _, f := range []figures{small, large} {
		fmt.Printf("- %d GiB: a tracked night took %.2f × one compared in full, and read %.1f %% of the disk\n", f.size>>30, seconds(f.tracked)/seconds(f.whole), 100*mb(f.tracked[0].Image.Stats.Read)/mb(f.size))
	}
	fmt.Printf("- on the disk ten times larger a tracked night took %.2f × as long\n\n", seconds(large.tracked)/seconds(small.tracked))
}

func row(f figures, way string, all []summary) {
	walls := sorted(all)
	last := all[len(all)-1]
	still := last.Frozen
	for _, s := range all {
		still = max(still, s.Frozen)
	}
	fmt.Printf("| %d GiB | %s | %.2f | %.2f … %.2f | %.1f | %.1f %% | %.1f | %.2f | at most %v |\n", f.size>>30, way, seconds(all), walls[0].Seconds(), walls[len(walls)-1].Seconds(),
		mb(last.Image.Stats.Read), 100*mb(last.Image.Stats.Read)/mb(f.size), mb(last.Image.Audit.Canaries), mb(last.Image.Audit.Read), still.Round(time.Millisecond))
}

func sorted(all []summary) (walls []time.Duration) {
	for _, s := range all {
		walls = append(walls, s.wall)
	}
	slices.Sort(walls)
	return walls
}

func seconds(all []summary) float64 { return sorted(all)[(len(all)-1)/2].Seconds() }

func mb(n int64) float64 { return float64(n) / 1e6 }
