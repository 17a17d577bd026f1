package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"platter/block"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
)

// A steady disk proves whether it was written to.
type steady struct {
	*disk
	moment string
}

func (*steady) Direct() bool             { return true }
func (*steady) Usage() []block.Usage     { return nil }
func (*steady) Live() bool               { return false }
func (*steady) Still() error             { return nil }
func (s *steady) Moment() (string, bool) { return s.moment, s.moment != "" }

// A frail store is gone for good after so many more segments, as for a process
// that is killed.
type frail struct {
	store.Store
	left atomic.Int64
}

var errKilled = errors.New("killed")

func (f *frail) Put(ctx context.Context, name string, parts ...[]byte) error {
	if strings.HasPrefix(name, "segments/") {
		f.left.Add(-1)
	}
	if f.left.Load() < 0 {
		return errKilled
	}
	return f.Store.Put(ctx, name, parts...)
}

func (f *frail) Delete(ctx context.Context, name string) error {
	if f.left.Load() < 0 {
		return errKilled
	}
	return f.Store.Delete(ctx, name)
}

// interrupted backs a disk up until so many segments are stored, and reports
// whether that was before the end.
func interrupted(t *testing.T, env *Env, f *frail, d *steady, segments int64) bool {
	t.Helper()
	f.left.Store(segments)
	_, err := Backup(context.Background(), env, resumeOptions(d))
	f.left.Store(1 << 40)
	if err != nil && !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	return err != nil
}

func resumeOptions(d *steady) BackupOptions {
	return BackupOptions{Volume: "host/d", Sources: []block.Source{d}, CheckpointEvery: 2 << 20}
}

func newFrail(t *testing.T) (*Env, *frail) {
	f := &frail{Store: mem.New()}
	f.left.Store(1 << 40)
	return envOf(t, newRepo(t, f, 4096)), f
}

func finish(t *testing.T, env *Env, d *steady) *BackupReport {
	t.Helper()
	d.read.Store(0)
	reports, err := Backup(t.Context(), env, resumeOptions(d))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, env, reports[0].Image), d.data) {
		t.Fatal("the image is not what the disk holds")
	}
	return reports[0]
}

// D8: what a run read before it was killed is not read again, as long as the
// disk is proven to be the same.
func TestKilledRunGoesOnWhereItWas(t *testing.T) {
	rng := seeded(t, 21)
	resumed := 0
	for n := int64(1); ; n += 2 {
		env, f := newFrail(t)
		d := &steady{&disk{name: "d", data: make([]byte, 16<<20+5000)}, "first"}
		d.fill(rng, 4096)
		if !interrupted(t, env, f, d, n) {
			break
		}
		report := finish(t, env, d)
		if d.read.Load()+report.Resumed != int64(len(d.data)) {
			t.Errorf("killed after %d segments: %d bytes read, %d taken over, of %d", n, d.read.Load(), report.Resumed, len(d.data))
		}
		if report.Resumed > 0 {
			resumed++
		}
		// A night later the checkpoint is gone, and the image a parent like any.
		random(rng, d.data[3<<20:4<<20])
		d.moment = "second"
		if report := finish(t, env, d); report.Resumed != 0 {
			t.Errorf("a whole image left a checkpoint of %d bytes", report.Resumed)
		}
	}
	if resumed < 2 { // of about four
		t.Errorf("only %d runs were gone on with", resumed)
	}
}

// A run may be killed again and again, and gets on each time.
func TestRunKilledManyTimesGetsOn(t *testing.T) {
	env, f := newFrail(t)
	d := &steady{&disk{name: "d", data: make([]byte, 40<<20)}, "first"}
	random(seeded(t, 22), d.data)
	var last int64
	for range 4 {
		d.read.Store(0)
		if !interrupted(t, env, f, d, 4) {
			t.Fatal("it came to its end")
		}
		if n := d.read.Load(); last > 0 && n >= last {
			t.Errorf("read %d bytes until it was killed, %d the time before", n, last)
		}
	}
	if report := finish(t, env, d); report.Resumed < 4<<20 {
		t.Errorf("%d bytes taken over", report.Resumed)
	}
}

// A blind store takes pages, and of segments of data only the first ones.
type blind struct {
	store.Store
	left atomic.Int64
}

func (b *blind) Put(ctx context.Context, name string, parts ...[]byte) error {
	if strings.HasPrefix(name, "segments/") && segment.Kind(parts[0][8]) == segment.Data && b.left.Add(-1) < 0 {
		return errKilled
	}
	return b.Store.Put(ctx, name, parts...)
}

// D3: pages that name blocks are stored after them. Those of a run that died
// between the two would be found by the next, and say where nothing is.
func TestPagesComeAfterTheirBlocks(t *testing.T) {
	for n := range int64(2) {
		st := &blind{Store: mem.New()}
		st.left.Store(n)
		env := envOf(t, newRepo(t, st, 4096))
		d := &steady{&disk{name: "d", data: make([]byte, 32<<20)}, "first"}
		random(seeded(t, 27), d.data)
		if _, err := Backup(t.Context(), env, resumeOptions(d)); !errors.Is(err, errKilled) {
			t.Fatalf("a store that takes %d segments of data: %v", n, err)
		}
		there, pages := map[image.SegmentID]bool{}, []*segment.Footer{}
		err := env.Repo.Segments(t.Context(), func(id image.SegmentID, _ int64, _ time.Time) error {
			there[id] = true
			f, err := env.Repo.Footer(t.Context(), id)
			if err == nil && f.Kind == segment.Pages {
				pages = append(pages, f)
			}
			return err
		})
		for _, f := range pages {
			err = errors.Join(err, env.Repo.Pages(t.Context(), f, func(record int, p *image.Page, _ image.ID) error {
				for i, at := range p.Hints {
					if !p.Entries[i].IsZero() && !there[at.Segment] {
						return fmt.Errorf("%d segments of data: page %d names segment %s, which is not there", n, record, at.Segment)
					}
				}
				return nil
			}))
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// Nothing is taken over where that could be wrong.
func TestCheckpointThatProvesNothing(t *testing.T) {
	rng := seeded(t, 23)
	for what, spoil := range map[string]func(t *testing.T, env *Env, d *steady){
		"the disk was written to": func(_ *testing.T, _ *Env, d *steady) {
			random(rng, d.data[:5<<20])
			d.moment = "second"
		},
		"nothing proves that it was not": func(_ *testing.T, _ *Env, d *steady) { d.moment = "" },
		"it is larger": func(_ *testing.T, _ *Env, d *steady) {
			d.data = append(d.data, make([]byte, 1<<20)...)
		},
		"a segment was collected": func(t *testing.T, env *Env, _ *steady) {
			// The oldest: what was stored last may be of no checkpoint yet.
			var first store.Info
			err := env.Repo.Store.List(t.Context(), "segments/", func(i store.Info) error {
				if first.Name == "" || i.Modified.Before(first.Modified) {
					first = i
				}
				return nil
			})
			if err := errors.Join(err, env.Repo.Store.Delete(t.Context(), first.Name)); err != nil {
				t.Fatal(err)
			}
		},
		"the record is nonsense": func(t *testing.T, env *Env, _ *steady) {
			text := fmt.Sprintf(`{"moment":"first","size":%d,"block_size":4096,"spine":[{"level":0},{"level":1}]}`, 20<<20)
			if err := env.Catalog.Put(t.Context(), checkpointSpace, "host/d", []byte(text)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		env, f := newFrail(t)
		d := &steady{&disk{name: "d", data: make([]byte, 20<<20)}, "first"}
		random(rng, d.data)
		if !interrupted(t, env, f, d, 6) {
			t.Fatal("it came to its end")
		}
		if _, err := env.Catalog.Get(t.Context(), checkpointSpace, "host/d"); err != nil {
			t.Fatalf("%s: no checkpoint was left: %v", what, err)
		}
		spoil(t, env, d)
		if report := finish(t, env, d); report.Resumed != 0 {
			t.Errorf("%s: %d bytes were taken over", what, report.Resumed)
		}
	}
}

// later is a machine whose uptime can be moved on.
type later struct {
	repo.Machine
	by *atomic.Int64
}

func (l later) Uptime() time.Duration { return l.Machine.Uptime() + time.Duration(l.by.Load()) }

// D20, D22: a store that was out of reach for an hour takes a run's lease with
// it, and a collector may take what the run builds on. No image that is not
// whole is ever seen: the run begins anew and reads the disk again.
func TestRunWhoseLeaseRanOutIsMadeAgain(t *testing.T) {
	env := newEnv(t, 4096)
	var by atomic.Int64
	env.Repo.Machine = later{env.Repo.Machine, &by}
	d := &disk{name: "d", data: make([]byte, 12<<20)}
	random(seeded(t, 24), d.data)
	mustBackup(t, env, d, BackupOptions{Volume: "host/d"})
	random(seeded(t, 25), d.data[8<<20:])
	d.hook = firstRead(func() {
		by.Store(int64(time.Hour))
		// What a collector with no grace does, once the first image is forgotten.
		var names, images []string
		err := env.Repo.Store.List(t.Context(), "segments/", func(i store.Info) error { names = append(names, i.Name); return nil })
		err = errors.Join(err, env.Repo.Store.List(t.Context(), "images/", func(i store.Info) error { images = append(images, i.Name); return nil }))
		err = errors.Join(err, env.Repo.Forget(t.Context(), images[0], "pruned"))
		for _, name := range names {
			err = errors.Join(err, env.Repo.Store.Delete(t.Context(), name))
		}
		if err != nil {
			t.Error(err)
		}
	})
	var seen []uint64
	report := mustBackup(t, env, d, BackupOptions{Volume: "host/d"})
	if !bytes.Equal(content(t, env, report.Image), d.data) {
		t.Error("the image is not what the disk holds")
	}
	err := env.Repo.Store.List(t.Context(), "trash/images/", func(i store.Info) error { seen = append(seen, 1); return nil })
	if err != nil || len(seen) != 1 {
		t.Errorf("%d tombstones, %v, want the one of the first image: none was withdrawn", len(seen), err)
	}
}
