package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"platter/block"
	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/store"
	"platter/retention"
)

// newSchedule draws who is there.
func newSchedule(t *testing.T, seed uint64, m *mutant) *schedule {
	s := &schedule{t: t, world: newWorld(t, seed%8), seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), mutant: m}
	s.calm = s.rng.IntN(4) > 0
	if s.rng.IntN(2) == 0 {
		s.grace = []time.Duration{10 * time.Minute, time.Hour, 24 * time.Hour}[s.rng.IntN(3)]
		s.minAge = []time.Duration{time.Minute, time.Hour, 24 * time.Hour}[s.rng.IntN(3)]
	}
	right, wait := s.rng.IntN(2) == 0, 0
	if s.rng.IntN(4) == 0 {
		wait = 150 // those who back up find the others at work
	}
	add := func(name string, run func(*process)) *process {
		n := len(s.processes)
		m := &machine{s: s, name: fmt.Sprintf("m%d", n*7), alive: map[int]bool{}}
		if !right {
			m.wrong = []time.Duration{0, 0, 0, 5 * time.Minute, -50 * time.Minute, -7 * time.Hour, 3 * time.Hour}[s.rng.IntN(7)]
		}
		p := &process{s: s, name: name, machine: m, run: run}
		if s.rng.IntN(2) == 0 {
			p.begins = s.rng.IntN(500)
		}
		s.processes = append(s.processes, p)
		return p
	}
	for i := range 4 {
		p := add(fmt.Sprintf("backup%d", i), (*process).backup)
		p.begins += s.rng.IntN(1 + wait)
	}
	add("prune", (*process).prune)
	add("collect1", (*process).collect)
	add("collect2", (*process).collect)
	add("verify", (*process).verify)
	add("restore", (*process).restore)
	doomed := s.processes[s.rng.IntN(7)]
	doomed.dies, doomed.revives = 1+s.rng.IntN(120), s.rng.IntN(2) == 0
	if m != nil {
		s.press()
	}
	s.rng.Shuffle(len(s.processes), func(i, j int) { s.processes[i], s.processes[j] = s.processes[j], s.processes[i] })
	return s
}

// press makes a schedule one in which a broken program shows soon: nothing but
// the protocol keeps what is in use, and only those who change things are there,
// at the same time.
func (s *schedule) press() {
	s.grace, s.minAge, s.calm = 0, 0, true
	s.processes = slices.DeleteFunc(s.processes, func(p *process) bool { return p.kind() == "verify" || p.kind() == "restore" })
	for _, p := range s.processes {
		p.begins %= 100
	}
}

// kind is the name without its number.
func (p *process) kind() string { return strings.TrimRight(p.name, "0123456789'") }

func (p *process) random() *rand.Rand {
	h := uint64(0)
	for _, c := range p.name {
		h = h*131 + uint64(c)
	}
	return rand.New(rand.NewPCG(p.s.seed, h))
}

// excused reports whether what this process does may fail: its lease may have
// lapsed.
func (p *process) excused() bool { return p.late || !p.s.calm }

// problem tells of an error of the process. A broken program's is no news: what
// comes of it is.
func (p *process) problem(format string, args ...any) {
	if p.s.mutant == nil {
		p.s.problem(p.name+": "+format, args...)
	}
}

// backup makes two images.
func (p *process) backup() {
	rng, env := p.random(), p.env(true)
	for range 2 {
		volume := "host/v" + strconv.Itoa(rng.IntN(6))
		d := p.s.draw(rng, volume)
		reports, err := Backup(context.Background(), env, BackupOptions{Volume: volume, Sources: []block.Source{d}})
		p.s.mu.Lock()
		p.s.weak[d.name] = p.excused()
		if err == nil {
			p.s.made[reports[0].Image.ID] = true
			p.s.total.images++
		} else {
			p.s.total.failed++
		}
		p.s.mu.Unlock()
		if p.dead {
			return
		}
		if err != nil && !(p.excused() && strings.Contains(err.Error(), "withdrawn")) {
			p.problem("%s: %v", volume, err)
		}
	}
}

func (p *process) prune() {
	env := p.env(true)
	for range 1 + p.random().IntN(2) {
		report, err := Prune(context.Background(), env, PruneOptions{Policy: retention.Policy{Last: 1}, Zone: time.UTC})
		if report != nil {
			p.s.total.forgotten += report.Dropped
		}
		if err == nil || p.dead || p.excused() && strings.Contains(err.Error(), "the lease ran out") {
			continue
		}
		p.problem("%v", err)
	}
}

func (p *process) collect() {
	env := p.env(true)
	for range 2 {
		report, err := Collect(context.Background(), env, CollectOptions{Grace: p.s.grace, MinAge: p.s.minAge, MaxDelete: 1})
		if report != nil {
			p.s.total.deleted += len(report.Deleted)
			p.s.total.moved += len(report.Repacked)
		}
		if err == nil || p.dead {
			continue
		}
		text := err.Error()
		switch {
		case strings.Contains(text, "another collection is at work"):
		case strings.Contains(text, "the lease ran out") && p.excused():
		case p.s.anyLate() && (errors.Is(err, image.ErrCorrupt) || errors.Is(err, store.ErrNotFound)):
		default:
			p.problem("%v", err)
		}
	}
}

// anyLate reports whether the lease of anybody may have lapsed.
func (s *schedule) anyLate() bool { return s.late() > 0 || !s.calm }

func (p *process) verify() {
	env := p.env(false)
	for range p.random().IntN(2) {
		report, err := Verify(context.Background(), env, VerifyOptions{ReadData: true})
		if err != nil && !errors.Is(err, ErrDamaged) {
			p.problem("%v", err)
			return
		}
		for _, d := range report.Damage {
			if !p.s.forgiven(d.Image) {
				p.s.problem("verify: %+v", d)
			}
		}
	}
}

// restore reads images that are there when it begins.
func (p *process) restore() {
	rng, env := p.random(), p.env(false)
	for range 3 {
		all, _, err := Images(context.Background(), env, "")
		if err != nil {
			p.problem("list: %v", err)
			return
		}
		if len(all) == 0 {
			continue // what it had listed was forgotten until it was read, for newer ones
		}
		m := all[rng.IntN(len(all))]
		p.s.total.restores++
		got, err := readImage(env, m)
		switch {
		case err == nil && !bytes.Equal(got, p.s.content[m.Device.Name]):
			p.s.problem("restore: image %d of %s has other bytes", m.Seq, m.Volume)
		case err != nil && !reader.Damaged(err):
			p.s.problem("restore: image %d of %s: not a clear error: %v", m.Seq, m.Volume, err)
		case err != nil && !p.s.gone(m):
			p.s.problem("restore: image %d of %s: %v", m.Seq, m.Volume, err)
		case err != nil:
			p.s.total.refused++
		}
	}
}

// gone reports whether an image need not be readable any more: it is forgotten
// for longer than the grace period, or nobody was ever told that it exists and
// its run was stopped for longer than its lease.
func (s *schedule) gone(m *image.Manifest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, left := s.left[s.repo.ManifestName(m)]
	return left && since+s.grace <= s.elapsed || s.unsafe(m)
}

// unsafe reports whether nobody was told that an image exists, and its run was
// stopped for longer than its lease.
func (s *schedule) unsafe(m *image.Manifest) bool {
	weak, ended := s.weak[m.Device.Name]
	if !ended { // at work, or dead
		weak = s.anyLate()
	}
	_, base := s.made[m.ID]
	return !base && weak
}

// forgiven reports whether damage to an image of this ID is none: it is
// forgotten.
func (s *schedule) forgiven(id string) bool {
	bare := &Env{Repo: s.plain(), Memory: 8 << 20, Host: "host"}
	all, _, err := Images(context.Background(), bare, "")
	if err != nil {
		s.problem("list images: %v", err)
	}
	for _, m := range all {
		if m.ID.String() == id {
			return s.gone(m)
		}
	}
	return id != ""
}

// plain is the repository as it is, without turns.
func (s *schedule) plain() *repo.Repo {
	r := *s.repo
	r.Store = s.under
	return &r
}

// check reads every image that must be there.
func (s *schedule) check() {
	r := s.plain()
	r.Machine = storeTime{r.Machine, s.under}
	bare := &Env{Repo: r, Memory: 8 << 20, Host: "host"}
	ctx := context.Background()
	there := map[image.ImageID]bool{}
	rd := bare.reader()
	all, _, err := Images(ctx, bare, "")
	if err != nil {
		s.problem("list images: %v", err)
	}
	for _, m := range all {
		there[m.ID] = true
		got, err := readImageBy(rd, m)
		switch _, left := s.left[s.repo.ManifestName(m)]; {
		case err == nil && !bytes.Equal(got, s.content[m.Device.Name]):
			s.problem("image %d of %s has other bytes", m.Seq, m.Volume)
		case err != nil && !left && !s.unsafe(m):
			s.problem("image %d of %s (%s): %v", m.Seq, m.Volume, m.Device.Name, err)
		}
	}
	buried := s.buried()
	for id := range s.made {
		if !there[id] && !buried[id] {
			s.problem("image %s is gone, and nobody forgot it", id)
		}
	}
}

// buried returns the images of which there is a tombstone.
func (s *schedule) buried() map[image.ImageID]bool {
	all := map[image.ImageID]bool{}
	err := s.under.List(context.Background(), "trash/images/", func(o store.Info) error {
		object, err := s.under.Get(context.Background(), o.Name, 1<<30)
		var t repo.Tombstone
		if err == nil {
			_, err = s.repo.Keys.Open(keys.KindTombstone, o.Name, object, &t)
		}
		all[t.Image.ID] = true
		return err
	})
	if err != nil {
		s.problem("read tombstones: %v", err)
	}
	return all
}

// settle lets what is left of the schedule be cleaned up by one machine after
// the other, which must harm nothing.
func (s *schedule) settle(t *testing.T) {
	s.advance(25 * time.Hour)
	m := &machine{s: s, name: "last", alive: map[int]bool{}}
	r := s.plain()
	r.Machine = storeTime{r.Machine, s.under}
	c, err := m.open(r)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close(false)
	env := &Env{Repo: r, Catalog: c, Memory: 8 << 20, Version: "test", Host: "host"}
	for range 2 {
		if _, err := Collect(context.Background(), env, CollectOptions{MaxDelete: 1}); err != nil && !s.anyLate() {
			s.problem("collect at the end: %v", err)
		}
	}
	s.check()
}

// runSchedule plays one schedule and returns it.
func runSchedule(t *testing.T, seed uint64, m *mutant) (s *schedule) {
	synctest.Test(t, func(t *testing.T) {
		s = newSchedule(t, seed, m)
		cryptotest.SetGlobalRandom(t, ^seed)
		s.play()
		if len(s.problems) == 0 {
			s.check()
		}
		if len(s.problems) == 0 && seed%4 == 0 {
			s.settle(t)
		}
	})
	return s
}

// tell returns the end of the trace.
func (s *schedule) tell() string {
	var text strings.Builder
	for _, h := range s.trace[max(0, len(s.trace)-4000):] {
		fmt.Fprintln(&text, h)
	}
	return text.String()
}

func firstSeed(t *testing.T) uint64 {
	if s := os.Getenv("PLATTER_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 1
}

// schedules is how many are played.
func schedules() int {
	switch {
	case os.Getenv("PLATTER_TEST_SCHEDULES") != "":
		return must(strconv.Atoi(os.Getenv("PLATTER_TEST_SCHEDULES")))
	case long():
		return 100_000
	case testing.Short():
		return 10
	}
	return 100
}

func TestSchedulesLoseNoBlock(t *testing.T) {
	// D3, D17 to D22, D25: who goes first, who stops and who dies is drawn.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	first, n := firstSeed(t), schedules()
	var sum scheduleCounts
	defer func() { t.Logf("%d schedules: %+v", sum.schedules, sum) }()
	for i := range n {
		s := runSchedule(t, first+uint64(i), nil)
		sum.add(s)
		if len(s.problems) > 0 {
			t.Fatalf("seed %d: %s\n%s", s.seed, strings.Join(s.problems, "\n"), s.tell())
		}
	}
	if n >= 20 && (sum.images == 0 || sum.deleted == 0 || sum.moved == 0 || sum.forgotten == 0 || sum.deaths == 0 || sum.stops == 0) {
		t.Error("something never happened")
	}
}

func (c *scheduleCounts) add(s *schedule) {
	o := s.total
	c.schedules++
	c.steps += s.steps
	c.images += o.images
	c.failed += o.failed
	c.forgotten += o.forgotten
	c.deleted += o.deleted
	c.moved += o.moved
	c.restores += o.restores
	c.refused += o.refused
	for _, p := range s.processes {
		if p.dead {
			c.deaths++
		}
		if p.late {
			c.stops++
		}
	}
}

// A mutant is a broken program, made by lying to the right one.
type mutant struct {
	name    string
	seed    uint64 // of a schedule that shows it
	instead func(g *gate, kind, name string, f func() error) (handled bool, err error)
	got     func(g *gate, name string, b []byte) []byte
	listed  func(g *gate, prefix, after string, page []store.Info) []store.Info
	uptime  func(p *process) time.Duration
	after   func(s *schedule, p *process, what string) // an operation
	noTicks bool
	late    string // by this kind of process segments are put some time after their put
	skew    map[string]time.Duration
}
