package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"platter/image/store/s3"
	"platter/image/store/s3/s3test"
)

// TestManyProcessesInOneBucket lets eight machines back up into one bucket while
// others prune, collect, verify and restore, all of them processes of their own
// that are stopped and killed at random, some behind a network that fails. At the
// end every image that is there must be what its disk held, and every image that
// was acknowledged and not pruned must be there.
//
// It takes 20 seconds, or PLATTER_TEST_CAMPAIGN, half an hour with
// PLATTER_TEST_LONG: only then is one collector stopped for longer than its
// lease holds.
func TestManyProcessesInOneBucket(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 20 seconds")
	}
	length := 20 * time.Second
	if os.Getenv("PLATTER_TEST_LONG") != "" {
		length = 30 * time.Minute
	}
	if d, err := time.ParseDuration(os.Getenv("PLATTER_TEST_CAMPAIGN")); err == nil {
		length = d
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %s", seed, length)
	newBazaar(t, seed, length).run()
}

// A bazaar is a bucket and those who are busy in it.
type bazaar struct {
	*testing.T
	seed          uint64
	length        time.Duration
	home          string
	direct, proxy string // names of the repository
	env           []string

	mu     sync.Mutex
	truth  map[string]hash           // by image: what its disk held
	tried  map[string]map[hash]bool  // by volume: what runs that were killed may have left
	newest map[string]string         // by volume: the last image acknowledged
	counts map[string]map[string]int // by command: how it ended
	ctx    context.Context           // ends with the campaign's time
	fail   context.CancelCauseFunc   // ends it before
}

type hash = [sha256.Size]byte

func newBazaar(t *testing.T, seed uint64, length time.Duration) *bazaar {
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	proxy.Random(seed, 1.0/25, s3test.Passing())
	proxy.Forget()
	name := func(url string) string { return s3.Scheme + url + "/" + s3test.Bucket + "/bazaar" }
	b := &bazaar{
		T: t, seed: seed, length: length, home: t.TempDir(), direct: name(server.URL), proxy: name(proxy.URL),
		truth: map[string]hash{}, tried: map[string]map[hash]bool{}, newest: map[string]string{}, counts: map[string]map[string]int{},
	}
	key := filepath.Join(b.home, "key")
	if err := os.WriteFile(key, noise("key", 32), 0o600); err != nil {
		t.Fatal(err)
	}
	b.env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+s3test.AccessKey, "AWS_SECRET_ACCESS_KEY="+s3test.SecretKey,
		"PLATTER_KEY_FILE="+key, "XDG_STATE_HOME="+b.home)
	return b
}

func (b *bazaar) run() {
	whole, fail := context.WithCancelCause(b.Context())
	defer fail(nil)
	timed, cancel := context.WithTimeout(whole, b.length)
	defer cancel()
	b.ctx, b.fail = timed, fail
	setup := b.actor("setup", 0)
	setup.must("init", "--key-file", filepath.Join(b.home, "key"), "--no-recovery-key", "--block-size", "16KiB", "-q")
	var wg sync.WaitGroup
	start := func(n int, name string, f func(*actor)) {
		for i := range n {
			a := b.actor(fmt.Sprintf("%s%d", name, i), uint64(i))
			wg.Go(func() {
				for b.ctx.Err() == nil {
					f(a)
				}
			})
		}
	}
	start(8, "disk", (*actor).backup)
	start(1, "prune", (*actor).prune)
	start(2, "collect", (*actor).collect)
	start(1, "verify", (*actor).verify)
	start(2, "restore", (*actor).restore)
	wg.Wait()
	if err := context.Cause(whole); err != nil {
		b.Fatal(err)
	}
	b.audit(setup)
}

// audit proves every image that is there.
func (b *bazaar) audit(a *actor) {
	b.ctx = b.Context()
	images := a.images()
	there := map[string]bool{}
	for _, m := range images {
		there[m.ID] = true
		if !a.restored(m) {
			b.Fatalf("image %s of %s vanished at the end", m.ID, m.Volume)
		}
	}
	for volume, id := range b.newest {
		if !there[id] {
			b.Errorf("the last image of %s, %s, was acknowledged and is gone", volume, id)
		}
	}
	a.must("verify", "-q", "--read-data")
	b.Logf("%d images at the end, each what its disk held", len(images))
	for _, command := range []string{"backup", "prune", "gc", "verify", "restore"} {
		b.Logf("%-8s %v", command, b.counts[command])
	}
	// A collection waits half a minute for the requests of processes that died.
	if b.counts["backup"]["done"] == 0 || b.counts["backup"]["killed"] == 0 || b.counts["gc"]["done"] == 0 && b.length > 5*time.Minute {
		b.Errorf("nothing was at stake: %v", b.counts)
	}
}

func (b *bazaar) count(command, how string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.counts[command] == nil {
		b.counts[command] = map[string]int{}
	}
	b.counts[command][how]++
}

// broken ends the campaign: a promise was broken.
func (b *bazaar) broken(format string, args ...any) {
	b.fail(fmt.Errorf(format, args...))
}

// An actor is one machine, with a catalog of its own.
type actor struct {
	*bazaar
	name string
	rng  *rand.Rand
	disk []byte
	last map[string]time.Duration // how long a command takes
}

func (b *bazaar) actor(name string, n uint64) *actor {
	return &actor{bazaar: b, name: name, rng: rand.New(rand.NewPCG(b.seed, n<<8+uint64(len(name)))), last: map[string]time.Duration{}}
}

// start runs the program, sometimes behind the network that fails.
func (a *actor) start(out *bytes.Buffer, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	where := a.direct
	if a.rng.IntN(4) == 0 {
		where = a.proxy
	}
	cmd := exec.Command(self)
	cmd.Args = append([]string{"platter"}, args...)
	cmd.Args = append(cmd.Args, "--memory", "128MiB", "--retry-for", "2m")
	cmd.Dir = a.home
	cmd.Env = append(a.env, "PLATTER_REPOSITORY="+where, "PLATTER_CATALOG="+filepath.Join(a.home, "catalog-"+a.name))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, cmd.Start()
}

// must runs a command that has to end well.
func (a *actor) must(args ...string) string {
	a.Helper()
	var out bytes.Buffer
	cmd, err := a.start(&out, args...)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		a.Fatalf("%s: platter %s: %v\n%s", a.name, strings.Join(args, " "), err, tail(&out))
	}
	return out.String()
}

// play runs a command and lets it be: in one run of three it is stopped for a
// while or killed, at some moment. status is -1 when it was killed.
func (a *actor) play(pause time.Duration, args ...string) (status int, out string) {
	var text bytes.Buffer
	began := time.Now()
	cmd, err := a.start(&text, args...)
	if err != nil {
		a.broken("%s: %w", a.name, err)
		return -1, ""
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	moment := time.Duration(a.rng.Int64N(int64(max(a.last[args[0]], 50*time.Millisecond)) * 5 / 4))
	fate := a.rng.IntN(9)
	wg.Go(func() {
		signal := func(s syscall.Signal, after time.Duration) {
			timer := time.NewTimer(after)
			defer timer.Stop()
			select {
			case <-ended:
			case <-a.ctx.Done():
			case <-timer.C:
			}
			_ = cmd.Process.Signal(s)
		}
		switch {
		case pause > 0 || fate == 0:
			if pause == 0 {
				pause = time.Duration(a.rng.Int64N(int64(a.length) / 20))
			}
			a.count(args[0], "stopped")
			signal(syscall.SIGSTOP, moment)
			signal(syscall.SIGCONT, pause)
		case fate <= 2:
			signal(syscall.SIGKILL, moment)
		}
	})
	err = cmd.Wait()
	close(ended)
	wg.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		a.last[args[0]] = time.Since(began)
		a.count(args[0], "done")
		return 0, text.String()
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		a.count(args[0], "killed")
		return -1, text.String()
	case errors.As(err, &exit):
		return exit.ExitCode(), text.String()
	}
	a.broken("%s: %w", a.name, err)
	return -1, ""
}

// unexpected is an end that no command may take.
func (a *actor) unexpected(status int, out string, args ...string) {
	a.broken("%s: platter %s ended with status %d:\n%s", a.name, strings.Join(args, " "), status, out)
}

func tail(out *bytes.Buffer) string {
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// backup changes the disk and images it.
func (a *actor) backup() {
	if a.disk == nil {
		a.disk = make([]byte, 2<<20+a.rng.IntN(4<<20))
	}
	// Some of what is new to this disk others have too.
	for range 1 + a.rng.IntN(4) {
		n := min(1+a.rng.IntN(1<<20), len(a.disk))
		at := a.rng.IntN(len(a.disk)-n+1) &^ (16<<10 - 1)
		copy(a.disk[at:at+n], noise(fmt.Sprint(a.rng.IntN(60)), int64(n)))
	}
	path, volume := filepath.Join(a.home, a.name), "host/"+a.name
	if err := os.WriteFile(path, a.disk, 0o600); err != nil {
		a.broken("%w", err)
		return
	}
	sum := sha256.Sum256(a.disk)
	a.mu.Lock()
	if a.tried[volume] == nil {
		a.tried[volume] = map[hash]bool{}
	}
	a.tried[volume][sum] = true
	a.mu.Unlock()
	args := []string{"backup", "--json", "-q", "--volume", volume, path}
	status, out := a.play(0, args...)
	switch {
	case status == -1:
	case status != 0:
		a.unexpected(status, out, args...)
	default:
		a.acknowledged(volume, out, sum)
	}
	if a.rng.IntN(12) == 0 {
		_ = os.RemoveAll(filepath.Join(a.home, "catalog-"+a.name)) // it is only a cache
	}
}

func (a *actor) acknowledged(volume, out string, sum hash) {
	for line := range strings.Lines(out) {
		var report struct{ Image struct{ ID string } }
		if json.Unmarshal([]byte(line), &report) == nil && report.Image.ID != "" {
			a.mu.Lock()
			a.truth[report.Image.ID], a.newest[volume] = sum, report.Image.ID
			a.mu.Unlock()
			return
		}
	}
	a.broken("%s: no image in what the backup says:\n%s", a.name, out)
}

func (a *actor) prune() {
	args := []string{"prune", "-q", "--keep-last", fmt.Sprint(1 + a.rng.IntN(4)), "--max-delete", "100%"}
	if status, out := a.play(0, args...); status > 0 {
		a.unexpected(status, out, args...)
	}
	a.rest(2 * time.Second)
}

// collect deletes, half of the time all that can be deleted at once.
func (a *actor) collect() {
	args := []string{"gc", "-q", "--grace", "0", "--min-age", "0", "--max-delete", "100%"}
	if a.rng.IntN(2) == 0 {
		args = []string{"gc", "-q", "--grace", "5s", "--min-age", "2s", "--max-delete", "100%"}
	}
	var pause time.Duration
	if a.name == "collect1" {
		pause = time.Duration(a.rng.Int64N(int64(a.length)/10) + 1)
		if long := 22 * time.Minute; a.length > long+5*time.Minute && a.last["long"] == 0 {
			pause, a.last["long"] = long, long // its lease runs out meanwhile
		}
	}
	status, out := a.play(pause, args...)
	switch {
	case status == 1 && strings.Contains(out, "another collection is at work"):
		a.count("gc", "refused")
	case status == 1 && strings.Contains(out, "lease ran out"):
		a.count("gc", "lease ran out")
	case status > 0 && strings.Contains(out, "cannot be read"):
		a.judge("gc", out)
	case status > 0:
		a.unexpected(status, out, args...)
	}
	a.rest(time.Second)
}

func (a *actor) verify() {
	args := []string{"verify", "-q", "--json"}
	if a.rng.IntN(2) == 0 {
		args = append(args, "--read-data")
	}
	status, out := a.play(0, args...)
	switch {
	case status == exitDamage:
		a.judge("verify", out)
	case status > 0:
		a.unexpected(status, out, args...)
	}
	a.rest(time.Second)
}

// judge allows damage to images that were pruned and collected meanwhile: those
// that are named and still there must be whole.
func (a *actor) judge(command, out string) {
	a.count(command, "overtaken")
	for _, m := range a.images() {
		if !strings.Contains(out, m.ID) {
			continue
		}
		var text bytes.Buffer
		cmd, err := a.start(&text, "verify", "-q", m.ID)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil && a.lists(m.ID) {
			a.broken("%s: image %s of %s is damaged: %w\n%s\n%s", command, m.ID, m.Volume, err, tail(&text), out)
		}
	}
}

// restore gets some image back.
func (a *actor) restore() {
	images := a.images()
	if len(images) == 0 {
		a.rest(time.Second)
		return
	}
	a.restored(images[a.rng.IntN(len(images))])
	a.rest(500 * time.Millisecond)
}

type listed struct{ ID, Volume string }

func (a *actor) images() (list []listed) {
	for line := range strings.Lines(a.answer("images", "--json", "-q")) {
		var m listed
		if json.Unmarshal([]byte(line), &m) == nil && m.ID != "" {
			list = append(list, m)
		}
	}
	return list
}

// answer is what a command says that must end well.
func (a *actor) answer(args ...string) string {
	var out bytes.Buffer
	cmd, err := a.start(&out, args...)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		a.broken("%s: platter %s: %w\n%s", a.name, strings.Join(args, " "), err, tail(&out))
	}
	return out.String()
}

func (a *actor) lists(id string) bool {
	return slices.ContainsFunc(a.images(), func(m listed) bool { return m.ID == id })
}

// restored compares an image with what its disk held. It is false when the
// image has gone meanwhile, or the restore was killed.
func (a *actor) restored(m listed) bool {
	target := filepath.Join(a.home, "out-"+a.name)
	defer os.Remove(target)
	args := []string{"restore", "-q", "--yes", "--no-read-back", m.ID, target}
	status, out := 0, ""
	if a.name == "setup" {
		out = a.answer(args...)
	} else {
		status, out = a.play(0, args...)
	}
	switch {
	case status == -1:
		return false
	case status != 0 && !a.lists(m.ID):
		a.count("restore", "overtaken")
		return false
	case status != 0:
		a.unexpected(status, out, args...)
		return false
	}
	got, err := os.ReadFile(target)
	if err != nil {
		a.broken("%s: %w", a.name, err)
		return false
	}
	sum := sha256.Sum256(got)
	a.mu.Lock()
	want, known := a.truth[m.ID]
	fits := known && sum == want || !known && a.tried[m.Volume][sum]
	a.mu.Unlock()
	if !fits {
		a.broken("%s: image %s of %s is not what its disk held (acknowledged: %v)", a.name, m.ID, m.Volume, known)
	}
	return true
}

// rest lets others work.
func (a *actor) rest(most time.Duration) {
	timer := time.NewTimer(time.Duration(a.rng.Int64N(int64(most))))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.ctx.Done():
	}
}
