package job

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"platter/block"
	"platter/catalog"
	"platter/image"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/store"
	"platter/image/store/mem"
)

// A disk is a device in memory.
type disk struct {
	name string
	data []byte
	// holes reports zeros of whole 4096 bytes as holes.
	holes bool
	bad   []block.Extent // cannot be read
	check error
	table *block.Table
	read  atomic.Int64    // bytes
	hook  func(off int64) // called by every worker that reads; see firstRead
}

// firstRead returns a hook that calls do once, when offset 0 is read.
func firstRead(do func()) func(off int64) {
	once := sync.OnceFunc(do)
	return func(off int64) {
		if off == 0 {
			once()
		}
	}
}

func (d *disk) Info() block.Info {
	return block.Info{Path: "/mem/" + d.name, Kind: block.KindFile, Name: d.name, Size: int64(len(d.data)), LogicalSector: 512, Table: d.table}
}

func (d *disk) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if d.hook != nil {
		d.hook(off)
	}
	for _, e := range d.bad {
		if off < e.End() && e.Offset < off+int64(len(p)) {
			return 0, &block.ReadError{Path: d.Info().Path, Extent: block.Extent{Offset: off, Length: int64(len(p))}, Err: io.ErrUnexpectedEOF}
		}
	}
	d.read.Add(int64(len(p)))
	return copy(p, d.data[off:]), nil
}

func (d *disk) Data(off int64) (block.Extent, error) {
	size := int64(len(d.data))
	if !d.holes {
		if off >= size {
			return block.Extent{}, io.EOF
		}
		return block.Extent{Offset: off, Length: size - off}, nil
	}
	zero := func(at int64) bool { return image.IsZero(d.data[at:min(at+4096, size)]) }
	off &^= 4095
	for off < size && zero(off) {
		off += 4096
	}
	if off >= size {
		return block.Extent{}, io.EOF
	}
	end := off
	for end < size && !zero(end) {
		end += 4096
	}
	return block.Extent{Offset: off, Length: min(end, size) - off}, nil
}

func (d *disk) Check() error { return d.check }
func (d *disk) Close() error { return nil }

// fill writes random blocks over a range, a third of them zero, a third of few
// distinct contents.
func (d *disk) fill(r *rand.Rand, blockSize int) {
	for off := 0; off < len(d.data); off += blockSize {
		b := d.data[off:min(off+blockSize, len(d.data))]
		switch r.IntN(3) {
		case 0:
			clear(b)
		case 1:
			for i := range b {
				b[i] = byte(r.IntN(2))
			}
			clear(b[min(8, len(b)):])
			b[0] = byte(1 + r.IntN(8))
		default:
			random(r, b)
		}
	}
}

func random(r *rand.Rand, b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, r.Uint64())
	}
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func seeded(t *testing.T, seed uint64) *rand.Rand {
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// algorithm is the one of all repositories under test.
func algorithm() string {
	if os.Getenv("PLATTER_TEST_XXH8") != "" {
		return image.IDAlgorithm8
	}
	return image.IDAlgorithm
}

func newRepo(t *testing.T, st store.Store, blockSize int) *repo.Repo {
	t.Helper()
	r, err := repo.Init(context.Background(), st, repo.InitOptions{BlockSize: blockSize, IDAlgorithm: algorithm()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// newEnv returns an Env on a new repository in memory, with a catalog.
func newEnv(t *testing.T, blockSize int) *Env {
	t.Helper()
	return envOf(t, newRepo(t, mem.New(), blockSize))
}

func envOf(t *testing.T, r *repo.Repo) *Env {
	t.Helper()
	c, err := catalog.Open(context.Background(), catalog.Options{
		Dir: t.TempDir(), Repository: r.ID, BlockSize: r.Config.BlockSize, Memory: catalog.MinMemory,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	var mu sync.Mutex
	return &Env{Repo: r, Catalog: c, Memory: 64 << 20, Version: "test", Host: "host", Warn: func(s string) {
		mu.Lock()
		defer mu.Unlock()
		t.Log("warning: " + s)
	}}
}

func mustBackup(t *testing.T, env *Env, d *disk, opts BackupOptions) *BackupReport {
	t.Helper()
	opts.Sources = []block.Source{d}
	reports, err := Backup(context.Background(), env, opts)
	if err != nil {
		t.Fatal(err)
	}
	return reports[0]
}

// content reads a whole image without a catalog.
func content(t *testing.T, env *Env, m *image.Manifest) []byte {
	t.Helper()
	bare := &Env{Repo: env.Repo, Memory: env.Memory}
	out, err := readImage(bare, m)
	if err != nil {
		t.Fatal(fmt.Errorf("read image %s: %w", m.ID, err))
	}
	return out
}

func readImage(env *Env, m *image.Manifest) ([]byte, error) {
	return readImageBy(env.reader(), m)
}

func readImageBy(rd *reader.Reader, m *image.Manifest) ([]byte, error) {
	out := make([]byte, m.Size)
	bs := int64(m.BlockSize)
	var refs []reader.Ref
	ctx := context.Background()
	err := rd.Walk(ctx, reader.MapOf(m), 0, m.Blocks(), func(first int64, p *image.Page) error {
		for i, id := range p.Entries {
			if n := first + int64(i); !id.IsZero() {
				refs = append(refs, reader.Ref{Block: n, ID: id, At: p.Hints[i], Length: int32(min(bs, m.Size-n*bs))})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, rd.Read(ctx, refs, func(first int64, plain []byte) error {
		copy(out[first*bs:], plain)
		return nil
	})
}

// allImages are the images that can be read.
func allImages(ctx context.Context, env *Env) ([]*image.Manifest, error) {
	list, _, err := Images(ctx, env, "")
	return list, err
}
