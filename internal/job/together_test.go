package job

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"platter/block"
	"platter/catalog"
	"platter/image"
	"platter/image/repo"
	"platter/image/store"
	"platter/image/store/mem"
)

// A town is a repository in which several machines work at once, each with a
// catalog of its own: they back up disks that share most of their content,
// forget images, collect without any grace, and restore.
type town struct {
	*testing.T
	seed     uint64
	st       *wobbly
	repo     *repo.Repo
	stop     atomic.Bool
	families [][]byte // that disks are made of

	mu   sync.Mutex
	want map[image.ImageID][]byte
	done []*image.Manifest // images that may be forgotten

	backups, withdrawn, forgotten, collections, deleted, restores atomic.Int64
}

// wobbly lets other goroutines run between any two operations of a store, and
// during its listings, as a slow store does.
type wobbly struct {
	*mem.Store
	mu  sync.Mutex
	rng *rand.Rand
}

func (w *wobbly) pause() {
	w.mu.Lock()
	n := w.rng.IntN(40)
	w.mu.Unlock()
	switch {
	case n == 0:
		time.Sleep(time.Millisecond)
	case n < 4:
		time.Sleep(50 * time.Microsecond)
	}
}

func (w *wobbly) Put(ctx context.Context, name string, parts ...[]byte) error {
	w.pause()
	err := w.Store.Put(ctx, name, parts...)
	w.pause()
	return err
}

func (w *wobbly) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	w.pause()
	return w.Store.ReadAt(ctx, name, p, off)
}

func (w *wobbly) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	w.pause()
	return w.Store.Get(ctx, name, limit)
}

func (w *wobbly) Delete(ctx context.Context, name string) error {
	w.pause()
	return w.Store.Delete(ctx, name)
}

func (w *wobbly) List(ctx context.Context, prefix string, f func(store.Info) error) error {
	w.pause()
	return w.Store.List(ctx, prefix, func(o store.Info) error {
		w.pause()
		return f(o)
	})
}

const familyBlocks = 24

func newTown(t *testing.T, seed uint64) *town {
	t.Helper()
	st := &wobbly{Store: mem.New(), rng: rand.New(rand.NewPCG(seed, 99))}
	st.Advance(time.Since(mem.Epoch()))
	s := &town{T: t, seed: seed, st: st, repo: newRepo(t, st, 4096), want: map[image.ImageID][]byte{}}
	rng := rand.New(rand.NewPCG(seed, 98))
	for range 4 {
		f := make([]byte, familyBlocks*4096)
		for off := 0; off < len(f); off += 4096 {
			random(rng, f[off:][:64])
		}
		s.families = append(s.families, f)
	}
	return s
}

// env returns an Env with a catalog of its own.
func (s *town) env() *Env {
	c, err := catalog.Open(context.Background(), catalog.Options{Dir: s.TempDir(), Repository: s.repo.ID, BlockSize: 4096, Memory: catalog.MinMemory})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.Close() })
	return &Env{Repo: s.repo, Catalog: c, Memory: 32 << 20, Version: "test", Host: "host"}
}

// draw makes a disk of one or two families, and sometimes of a block of its
// own. It is slow to read at one place.
func (s *town) draw(rng *rand.Rand, name string) *disk {
	d := &disk{name: name}
	for range 1 + rng.IntN(2) {
		d.data = append(d.data, s.families[rng.IntN(len(s.families))]...)
	}
	d.data = d.data[:len(d.data)-rng.IntN(2)*77]
	if rng.IntN(3) == 0 {
		d.data[rng.IntN(len(d.data))] ^= byte(rng.Uint32())
	}
	if pause := time.Duration(rng.IntN(12)) * time.Millisecond; rng.IntN(2) == 0 {
		d.hook = func(int64) { time.Sleep(pause) }
	}
	return d
}

// backup makes one image after the other, and reads each at once.
func (s *town) backup(actor int, rounds int) {
	rng := rand.New(rand.NewPCG(s.seed, uint64(actor)))
	env := s.env()
	for range rounds {
		name := fmt.Sprintf("disk%d", actor)
		if rng.IntN(4) == 0 {
			name = "shared" // two machines make images of one volume
		}
		d := s.draw(rng, name)
		reports, err := Backup(context.Background(), env, BackupOptions{Sources: []block.Source{d}})
		if err != nil {
			s.withdrawn.Add(1)
			s.Errorf("seed %d: backup of %s: %v", s.seed, name, err)
			continue
		}
		m := reports[0].Image
		s.mu.Lock()
		s.want[m.ID] = d.data
		s.mu.Unlock()
		s.backups.Add(1)
		s.restore(m, env, &Env{Repo: s.repo, Memory: 8 << 20})
		s.mu.Lock()
		s.done = append(s.done, m)
		s.mu.Unlock()
	}
}

func (s *town) restore(m *image.Manifest, envs ...*Env) {
	s.mu.Lock()
	want := s.want[m.ID]
	s.mu.Unlock()
	for _, e := range envs {
		s.restores.Add(1)
		if got, err := readImage(e, m); err != nil {
			s.Errorf("seed %d: image %d of %s: %v", s.seed, m.Seq, m.Volume, err)
		} else if !bytes.Equal(got, want) {
			s.Errorf("seed %d: image %d of %s differs", s.seed, m.Seq, m.Volume)
		}
	}
}

// forget forgets images, now a few and now all of them, and reads them a last
// time before.
func (s *town) forget(actor int) {
	rng := rand.New(rand.NewPCG(s.seed, uint64(actor)))
	bare := &Env{Repo: s.repo, Memory: 8 << 20}
	for !s.stop.Load() {
		s.mu.Lock()
		n := min(rng.IntN(12), len(s.done))
		old := s.done[:n]
		s.done = s.done[n:]
		s.mu.Unlock()
		for _, m := range old {
			s.restore(m, bare)
			s.forgotten.Add(1)
			name := fmt.Sprintf("images/%s/%016x", s.repo.Keys.VolumeTag(m.Volume, ""), m.Seq)
			if err := s.repo.Forget(context.Background(), name, "test"); err != nil {
				s.Errorf("seed %d: forget: %v", s.seed, err)
			}
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
	}
}

// collect takes away what it can as soon as it can.
func (s *town) collect(actor int) {
	rng := rand.New(rand.NewPCG(s.seed, uint64(actor)))
	env := s.env()
	for !s.stop.Load() {
		report, err := Collect(context.Background(), env, CollectOptions{MaxDelete: 1})
		if err != nil && !strings.Contains(err.Error(), "another collection is at work") {
			s.Errorf("seed %d: collect: %v", s.seed, err)
		}
		if report != nil {
			s.collections.Add(1)
			s.deleted.Add(int64(len(report.Deleted)))
		}
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
	}
}

// live runs all actors until the backups are done, and reads what is left.
func (s *town) live(rounds int) {
	var busy, others sync.WaitGroup
	for actor := range 3 {
		busy.Go(func() { s.backup(actor, rounds) })
	}
	others.Go(func() { s.forget(10) })
	others.Go(func() { s.collect(11) })
	others.Go(func() { s.collect(12) })
	busy.Wait()
	s.stop.Store(true)
	others.Wait()
	bare := &Env{Repo: s.repo, Memory: 8 << 20, Host: "host"}
	for _, m := range must(allImages(context.Background(), bare)) {
		s.restore(m, bare)
	}
	if report, err := Verify(context.Background(), bare, VerifyOptions{ReadData: true}); err != nil {
		s.Errorf("seed %d: verify: %v: %+v", s.seed, err, report)
	}
}

func TestManyMachinesInOneRepository(t *testing.T) {
	// D17 to D22, with leases alone between a backup and a collection.
	seeds, rounds := 2, 40
	if testing.Short() {
		seeds = 1
	}
	if long() {
		seeds, rounds = 20, 500
	}
	first := uint64(1)
	if s := os.Getenv("PLATTER_TEST_SEED"); s != "" {
		first = must(strconv.ParseUint(s, 10, 64))
	}
	for i := range seeds {
		s := newTown(t, first+uint64(i))
		s.live(rounds)
		t.Logf("seed %d: %d backups, %d failed, %d images forgotten, %d collections deleted %d segments, %d restores",
			s.seed, s.backups.Load(), s.withdrawn.Load(), s.forgotten.Load(), s.collections.Load(), s.deleted.Load(), s.restores.Load())
		if s.deleted.Load() == 0 || s.forgotten.Load() == 0 {
			t.Error("nothing was taken away")
		}
		if t.Failed() {
			return
		}
	}
}
