package job

import (
	"bytes"
	"context"
	"errors"
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
	"platter/retention"
)

// A town is a repository in which several machines work at once, each with a
// catalog of its own: they back up disks that share most of their content,
// prune, collect without any grace, and restore.
type town struct {
	*testing.T
	seed   uint64
	st     *wobbly
	repo   *repo.Repo
	stop   atomic.Bool
	pruned sync.RWMutex // held for writing by who prunes, so that a restore knows what must be there
	blocks [][]byte     // that disks are made of

	mu   sync.Mutex
	want map[image.ImageID][]byte // of images that were acknowledged, or may be there

	backups, prunes, collections, deleted, restores, refused atomic.Int64
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

func newTown(t *testing.T, seed uint64) *town {
	t.Helper()
	st := &wobbly{Store: mem.New(), rng: rand.New(rand.NewPCG(seed, 99))}
	st.Advance(time.Since(mem.Epoch()))
	s := &town{T: t, seed: seed, st: st, repo: newRepo(t, st, 4096), want: map[image.ImageID][]byte{}}
	rng := rand.New(rand.NewPCG(seed, 98))
	for range 60 {
		b := make([]byte, 4096)
		random(rng, b[:200])
		s.blocks = append(s.blocks, b)
	}
	return s
}

// catalog opens a catalog of its own for an actor.
func (s *town) env() *Env {
	c, err := catalog.Open(context.Background(), catalog.Options{Dir: s.TempDir(), Repository: s.repo.ID, BlockSize: 4096, Memory: catalog.MinMemory})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.Close() })
	return &Env{Repo: s.repo, Catalog: c, Memory: 32 << 20, Version: "test", Host: "host"}
}

// draw makes a disk of blocks that all share.
func (s *town) draw(rng *rand.Rand, name string) *disk {
	d := &disk{name: name, data: make([]byte, rng.IntN(150*4096))}
	from := rng.IntN(len(s.blocks))
	for off := 0; off < len(d.data); off += 4096 {
		if rng.IntN(20) == 0 {
			from = rng.IntN(len(s.blocks))
		}
		if rng.IntN(6) > 0 {
			copy(d.data[off:], s.blocks[(from+off/4096)%len(s.blocks)])
		}
	}
	if len(d.data) > 0 && rng.IntN(2) == 0 {
		d.data[rng.IntN(len(d.data))] ^= byte(rng.Uint32())
	}
	return d
}

// backup makes one image after the other, and reads some of them at once.
func (s *town) backup(actor int, rounds int) {
	rng := rand.New(rand.NewPCG(s.seed, uint64(actor)))
	env := s.env()
	for range rounds {
		name := fmt.Sprintf("disk%d", actor)
		if rng.IntN(4) == 0 {
			name = "shared" // two machines make images of one volume
		}
		d := s.draw(rng, name)
		s.pruned.RLock()
		reports, err := Backup(context.Background(), env, BackupOptions{Sources: []block.Source{d}})
		if err != nil {
			s.refused.Add(1)
			s.Logf("seed %d: backup: %v", s.seed, err)
			if !strings.Contains(err.Error(), "withdrawn") {
				s.Errorf("seed %d: backup of %s: %v", s.seed, name, err)
			}
			s.pruned.RUnlock()
			continue
		}
		m := reports[0].Image
		s.mu.Lock()
		s.want[m.ID] = d.data
		s.mu.Unlock()
		s.backups.Add(1)
		if rng.IntN(3) == 0 {
			s.restore(m, env)
		}
		s.pruned.RUnlock()
	}
}

// restore reads an image that no prune takes away meanwhile.
func (s *town) restore(m *image.Manifest, env *Env) {
	s.restores.Add(1)
	s.mu.Lock()
	want := s.want[m.ID]
	s.mu.Unlock()
	for _, e := range []*Env{env, {Repo: s.repo, Memory: 8 << 20}} {
		if got, err := readImage(e, m); err != nil {
			s.Errorf("seed %d: image %s: %v", s.seed, m.ID, err)
		} else if !bytes.Equal(got, want) {
			s.Errorf("seed %d: image %s differs", s.seed, m.ID)
		}
	}
}

// prune forgets images in one go, between backups or in the middle of them.
func (s *town) prune(actor int) {
	rng := rand.New(rand.NewPCG(s.seed, uint64(actor)))
	env := s.env()
	for !s.stop.Load() {
		apart := rng.IntN(2) == 0
		if apart {
			s.pruned.Lock()
		}
		report, err := Prune(context.Background(), env, PruneOptions{Policy: retention.Policy{Last: 1 + rng.IntN(3)}})
		if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, ErrUsage) {
			s.Errorf("seed %d: prune: %v", s.seed, err)
		}
		if report != nil {
			s.prunes.Add(int64(report.Dropped))
		}
		if apart {
			s.pruned.Unlock()
		}
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
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
		time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
	}
}

// live runs all actors until the backups are done, and reads what is left.
func (s *town) live(rounds int) {
	var busy, others sync.WaitGroup
	for actor := range 3 {
		busy.Go(func() { s.backup(actor, rounds) })
	}
	others.Go(func() { s.prune(10) })
	others.Go(func() { s.collect(11) })
	others.Go(func() { s.collect(12) })
	busy.Wait()
	s.stop.Store(true)
	others.Wait()
	bare := &Env{Repo: s.repo, Memory: 8 << 20, Host: "host"}
	for _, m := range must(Images(context.Background(), bare, "")) {
		s.restore(m, bare)
	}
	if _, err := Verify(context.Background(), bare, VerifyOptions{ReadData: true}); err != nil {
		s.Errorf("seed %d: verify: %v", s.seed, err)
	}
}

func TestManyMachinesInOneRepository(t *testing.T) {
	// D17 to D22, with leases alone between a backup and a collection.
	seeds, rounds := 2, 25
	if long() {
		seeds, rounds = 20, 400
	}
	first := uint64(1)
	if s := os.Getenv("PLATTER_TEST_SEED"); s != "" {
		first = must(strconv.ParseUint(s, 10, 64))
	}
	for i := range seeds {
		s := newTown(t, first+uint64(i))
		s.live(rounds)
		t.Logf("seed %d: %d backups, %d withdrawn, %d images pruned, %d collections deleted %d segments, %d restores",
			s.seed, s.backups.Load(), s.refused.Load(), s.prunes.Load(), s.collections.Load(), s.deleted.Load(), s.restores.Load())
		if s.deleted.Load() == 0 || s.prunes.Load() == 0 {
			t.Error("nothing was taken away")
		}
		if t.Failed() {
			return
		}
	}
}
