package reader

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
)

// A depot is a small repository that a test fills by hand.
type depot struct {
	*repo.Repo
	store *mem.Store
	known map[image.ID]image.Location
	// segment sizes in bytes, small so that there are many
	size int
}

func newDepot(t testing.TB, blockSize int) *depot {
	t.Helper()
	st := mem.New()
	opts := repo.InitOptions{BlockSize: blockSize}
	if os.Getenv("PLATTER_TEST_XXH8") == "1" {
		opts.IDAlgorithm = image.IDAlgorithm8
	}
	r, err := repo.Init(context.Background(), st, opts)
	if err != nil {
		t.Fatal(err)
	}
	return &depot{Repo: r, store: st, known: map[image.ID]image.Location{}, size: 8*blockSize + 64<<10}
}

// A packer puts records into segments one after the other.
type packer struct {
	d    *depot
	kind segment.Kind
	b    *segment.Builder
	c    *segment.Codec
}

func (p *packer) add(t testing.TB, id image.ID, plain []byte) image.Location {
	t.Helper()
	if p.c == nil {
		p.c = new(segment.Codec)
	}
	stored, flags, err := p.c.Encode(plain)
	if err != nil {
		t.Fatal(err)
	}
	if p.b != nil && !p.b.Fits(len(stored)) {
		p.flush(t)
	}
	if p.b == nil {
		p.b = p.d.NewSegment(store.AllocAligned(p.d.size), p.kind, [16]byte{1})
	}
	n := p.b.Add(segment.Record{ID: id, Plain: uint32(len(plain)), Flags: flags}, stored)
	return image.Location{Segment: p.b.ID(), Record: n}
}

func (p *packer) flush(t testing.TB) {
	t.Helper()
	if p.b == nil {
		return
	}
	object, f := p.b.Seal()
	if err := p.d.Store.Put(context.Background(), segment.Name(f.ID), object); err != nil {
		t.Fatal(err)
	}
	p.b = nil
}

// put stores a disk as an image, each distinct block once per depot.
func (d *depot) put(t testing.TB, disk []byte) *image.Manifest {
	t.Helper()
	bs := d.Config.BlockSize
	m := &image.Manifest{
		ID: image.ImageID{byte(len(d.known) + 1), 7}, Volume: "host/disk", BlockSize: bs, Size: int64(len(disk)),
		Time: time.Unix(1e9, 0).UTC(),
	}
	data, pages := &packer{d: d, kind: segment.Data}, &packer{d: d, kind: segment.Pages}
	h := d.Hasher()
	tree := image.NewTree(m.Blocks(), func(_ int, p *image.Page) (image.ID, image.Location, error) {
		plain := p.Encode(nil)
		id := h.Page(plain[:image.PageSize])
		if at, ok := d.known[id]; ok {
			return id, at, nil
		}
		d.known[id] = pages.add(t, id, plain)
		return id, d.known[id], nil
	})
	var leaf image.Page
	for off, n := 0, 0; off < len(disk); off += bs {
		block := disk[off:min(off+bs, len(disk))]
		if id := h.Block(block); !id.IsZero() {
			if _, ok := d.known[id]; !ok {
				d.known[id] = data.add(t, id, block)
			}
			leaf.Entries[n], leaf.Hints[n] = id, d.known[id]
		}
		if n++; n == image.PageEntries || off+bs >= len(disk) {
			if err := tree.Leaf(&leaf); err != nil {
				t.Fatal(err)
			}
			leaf, n = image.Page{}, 0
		}
	}
	var err error
	if m.Root, m.RootAt, err = tree.Finish(); err != nil {
		t.Fatal(err)
	}
	data.flush(t)
	pages.flush(t)
	if _, err := d.Commit(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// get reads a whole image.
func get(ctx context.Context, r *Reader, m *image.Manifest) ([]byte, error) {
	disk := make([]byte, m.Size)
	var refs []Ref
	err := r.Walk(ctx, MapOf(m), 0, m.Blocks(), func(first int64, p *image.Page) error {
		refs = appendRefs(refs, m, first, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	seen := map[int64]bool{}
	err = r.Read(ctx, refs, func(first int64, plain []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if !store.IsAligned(plain) {
			panic("not aligned")
		}
		for n := first; (n-first)*int64(m.BlockSize) < int64(len(plain)); n++ {
			if seen[n] {
				panic("block handed out twice")
			}
			seen[n] = true
		}
		copy(disk[first*int64(m.BlockSize):], plain)
		return nil
	})
	return disk, err
}

func appendRefs(refs []Ref, m *image.Manifest, first int64, p *image.Page) []Ref {
	for i := range p.Entries {
		if n := first + int64(i); !p.Entries[i].IsZero() {
			length := min(int64(m.BlockSize), m.Size-n*int64(m.BlockSize))
			refs = append(refs, Ref{n, p.Entries[i], p.Hints[i], int32(length)})
		}
	}
	return refs
}

// randomDisk returns a disk of zeros, repeated, compressible and random blocks.
func randomDisk(rng *rand.Rand, size, blockSize int) []byte {
	disk := make([]byte, size)
	for off := 0; off < size; off += blockSize {
		block := disk[off:min(off+blockSize, size)]
		switch rng.IntN(5) {
		case 0: // zeros
			if rng.IntN(8) == 0 { // many
				off += rng.IntN(300) * blockSize
			}
		case 1:
			copy(block, bytes.Repeat([]byte{byte(1 + rng.IntN(3))}, len(block)))
		case 2:
			for i := range block {
				block[i] = byte(rng.IntN(3))
			}
		default:
			for i := range block {
				block[i] = byte(rng.Uint32())
			}
		}
	}
	return disk
}
