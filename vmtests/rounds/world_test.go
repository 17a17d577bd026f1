package rounds

import (
	"bytes"
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

	"golang.org/x/sys/unix"

	"platter/block/command"
)

// A world is a guest with a device that is imaged, and what is known of it.
type world struct {
	*testing.T
	stack  *stack
	state  state
	dir    string // on the disk that survives
	random *rand.Rand
}

// A state is what the next boot goes on from.
type state struct {
	Built    bool
	Round    int
	Survived int            // the last round in which the machine went off
	Cut      string         // whose run the power cut ended, "" if none's
	Counts   map[string]int // of all that happened
	Images   map[string]int // of each repository
	Took     time.Duration  // by a run that was let be
}

// repositories are the consumers of the device's one history.
var repositories = []string{"a", "b"}

const volume = "guest/disk"

// open goes on with the state on a disk, or begins one there.
func open(t *testing.T, disk string) *world {
	t.Helper()
	w := &world{T: t, dir: "/mnt"}
	w.state = state{Counts: map[string]int{}, Images: map[string]int{}, Took: 3 * time.Second}
	if out, err := exec.Command("blkid", disk).Output(); err != nil || len(out) == 0 {
		w.tool("mkfs.ext4", "-q", disk)
	}
	w.must(unix.Mount(disk, w.dir, "ext4", 0, ""))
	t.Cleanup(func() { unix.Unmount(w.dir, 0) })
	// What the program remembers of this machine outlives it, as on others.
	const memory = "/var/lib/platter"
	w.must(errors.Join(os.MkdirAll(w.dir+memory, 0o755), os.MkdirAll(memory, 0o755)))
	w.must(unix.Mount(w.dir+memory, memory, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(memory, 0) })
	b, err := os.ReadFile(w.dir + "/state")
	if errors.Is(err, os.ErrNotExist) {
		for _, r := range repositories {
			w.must(os.MkdirAll(filepath.Join(w.dir, r), 0o755))
			w.platter(r, "init", "--no-encryption")
		}
		w.save()
		return w
	}
	w.must(err)
	w.must(json.Unmarshal(b, &w.state))
	return w
}

// save puts the state on the disk for good.
func (w *world) save() {
	w.Helper()
	b, err := json.Marshal(w.state)
	w.must(err)
	w.must(os.WriteFile(w.dir+"/new", b, 0o644))
	w.must(os.Rename(w.dir+"/new", w.dir+"/state"))
	unix.Sync()
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) tool(name string, args ...string) string {
	w.Helper()
	out, err := command.Run(w.Context(), name, args...)
	w.must(err)
	return strings.TrimSpace(string(out))
}

func (w *world) count(what string) { w.state.Counts[what]++ }

// A process is the program at work for a repository.
type process struct {
	cmd            *exec.Cmd
	repo           string
	out, complaint bytes.Buffer
	ended          chan error
}

// over reports whether it has ended.
func (p *process) over() bool {
	select {
	case err := <-p.ended:
		p.ended <- err
		return true
	default:
		return false
	}
}

func (w *world) start(repository string, args ...string) *process {
	w.Helper()
	base := filepath.Join(w.dir, repository)
	repo := filepath.Join(base, "repo")
	args = append(args, "--repo", repo, "--catalog", filepath.Join(base, "catalog"), "--json", "--memory", "128MiB")
	p := &process{cmd: exec.Command("/test/platter", args...), repo: repo, ended: make(chan error, 1)}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.complaint
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	w.must(p.cmd.Start())
	go func() { p.ended <- p.cmd.Wait() }()
	return p
}

// platter runs a command that must succeed.
func (w *world) platter(repository string, args ...string) []byte {
	w.Helper()
	p := w.start(repository, args...)
	if err := <-p.ended; err != nil {
		w.Fatalf("platter %s: %v\n%s%s", strings.Join(args, " "), err, p.complaint.Bytes(), p.out.Bytes())
	}
	return p.out.Bytes()
}

// An imaged is what backup --json reports of one image.
type imaged struct {
	Type   string `json:"message_type"`
	Frozen int64  `json:"frozen_ns"`
	Image  struct {
		ID      string
		Size    int64
		Fuzzy   bool
		Stats   struct{ Read int64 }
		Tracker struct {
			Name, Why, View, History string
			Generation               []byte
			Passed                   []struct{ Way, Why string }
		}
	}
}

// summary returns what a run reported.
func (p *process) summary() (imaged, error) {
	for line := range bytes.Lines(p.out.Bytes()) {
		var m imaged
		if err := json.Unmarshal(line, &m); err != nil {
			return m, fmt.Errorf("read %q: %w", line, err)
		}
		if m.Type == "summary" {
			return m, nil
		}
	}
	return imaged{}, fmt.Errorf("no summary in %q", p.out.Bytes())
}

// compare restores an image and compares it with what the device held.
func (w *world) compare(repository, id string, want []byte) {
	w.Helper()
	const out = "/tmp/restored"
	os.Remove(out)
	w.platter(repository, "restore", id, out, "--yes")
	got, err := os.ReadFile(out)
	w.must(err)
	if len(got) != len(want) {
		w.Fatalf("round %d: image %.8s has %d bytes, the device had %d", w.state.Round, id, len(got), len(want))
	}
	for off := 0; off < len(want); off += sector {
		if !bytes.Equal(got[off:off+sector], want[off:off+sector]) {
			w.Fatalf("round %d: image %.8s differs from the device at %d", w.state.Round, id, off)
		}
	}
	w.count("compared")
}
