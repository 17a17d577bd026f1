package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"platter/image"
	"platter/image/repo"
	"platter/image/store"
	"platter/image/store/dir"
	"platter/image/store/vfs"
	"platter/internal/job"
)

// A victim is a repository whose processes are killed at any moment: whatever
// they were doing, every image that is listed must be whole, every image that
// was acknowledged must be listed, and the next process must go on.
type victim struct {
	*testing.T
	rng        *rand.Rand
	home, path string // of the repository
	disk       []byte
	content    map[image.ImageID][]byte
	acked      map[image.ImageID]bool
	pruning    bool // images may be gone, but for the newest
	last       map[string]time.Duration
	killed     map[string]int
	finished   map[string]int
}

func newVictim(t *testing.T, seed uint64, diskSize int) *victim {
	t.Helper()
	t.Logf("seed %d", seed)
	v := &victim{
		T: t, rng: rand.New(rand.NewPCG(seed, 5)), home: t.TempDir(), content: map[image.ImageID][]byte{}, acked: map[image.ImageID]bool{},
		disk: make([]byte, diskSize), last: map[string]time.Duration{}, killed: map[string]int{}, finished: map[string]int{},
	}
	v.path = filepath.Join(v.home, "repo")
	if out, err := v.start("init", "--no-encryption", "-q").wait(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	return v
}

// A process is this test's program, run as platter.
type process struct {
	*exec.Cmd
	out bytes.Buffer
}

func (v *victim) start(args ...string) *process {
	v.Helper()
	self, err := os.Executable()
	if err != nil {
		v.Fatal(err)
	}
	p := &process{Cmd: exec.Command(self)}
	p.Args = append([]string{"platter"}, args...)
	p.Dir = v.home
	p.Env = append(os.Environ(), "PLATTER_REPOSITORY="+v.path, "PLATTER_CATALOG="+filepath.Join(v.home, "catalog"), "XDG_STATE_HOME="+v.home)
	p.Stdout, p.Stderr = &p.out, &p.out
	if err := p.Start(); err != nil {
		v.Fatal(err)
	}
	return p
}

func (p *process) wait() (string, error) {
	err := p.Wait()
	return p.out.String(), err
}

// kill lets a process live for a while, kills it, and reports whether it had
// ended well before.
func (v *victim) kill(after time.Duration, args ...string) (done bool) {
	v.Helper()
	name, start := args[0], time.Now()
	p := v.start(args...)
	timer := time.AfterFunc(after, func() { _ = p.Process.Kill() })
	out, err := p.wait()
	timer.Stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
		v.last[name] = time.Since(start)
		v.finished[name]++
		return true
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		v.killed[name]++
		return false
	}
	v.Fatalf("platter %s: %v\n%s", strings.Join(args, " "), err, out)
	return false
}

// moment is some time in the life of a command, or after its end.
func (v *victim) moment(name string) time.Duration {
	whole := v.last[name]
	if whole == 0 {
		whole = time.Second
	}
	return time.Duration(v.rng.Int64N(int64(whole) * 5 / 4))
}

// change writes over a part of the disk.
func (v *victim) change(n int) {
	var key [32]byte
	key[0], key[1], key[2] = byte(v.rng.Uint32()), byte(v.rng.Uint32()), byte(v.rng.Uint32())
	_, _ = rand.NewChaCha8(key).Read(v.disk[v.rng.IntN(len(v.disk)-n):][:n])
	if err := os.WriteFile(filepath.Join(v.home, "disk"), v.disk, 0o600); err != nil {
		v.Fatal(err)
	}
}

// open opens the repository for a look.
func (v *victim) open() (env *job.Env, closed func()) {
	v.Helper()
	st, err := dir.Open(v.path, vfs.OS())
	if err != nil {
		v.Fatal(err)
	}
	r, err := repo.Open(context.Background(), st)
	if err != nil {
		v.Fatal(err)
	}
	return &job.Env{Repo: r, Memory: 64 << 20, Host: "host"}, func() { st.Close() }
}

// check proves what is there. An image not seen before must hold what the disk
// holds now.
func (v *victim) check(done bool) {
	v.Helper()
	ctx := context.Background()
	env, closed := v.open()
	defer closed()
	if _, err := job.Verify(ctx, env, job.VerifyOptions{ReadData: true}); err != nil {
		v.Fatalf("verify: %v", err)
	}
	images, _, err := job.Images(ctx, env, "")
	if err != nil {
		v.Fatal(err)
	}
	there, fresh := map[image.ImageID]bool{}, 0
	for _, m := range images {
		there[m.ID] = true
		if v.content[m.ID] == nil {
			fresh++
			v.content[m.ID] = bytes.Clone(v.disk)
			v.acked[m.ID] = true
			v.restore(env, m)
		}
	}
	if done && fresh != 1 {
		v.Fatalf("a backup ended well, and there are %d new images", fresh)
	}
	for id := range v.acked {
		switch {
		case there[id]:
		case !v.pruning:
			v.Fatalf("image %s was there and is gone", id)
		default:
			delete(v.acked, id)
			delete(v.content, id)
		}
	}
	if len(images) > 0 {
		if gaps, err := env.Repo.Gaps(ctx, images[0].Volume); err != nil || len(gaps) > 0 {
			v.Fatalf("images %v vanished without a tombstone (%v)", gaps, err)
		}
	}
}

// restore compares an image with what the disk held.
func (v *victim) restore(env *job.Env, m *image.Manifest) {
	v.Helper()
	target := filepath.Join(v.home, "restored")
	yes := func(*job.RestorePlan) (bool, error) { return true, nil }
	if _, err := job.Restore(context.Background(), env, job.RestoreOptions{Image: m.ID.String(), Target: target, Confirm: yes, NoReadBack: true}); err != nil {
		v.Fatalf("image %d: %v", m.Seq, err)
	}
	got, err := os.ReadFile(target)
	if err != nil || !bytes.Equal(got, v.content[m.ID]) {
		v.Fatalf("image %d is not what the disk held (%v)", m.Seq, err)
	}
	if err := os.Remove(target); err != nil {
		v.Fatal(err)
	}
}

// killLong reports whether the campaign of hours is asked for.
func killLong() bool { return os.Getenv("PLATTER_TEST_LONG") != "" }

func TestKilledAtAnyMoment(t *testing.T) {
	const size = 6 << 20
	rounds := 24
	if killLong() {
		rounds = 600
	}
	v := newVictim(t, uint64(time.Now().UnixNano()), size)
	backup := []string{"backup", "-q", "--volume", "host/disk", "disk"}
	for n := range rounds {
		v.pruning = false
		switch {
		case n%6 == 4:
			v.pruning = true
			v.kill(v.moment("prune"), "prune", "-q", "--keep-last", "2")
			v.check(false)
		case n%6 == 5:
			v.kill(v.moment("gc"), "gc", "-q", "--grace", "0", "--min-age", "0", "--max-delete", "100%")
			v.check(false)
		default:
			v.change(1 + v.rng.IntN(size/2))
			v.check(v.kill(v.moment("backup"), backup...))
		}
		if n == rounds/2 {
			if err := os.RemoveAll(filepath.Join(v.home, "catalog")); err != nil { // it is only a cache
				t.Fatal(err)
			}
		}
	}
	v.pruning = false
	v.change(100)
	v.check(v.kill(time.Minute, backup...))
	env, closed := v.open()
	defer closed()
	images, _, err := job.Images(context.Background(), env, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range images {
		v.restore(env, m)
	}
	t.Logf("killed: %v, ended before: %v; %d images left", v.killed, v.finished, len(images))
	if v.killed["backup"] == 0 {
		t.Error("no backup was killed")
	}
}

func TestKilledBackupIsNotInVain(t *testing.T) {
	// D8: the next run finds the segments that were sealed.
	const size = 72 << 20 // two whole segments and a part
	v := newVictim(t, 3, size)
	v.change(size - 1)
	v.change(size / 2)
	p := v.start("backup", "-q", "--memory", "128MiB", "--limit-read", "25MiB", "--volume", "host/disk", "disk")
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	sealed := func() (n int64) {
		files, _ := filepath.Glob(filepath.Join(v.path, "segments", "*", strings.Repeat("[0-9a-f]", 32)))
		for _, f := range files {
			if st, err := os.Stat(f); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	for deadline := time.Now().Add(time.Minute); sealed() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) || len(ended) > 0 {
			t.Fatalf("no segment was sealed (%v)\n%s", len(ended), p.out.String())
		}
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	kept := sealed()
	v.check(false)
	out, err := v.start("backup", "--json", "-q", "--volume", "host/disk", "disk").wait()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	known, fresh := statsOf(t, out)
	if known < kept*9/10 || known+fresh < size*9/10 {
		t.Errorf("%d bytes were sealed when the backup was killed; the next found %d and stored %d", kept, known, fresh)
	}
	v.check(true)
	t.Logf("%d MiB sealed, %d MiB found again", kept>>20, known>>20)
}

// statsOf returns what a backup found stored and what it stored, in bytes.
func statsOf(t *testing.T, out string) (known, fresh int64) {
	t.Helper()
	for line := range strings.Lines(out) {
		var report struct {
			Image struct {
				Stats *image.Stats
			}
		}
		if json.Unmarshal([]byte(line), &report) == nil && report.Image.Stats != nil {
			return report.Image.Stats.Known, report.Image.Stats.New
		}
	}
	t.Fatal(fmt.Errorf("no image in %q: %w", out, store.ErrNotFound))
	return 0, 0
}
