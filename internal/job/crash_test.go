package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"platter/block"
	"platter/catalog"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/crashfs"
	"platter/image/store/dir"
	"platter/retention"
)

// A story is a repository's life on a file system that can crash: init, nights
// of two disks, a prune, a collection, and one more night. It knows what every
// image must hold.
type story struct {
	t     *testing.T
	fs    *crashfs.FS
	made  bool                         // init was acknowledged
	want  map[string]map[uint64][]byte // by volume and number
	acked map[string]map[uint64]bool   // images that must be there

	deleted, repacked, indexes int // by collections
}

const storyRepo = "/repo"

func newStory(t *testing.T) *story {
	s := &story{t: t, fs: crashfs.New(), want: map[string]map[uint64][]byte{}, acked: map[string]map[uint64]bool{}}
	return s
}

// run lives the story. Errors of the file system are its own.
func (s *story) run() error {
	ctx := context.Background()
	st, err := dir.Create(storyRepo, s.fs)
	if err != nil {
		return err
	}
	now, err := st.Now(ctx)
	if err != nil {
		return err
	}
	s.fs.Advance(time.Since(now))
	r, err := repo.Init(ctx, st, repo.InitOptions{BlockSize: 4 << 10, IDAlgorithm: algorithm()})
	if err != nil {
		return err
	}
	s.made = true
	env := envOf(s.t, r)
	rnd := seeded(s.t, 7)
	a := &disk{name: "a", data: make([]byte, 200<<10)}
	b := &disk{name: "b", data: make([]byte, 100<<10+77)}
	random(rnd, a.data)
	copy(b.data, a.data[50<<10:])
	for night := range 3 {
		random(rnd, a.data[night<<14:][:10<<10])
		random(rnd, b.data[:1<<10])
		for _, d := range []*disk{a, b} {
			if err := s.backup(env, d); err != nil {
				return err
			}
		}
	}
	for _, v := range []string{"host/a", "host/b"} {
		delete(s.acked[v], 1)
		delete(s.acked[v], 2)
	}
	if _, err := Prune(ctx, env, PruneOptions{Policy: retention.Policy{Last: 1}}); err != nil {
		return err
	}
	// The first takes away and repacks, the second takes away what was moved.
	for range 2 {
		r, err := Collect(ctx, env, CollectOptions{MaxDelete: 1, indexFloor: 1})
		if err != nil {
			return err
		}
		s.deleted, s.repacked, s.indexes = s.deleted+len(r.Deleted), s.repacked+len(r.Repacked), s.indexes+r.Indexes
	}
	random(rnd, a.data[100<<10:][:10<<10])
	return s.backup(env, a)
}

func (s *story) backup(env *Env, d *disk) error {
	volume := "host/" + d.name
	if s.want[volume] == nil {
		s.want[volume], s.acked[volume] = map[uint64][]byte{}, map[uint64]bool{}
	}
	n := uint64(len(s.want[volume]) + 1)
	s.want[volume][n] = bytes.Clone(d.data)
	reports, err := Backup(context.Background(), env, BackupOptions{Sources: []block.Source{d}})
	if err != nil {
		return err
	}
	if got := reports[0].Image.Seq; got != n {
		return fmt.Errorf("image %d of %s, want %d", got, volume, n)
	}
	s.acked[volume][n] = true
	return nil
}

// check proves that every image there is restores exactly, and that every
// acknowledged one is there.
func (s *story) check(after *crashfs.FS) error {
	_, err := s.images(after)
	return err
}

func (s *story) images(after *crashfs.FS) (*repo.Repo, error) {
	ctx := context.Background()
	st, err := dir.Open(storyRepo, after)
	if err != nil {
		return nil, s.unmade(err)
	}
	r, err := repo.Open(ctx, st)
	if err != nil {
		return nil, s.unmade(err)
	}
	there := map[string]map[uint64]bool{}
	err = r.Manifests(ctx, func(name string) error {
		m, err := r.Manifest(ctx, name)
		if err != nil {
			return err
		}
		got, err := readSimply(r, m)
		if errors.Is(err, store.ErrNotFound) { // moved: hints alone do not lead there
			got, err = readImage(&Env{Repo: r, Memory: 8 << 20}, m)
		}
		if err != nil {
			return err
		}
		if !bytes.Equal(got, s.want[m.Volume][m.Seq]) {
			return fmt.Errorf("image %d of %s differs", m.Seq, m.Volume)
		}
		if there[m.Volume] == nil {
			there[m.Volume] = map[uint64]bool{}
		}
		there[m.Volume][m.Seq] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	for volume, numbers := range s.acked {
		for n := range numbers {
			if !there[volume][n] {
				return nil, fmt.Errorf("image %d of %s was acknowledged and is not there", n, volume)
			}
		}
		if gaps, err := r.Gaps(ctx, volume); err != nil || len(gaps) > 0 {
			return nil, fmt.Errorf("images %v of %s vanished without a tombstone (%v)", gaps, volume, err)
		}
	}
	return r, nil
}

// readSimply reads a whole image by the hints of its pages alone, one block
// after the other.
func readSimply(r *repo.Repo, m *image.Manifest) ([]byte, error) {
	ctx, codec, hasher := context.Background(), new(segment.Codec), r.Hasher()
	footers := map[image.SegmentID]*segment.Footer{}
	footer := func(at image.Location) (f *segment.Footer, err error) {
		if f = footers[at.Segment]; f == nil {
			f, err = r.Footer(ctx, at.Segment)
			footers[at.Segment] = f
		}
		if err == nil && int(at.Record) >= len(f.Records) {
			err = image.ErrCorrupt
		}
		return f, err
	}
	out := make([]byte, m.Size)
	var walk func(id image.ID, at image.Location, level int, first int64) error
	walk = func(id image.ID, at image.Location, level int, first int64) error {
		if id.IsZero() {
			return nil
		}
		f, err := footer(at)
		if err != nil {
			return err
		}
		if level >= 0 {
			p, err := r.ReadPage(ctx, f, int(at.Record))
			for i := 0; err == nil && i < image.PageEntries; i++ {
				below := first + int64(i)
				if level > 0 {
					below = first + int64(i)*image.PageBlocks(level-1)
				}
				err = walk(p.Entries[i], p.Hints[i], level-1, below)
			}
			return err
		}
		rec := f.Records[at.Record]
		stored := make([]byte, rec.Stored)
		if err := r.Store.ReadAt(ctx, segment.Name(at.Segment), stored, rec.Offset); err != nil {
			return err
		}
		b := out[first*int64(m.BlockSize):]
		if int(rec.Plain) > len(b) {
			return image.ErrCorrupt
		}
		b = b[:rec.Plain]
		if err := f.Decode(codec, b, stored, int(at.Record)); err != nil {
			return err
		}
		if !hasher.Is(id, b) {
			return image.ErrCorrupt
		}
		return nil
	}
	return out, walk(m.Root, m.RootAt, image.Levels(m.Blocks())-1, 0)
}

// unmade lets a repository be missing until its init was acknowledged.
func (s *story) unmade(err error) error {
	if !s.made && (errors.Is(err, repo.ErrNoRepository) || errors.Is(err, fs.ErrNotExist)) {
		return nil
	}
	return err
}

func TestCommittedImagesSurviveACrashAtEveryCall(t *testing.T) {
	sweep(t)
	// D3, D18.
	s := newStory(t)
	states := 0
	err := s.fs.Explore(1, 12, s.run, func(after *crashfs.FS) error {
		states++
		return s.check(after)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d states after %d calls; segments: %d repacked, %d deleted; %d indexes", states, s.fs.Ops(), s.repacked, s.deleted, s.indexes)
	if s.repacked == 0 || s.deleted <= s.repacked || s.indexes == 0 {
		t.Error("the story does not tell of all that a collection does")
	}
}

func TestWorkGoesOnAfterACrash(t *testing.T) {
	s := newStory(t)
	states := 0
	err := s.fs.Explore(2, 2, s.run, func(after *crashfs.FS) error {
		states++
		if states%9 != 0 {
			return nil
		}
		r, err := s.images(after)
		if err != nil || r == nil {
			return err
		}
		after.Advance(repo.LeaseTTL) // this process lives on, unlike those that crash
		return s.goOn(r)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// goOn makes an image with a new catalog, collects, and reads the image.
func (s *story) goOn(r *repo.Repo) error {
	ctx := context.Background()
	c, err := catalog.Open(ctx, catalog.Options{Dir: s.t.TempDir(), Repository: r.ID, BlockSize: 4 << 10, Memory: catalog.MinMemory})
	if err != nil {
		return err
	}
	defer c.Close()
	env := &Env{Repo: r, Catalog: c, Memory: 64 << 20, Version: "test", Host: "host"}
	d := &disk{name: "after", data: make([]byte, 150<<10)}
	random(seeded(s.t, 9), d.data)
	if first := s.want["host/a"][1]; first != nil {
		copy(d.data, first[:100<<10])
	}
	reports, err := Backup(ctx, env, BackupOptions{Sources: []block.Source{d}})
	if err != nil {
		return err
	}
	if _, err := Collect(ctx, env, CollectOptions{MaxDelete: 1}); err != nil {
		return err
	}
	got, err := readImage(&Env{Repo: r, Memory: 8 << 20}, reports[0].Image)
	if err == nil && !bytes.Equal(got, d.data) {
		err = errors.New("the image made after the crash differs")
	}
	return err
}

func TestEverySyncThatImagesLeanOnIsNeeded(t *testing.T) {
	sweep(t)
	// D2, D3: each sync of a segment, a manifest, the config or its key slot is
	// left out in turn, and all of directories at once; some crash must then
	// show it. A single sync of a directory may be made good by a later one of
	// the same directory: the store's own tests leave those out in turn.
	var calls []int
	s := newStory(t)
	s.fs.Watch(func(op crashfs.Op) {
		if op.Kind != crashfs.Sync {
			return
		}
		for _, p := range []string{"segments/", "images/", "keys/", ".", "tmp-"} {
			if strings.HasPrefix(op.Path, storyRepo+"/"+p) {
				calls = append(calls, op.Nth)
				return
			}
		}
	})
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	// make test tries a sample; PLATTER_TEST_LONG=1 tries them all.
	every := 1
	if os.Getenv("PLATTER_TEST_LONG") == "" {
		every = 7
	}
	noticed := func(kind crashfs.Kind, nth int) bool {
		s := newStory(t)
		s.fs.Drop(kind, nth)
		return s.fs.Explore(3, 6, s.run, s.check) != nil
	}
	tried := 0
	for i := 0; i < len(calls); i += every {
		tried++
		if !noticed(crashfs.Sync, calls[i]) {
			t.Errorf("sync %d left out: no crash shows it", calls[i])
		}
	}
	if !noticed(crashfs.SyncDir, 0) {
		t.Error("all syncs of directories left out: no crash shows it")
	}
	t.Logf("left out %d of %d syncs", tried, len(calls))
}
