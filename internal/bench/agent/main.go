// Command agent measures the agent as the service runs it: what it takes while
// nothing is due, how long after its time a run begins to read, and two nights of
// many volumes.
//
// Slow figures are figures: only what does not work makes it fail.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const size = 8 << 20 // bytes of a volume

func main() {
	platter := flag.String("platter", "bin/platter", "the program to measure")
	dir := flag.String("dir", "", "folder for what is imaged and the images, which are removed afterwards")
	volumes := flag.Int("volumes", 200, "how many there are")
	idle := flag.Duration("idle", time.Minute, "how long to look while nothing is due")
	minutes := flag.Int("minutes", 4, "runs of a job of every minute")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *platter, *dir, *volumes, *idle, *minutes); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, program, dir string, volumes int, idle time.Duration, minutes int) error {
	program, err := filepath.Abs(program)
	if err != nil {
		return err
	}
	if dir, err = os.MkdirTemp(dir, "agent-"); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := &rig{program: program, dir: dir}
	if err := r.prepare(ctx, volumes); err != nil {
		return err
	}
	stop, err := r.start(ctx)
	if err != nil {
		return err
	}
	defer stop()

	time.Sleep(2 * time.Second) // what it does once when it starts
	before, err := r.agentCPU()
	if err != nil {
		return err
	}
	time.Sleep(idle)
	after, err := r.agentCPU()
	if err != nil {
		return err
	}
	fmt.Printf("- idle, with %d jobs: %v of CPU in %v; %s\n", volumes+1, after-before, idle, r.agentMemory())

	for night := range 2 {
		if err := r.change(night); err != nil {
			return err
		}
		if err := r.night(ctx, night); err != nil {
			return err
		}
	}
	fmt.Printf("- after both nights: %s\n", r.agentMemory())
	return r.minutely(ctx, minutes)
}

// A rig is an agent, and where it keeps all.
type rig struct {
	program, dir string
	jobs         []string
	agent        *exec.Cmd
	launcher     *launcher
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// prepare makes volumes, a repository and a config of a job for each volume, and of
// one for every minute, which is paused at first.
func (r *rig) prepare(ctx context.Context, volumes int) error {
	var config strings.Builder
	fmt.Fprintf(&config, "[agent]\nrepository = \"main\"\n[repository.main]\nlocation = %q\n", r.path("repo"))
	job := func(name, schedule string) error {
		data := make([]byte, size)
		rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%032s", name)))).Read(data)
		fmt.Fprintf(&config, "[job.%s]\ndevices = [%q]\nvolume = \"bench/%s\"\nschedule = %q\n", name, r.path(name), name, schedule)
		return os.WriteFile(r.path(name), data, 0o600)
	}
	for n := range volumes {
		name := fmt.Sprintf("v%04d", n)
		if err := job(name, "yearly"); err != nil {
			return err
		}
		r.jobs = append(r.jobs, name)
	}
	if err := job("minutely", "minutely"); err != nil {
		return err
	}
	if err := os.WriteFile(r.path("platter.toml"), []byte(config.String()), 0o600); err != nil {
		return err
	}
	_, err := r.platter(ctx, "init", "--repo", r.path("repo"), "--no-encryption", "--quiet")
	return err
}

func (r *rig) environ() []string {
	return append(os.Environ(), "PLATTER_STATE="+r.path("state"), "PLATTER_SOCKET="+r.path("socket"), "PLATTER_CONFIG="+r.path("platter.toml"))
}

func (r *rig) platter(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, r.program, args...)
	cmd.Env = r.environ()
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("platter %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return out, nil
}

// start starts the agent, and what starts its runs.
func (r *rig) start(ctx context.Context) (stop func(), err error) {
	if r.launcher, err = launch(r.path("launcher"), r.program, r.environ()); err != nil {
		return nil, err
	}
	r.agent = exec.Command(r.program, "agent", "--launcher", r.path("launcher"))
	r.agent.Env = r.environ()
	log, err := os.Create(r.path("log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r.agent.Stderr = log
	if err := r.agent.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = r.agent.Process.Signal(syscall.SIGTERM)
		_ = r.agent.Wait()
		r.launcher.close()
	}
	for range 100 {
		if _, err = r.platter(ctx, "job", "pause", "minutely"); err == nil {
			return stop, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	return nil, err
}

// agentCPU returns what the agent's process has used so far, to 10 ms.
func (r *rig) agentCPU() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.agent.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, err
}

func (r *rig) agentMemory() string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.agent.Process.Pid))
	if err != nil {
		return err.Error()
	}
	var all, own int
	for line := range strings.Lines(string(b)) {
		fmt.Sscanf(line, "VmRSS: %d", &all)
		fmt.Sscanf(line, "RssAnon: %d", &own)
	}
	return fmt.Sprintf("%d MiB of memory, of which %d MiB are its own", all>>10, own>>10)
}

// change rewrites three blocks of each volume.
func (r *rig) change(night int) error {
	for _, name := range r.jobs {
		f, err := os.OpenFile(r.path(name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		for n := range 3 {
			buf := make([]byte, 64<<10)
			rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%32s", fmt.Sprint(name, night, n))))).Read(buf)
			if _, err := f.WriteAt(buf, int64(n)*(2<<20)); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// A state is what the agent says of a job.
type state struct {
	Name  string `json:"name"`
	State string `json:"state"`
	Last  struct {
		Start time.Time `json:"start"`
		Exit  int       `json:"exit"`
	} `json:"last"`
}

func (r *rig) states(ctx context.Context) ([]state, error) {
	out, err := r.platter(ctx, "job", "list", "--json")
	if err != nil {
		return nil, err
	}
	var a struct{ Jobs []state }
	return a.Jobs, json.Unmarshal(out, &a)
}

// night has all volumes imaged, as if they were due now.
func (r *rig) night(ctx context.Context, n int) error {
	agent, err := r.agentCPU()
	if err != nil {
		return err
	}
	runs := r.launcher.used()
	began := time.Now()
	if _, err := r.platter(ctx, append([]string{"job", "run"}, r.jobs...)...); err != nil {
		return err
	}
	for {
		time.Sleep(5 * time.Second)
		all, err := r.states(ctx)
		if err != nil {
			return err
		}
		done := 0
		for _, s := range all {
			if slices.Contains(r.jobs, s.Name) && s.State == "idle" && s.Last.Start.After(began) {
				if s.Last.Exit != 0 {
					return fmt.Errorf("job %s ended with status %d", s.Name, s.Last.Exit)
				}
				done++
			}
		}
		if done == len(r.jobs) {
			break
		}
	}
	took := time.Since(began)
	now, err := r.agentCPU()
	if err != nil {
		return err
	}
	fmt.Printf("- night %d of %d volumes of 8 MiB: %.0f s (looked at every 5 s); %v of CPU for a run, %v of the agent's for each\n", n+1, len(r.jobs), took.Seconds(),
		((r.launcher.used() - runs) / time.Duration(len(r.jobs))).Round(time.Millisecond), ((now - agent) / time.Duration(len(r.jobs))).Round(100*time.Microsecond))
	return nil
}

// minutely measures from the minute to the moment of the image, which is when its
// first block is read.
func (r *rig) minutely(ctx context.Context, n int) error {
	if _, err := r.platter(ctx, "job", "resume", "minutely"); err != nil {
		return err
	}
	time.Sleep(time.Duration(n)*time.Minute + 20*time.Second)
	out, err := r.platter(ctx, "images", "bench/minutely", "--repo", r.path("repo"), "--json")
	if err != nil {
		return err
	}
	var late []string
	for line := range strings.Lines(string(out)) {
		var i struct{ Time time.Time }
		if err := json.Unmarshal([]byte(line), &i); err != nil {
			return err
		}
		late = append(late, i.Time.Sub(i.Time.Truncate(time.Minute)).Round(10*time.Millisecond).String())
	}
	if len(late) > 1 {
		late = late[1:] // which caught up with what the pause kept back
	}
	fmt.Printf("- from the minute to the first read: %s\n", strings.Join(late, ", "))
	return nil
}
