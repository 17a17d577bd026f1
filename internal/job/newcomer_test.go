package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"platter/catalog"
	"platter/image"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
)

// far counts the operations of a store that answers late.
type far struct {
	store.Store
	ops, bytes atomic.Int64
}

func (f *far) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	f.ops.Add(1)
	f.bytes.Add(int64(len(p)))
	return f.Store.ReadAt(ctx, name, p, off)
}

func (f *far) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	f.ops.Add(1)
	b, err := f.Store.Get(ctx, name, limit)
	f.bytes.Add(int64(len(b)))
	return b, err
}

func (f *far) Head(ctx context.Context, name string) (store.Info, error) {
	f.ops.Add(1)
	return f.Store.Head(ctx, name)
}

// List counts an operation for every thousand names, as buckets answer.
func (f *far) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	n := 0
	f.ops.Add(1)
	return f.Store.List(ctx, prefix, func(o store.Info) error {
		if n++; n%1000 == 0 {
			f.ops.Add(1)
		}
		return fn(o)
	})
}

func TestFirstByteOfAThousandVolumes(t *testing.T) {
	sweep(t)
	// A machine that knows nothing restores one volume of a thousand, with
	// three images each: how many operations come before the first byte is
	// written, and how long they take at 20 ms each, one behind the other.
	const volumes, nightsKept, trip = 1000, 3, 20 * time.Millisecond
	ctx := context.Background()
	under := mem.New()
	under.Advance(time.Since(mem.Epoch()))
	f := &far{Store: under}
	env := envOf(t, newRepo(t, f, 4<<10))
	crowd(t, env, 2000)
	d := &disk{name: "disk", data: make([]byte, 4<<20)}
	random(seeded(t, 60), d.data)
	first := mustBackup(t, env, d, BackupOptions{}).Image
	for v := range volumes {
		for n := range nightsKept {
			m := *first
			m.Volume, m.Seq = fmt.Sprintf("host%d/disk", v), 0
			binary.LittleEndian.PutUint32(m.ID[:], uint32(v*100+n+1))
			m.Time = first.Time.Add(time.Duration(n-nightsKept) * 24 * time.Hour)
			if _, err := env.Repo.Commit(ctx, &m); err != nil {
				t.Fatal(err)
			}
		}
	}
	repackAll(t, env)
	for range 2 {
		mustCollect(t, env, CollectOptions{MaxUnused: 1})
	}
	for name, c := range map[string]*catalog.Catalog{"no catalog": nil, "an empty catalog": envOf(t, env.Repo).Catalog} {
		f.ops.Store(0)
		f.bytes.Store(0)
		cold := &Env{Repo: env.Repo, Catalog: c, Memory: 64 << 20, Host: "host"}
		var ops, read int64
		cold.Progress = func(p Progress) {
			if ops == 0 && p.Done > 0 {
				ops, read = f.ops.Load(), f.bytes.Load()
			}
		}
		path := filepath.Join(t.TempDir(), "restored")
		mustRestore(t, cold, RestoreOptions{Image: "host77/disk", Target: path})
		if ops == 0 {
			ops, read = f.ops.Load(), f.bytes.Load()
		}
		if !bytes.Equal(readFile(t, path), d.data) {
			t.Errorf("%s: the restored volume differs", name)
		}
		// At worst none run side by side but the reads of manifests.
		worst := time.Duration(ops-volumes)*trip + volumes/manifestReaders*trip
		t.Logf("%s: %d operations, %d KiB read before the first byte: %v at %v each",
			name, ops, read>>10, worst, trip)
		if worst > 30*time.Second {
			t.Errorf("%s: the first byte takes %v at %v an operation, want 30 s at most", name, worst, trip)
		}
	}
}

// crowd stores so many segments of one block each that nobody needs here, but a
// lease of their run spares.
func crowd(t *testing.T, env *Env, n int) {
	t.Helper()
	run := [16]byte{5}
	h, err := env.Repo.Acquire(context.Background(), "backup", run)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Release(context.Background()) })
	buf := store.AllocAligned(64 << 10)
	for k := range n {
		b := env.Repo.NewSegment(buf, segment.Data, run)
		id := image.ID{7}
		binary.LittleEndian.PutUint32(id[8:], uint32(k))
		b.Add(segment.Record{ID: id, Plain: 100}, make([]byte, 100))
		object, f := b.Seal()
		if err := env.Repo.Store.Put(context.Background(), segment.Name(f.ID), bytes.Clone(object)); err != nil {
			t.Fatal(err)
		}
	}
}
