package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"platter/catalog"
	"platter/image"
	"platter/image/repo"
	"platter/image/store"
	"platter/image/store/mem"
)

// A world is a repository, true time, and what is true of its images.
type world struct {
	under   *mem.Store // whose clock is right
	repo    *repo.Repo // to be copied by each process
	start   time.Time
	elapsed time.Duration // true time since start

	mu      sync.Mutex
	drawn   int
	content map[string][]byte // of disks imaged, by their unique name
	volumes map[string][]byte // newest content
	made    map[image.ImageID]bool
	left    map[string]time.Duration // manifests of which a tombstone was put, and when
	weak    map[string]bool          // disks of runs that were stopped for longer than their leases
	total   scheduleCounts
}

type scheduleCounts struct {
	schedules, steps, images, failed, forgotten, deleted, moved, restores, refused, deaths, stops int
}

// blockPool is how many different blocks all disks are made of.
const (
	scheduleBlock = 4096
	blockPool     = 40
)

func poolBlock(i int) []byte {
	b := make([]byte, scheduleBlock)
	binary.BigEndian.PutUint64(b[i%7*8:], uint64(i)+1)
	return b
}

// draw makes the next state of a volume's disk.
func (w *world) draw(rng *rand.Rand, volume string) *disk {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drawn++
	d := &disk{name: fmt.Sprintf("disk%d", w.drawn)}
	before := w.volumes[volume]
	if before == nil || rng.IntN(4) == 0 {
		blocks := 4 + rng.IntN(20)
		if rng.IntN(4) == 0 {
			blocks = image.PageEntries + rng.IntN(20) // a map of two levels
		}
		before = make([]byte, blocks*scheduleBlock-rng.IntN(2)*100)
		for range 4 + rng.IntN(10) {
			copy(before[rng.IntN(blocks)*scheduleBlock:], poolBlock(rng.IntN(blockPool)))
		}
	}
	d.data = append(d.data, before...)
	for range rng.IntN(4) {
		at := rng.IntN(len(d.data)) / scheduleBlock * scheduleBlock
		if rng.IntN(4) == 0 {
			clear(d.data[at:min(at+scheduleBlock, len(d.data))])
		} else {
			copy(d.data[at:], poolBlock(rng.IntN(blockPool)))
		}
	}
	w.volumes[volume], w.content[d.name] = d.data, d.data
	return d
}

// advance moves true time, the store's clock and those of all machines on.
func (s *schedule) advance(d time.Duration) {
	time.Sleep(d) // in the bubble, where that takes no time
	s.mu.Lock()
	s.elapsed += d
	s.mu.Unlock()
	s.under.Advance(d)
	for _, p := range s.processes {
		m := p.machine
		if m.asleep && p.stopped > s.elapsed {
			continue
		}
		m.asleep = false
		m.awake += d
		for _, t := range m.tickers {
			for ; t.next <= m.awake; t.next += t.every {
				select {
				case t.c <- m.now():
				default:
				}
			}
		}
	}
}

// A machine has clocks, running processes and a catalog.
type machine struct {
	s       *schedule
	name    string
	wrong   time.Duration // how much its wall clock is ahead
	asleep  bool
	awake   time.Duration
	tickers []*tickerOf
	alive   map[int]bool
	fs      *vfs.MemFS
	catalog *catalog.Catalog
}

type tickerOf struct {
	c           chan time.Time
	every, next time.Duration
}

func (m *machine) now() time.Time { return m.s.start.Add(m.s.elapsed + m.wrong) }

// open returns the machine's catalog.
func (m *machine) open(r *repo.Repo) (*catalog.Catalog, error) {
	if m.catalog != nil {
		return m.catalog, nil
	}
	if m.fs == nil {
		m.fs = vfs.NewMem()
	}
	c, err := catalog.Open(context.Background(), catalog.Options{
		Dir: "/catalog", FS: m.fs, Repository: r.ID, BlockSize: scheduleBlock, Memory: catalog.MinMemory, Timeless: true,
	})
	m.catalog = c
	return c, err
}

// close closes the catalog. A machine whose process died has lost it as often
// as not.
func (m *machine) close(died bool) {
	if m.catalog == nil {
		return
	}
	if err := m.catalog.Close(); err != nil {
		m.s.problem("%s: close the catalog: %v", m.name, err)
	}
	m.catalog = nil
	if died && len(m.name)%2 == 0 {
		m.fs = nil
	}
}

// A process is the repo.Machine of its own repository.
var _ repo.Machine = (*process)(nil)

func (p *process) Now() time.Time { return p.machine.now() }

func (p *process) Uptime() time.Duration {
	if m := p.s.mutant; m != nil && m.uptime != nil {
		return m.uptime(p)
	}
	return time.Hour + p.s.elapsed
}

func (p *process) Tick(d time.Duration) (<-chan time.Time, func()) {
	t := &tickerOf{make(chan time.Time, 1), d, p.machine.awake + d}
	if m := p.s.mutant; m != nil && m.noTicks {
		return t.c, func() {}
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.machine.tickers = append(p.machine.tickers, t)
	return t.c, func() {}
}

func (p *process) Process() repo.Lease {
	return repo.Lease{Host: p.machine.name, Boot: "boot", PID: p.pid, Birth: 1}
}

func (p *process) Gone(l *repo.Lease) bool {
	return l.Host == p.machine.name && !p.machine.alive[l.PID]
}

// env is what the process's jobs work with.
func (p *process) env(withCatalog bool) *Env {
	r := *p.s.repo
	r.Store, r.Machine = &gate{p, p.s.under}, p
	env := &Env{Repo: &r, Memory: 8 << 20, Version: "test", Host: "host"}
	if withCatalog {
		c, err := p.machine.open(&r)
		if err != nil {
			p.s.problem("%s: %v", p.name, err)
		}
		env.Catalog = c
	}
	return env
}

// A gate is the store as one process sees it: each operation waits for its
// turn, and a listing is several.
type gate struct {
	p     *process
	under *mem.Store
}

var _ store.Store = (*gate)(nil)

// listPage is how many objects of a listing are told in one turn.
const listPage = 3

func (g *gate) do(kind, name string, f func() error) error {
	after, err := g.p.step(kind, name)
	if err != nil {
		return err
	}
	if m := g.p.s.mutant; m != nil && m.instead != nil {
		if handled, err := m.instead(g, kind, name, f); handled {
			return err
		}
	}
	if err = f(); after {
		return errDead
	}
	return err
}

func (g *gate) Put(ctx context.Context, name string, parts ...[]byte) error {
	if m := g.p.s.mutant; m != nil && m.late == g.p.kind() {
		return g.putLate(ctx, name, parts)
	}
	return g.do("put", name, func() error {
		if err := g.under.Put(ctx, name, parts...); err != nil {
			return err
		}
		g.p.s.saw(name)
		return nil
	})
}

// putLate answers for a segment at once, and puts it after the process's next
// put of another object.
func (g *gate) putLate(ctx context.Context, name string, parts [][]byte) error {
	m := g.p.memo()
	if strings.HasPrefix(name, "segments/") {
		data := bytes.Join(parts, nil)
		return g.do("put", name, func() error {
			m.late = append(m.late, func() { _ = g.under.Put(ctx, name, data) })
			return nil
		})
	}
	err := g.do("put", name, func() error { return g.under.Put(ctx, name, parts...) })
	if err == nil {
		_ = g.do("put", "what was late", func() error {
			for _, put := range m.late {
				put()
			}
			m.late = nil
			return nil
		})
	}
	return err
}

func (g *gate) ReadAt(ctx context.Context, name string, b []byte, off int64) error {
	return g.do("read", name, func() error { return g.under.ReadAt(ctx, name, b, off) })
}

func (g *gate) Get(ctx context.Context, name string, limit int64) (b []byte, err error) {
	err = g.do("get", name, func() error {
		b, err = g.under.Get(ctx, name, limit)
		if m := g.p.s.mutant; err == nil && m != nil && m.got != nil {
			b = m.got(g, name, b)
		}
		return err
	})
	return b, err
}

func (g *gate) Head(ctx context.Context, name string) (info store.Info, err error) {
	err = g.do("head", name, func() error {
		info, err = g.under.Head(ctx, name)
		return err
	})
	return info, err
}

// List tells of a few objects in one turn: others come and go meanwhile.
func (g *gate) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	list := func(after string) (page []store.Info, err error) {
		err = g.do("list", prefix, func() error {
			return g.under.ListAfter(ctx, prefix, after, func(o store.Info) error {
				if page = append(page, o); len(page) == listPage {
					return errPage
				}
				return nil
			})
		})
		if errors.Is(err, errPage) {
			err = nil
		}
		if m := g.p.s.mutant; err == nil && m != nil && m.listed != nil {
			page = m.listed(g, prefix, after, page)
		}
		return page, err
	}
	after := ""
	for {
		page, err := list(after)
		if err != nil {
			return err
		}
		for _, o := range page {
			if err := f(o); err != nil {
				return err
			}
			after = o.Name
		}
		if len(page) < listPage {
			return nil
		}
	}
}

var errPage = errors.New("the page is full")

func (g *gate) Delete(ctx context.Context, name string) error {
	return g.do("delete", name, func() error { return g.under.Delete(ctx, name) })
}

func (g *gate) Now(ctx context.Context) (now time.Time, err error) {
	if g.p.dead {
		return now, errDead
	}
	now, err = g.under.Now(ctx)
	if m := g.p.s.mutant; m != nil {
		now = now.Add(m.skew[g.p.kind()])
	}
	return now, err
}

func (g *gate) Location() string { return "memory" }
func (g *gate) Close() error     { return nil }

// saw keeps what the store was told that decides what must be there.
func (s *schedule) saw(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tag, seq, ok := repo.ParseManifestName(trimGrave(name)); ok {
		manifest := fmt.Sprintf("images/%s/%016x", tag, seq)
		if _, again := s.left[manifest]; !again {
			s.left[manifest] = s.elapsed
		}
	}
}

func trimGrave(name string) string {
	const grave = "trash/"
	if len(name) > len(grave) && name[:len(grave)] == grave {
		return name[len(grave):]
	}
	return ""
}

// bases are worlds to start from: some images, some forgotten, some of their
// segments condemned more than a day ago. Each is made once.
var bases = struct {
	sync.Mutex
	made map[uint64]*world
}{made: map[uint64]*world{}}

// newWorld returns one of a few worlds, as new.
func newWorld(t *testing.T, n uint64) *world {
	bases.Lock()
	defer bases.Unlock()
	b := bases.made[n]
	if b == nil {
		cryptotest.SetGlobalRandom(t, n)
		b = makeWorld(t, rand.New(rand.NewPCG(n, 1)))
		bases.made[n] = b
	}
	w := &world{
		under: b.under.Clone(), repo: b.repo, drawn: b.drawn,
		content: map[string][]byte{}, volumes: map[string][]byte{}, made: map[image.ImageID]bool{},
		left: map[string]time.Duration{}, weak: map[string]bool{},
	}
	for k, v := range b.content {
		w.content[k] = v
	}
	for k, v := range b.volumes {
		w.volumes[k] = v
	}
	for k, v := range b.made {
		w.made[k] = v
	}
	w.start, _ = w.under.Now(context.Background())
	return w
}

// storeTime is a machine whose clock is the store's.
type storeTime struct {
	repo.Machine
	st *mem.Store
}

func (m storeTime) Now() time.Time {
	now, _ := m.st.Now(context.Background())
	return now
}

func makeWorld(t *testing.T, rng *rand.Rand) *world {
	ctx := context.Background()
	w := &world{under: mem.New(), content: map[string][]byte{}, volumes: map[string][]byte{}, made: map[image.ImageID]bool{}}
	w.repo = newRepo(t, w.under, scheduleBlock)
	w.repo.Machine = storeTime{w.repo.Machine, w.under}
	c, err := catalog.Open(ctx, catalog.Options{Dir: "/catalog", FS: vfs.NewMem(), Repository: w.repo.ID, BlockSize: scheduleBlock, Memory: catalog.MinMemory})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	env := &Env{Repo: w.repo, Catalog: c, Memory: 8 << 20, Version: "test", Host: "host"}
	forget := func(m *image.Manifest) {
		if err := w.repo.Forget(ctx, w.repo.ManifestName(m), "test"); err != nil {
			t.Fatal(err)
		}
	}
	var old []*image.Manifest
	for round := range 2 {
		for n := range 3 {
			volume := fmt.Sprintf("host/v%d", n)
			m := mustBackup(t, env, w.draw(rng, volume), BackupOptions{Volume: volume}).Image
			old, w.made[m.ID] = append(old, m), true
		}
		forget(old[round])
		w.under.Advance(time.Hour)
		mustCollect(t, env, CollectOptions{Grace: 24 * time.Hour})
		w.under.Advance(30 * time.Hour)
	}
	forget(old[3])
	return w
}
