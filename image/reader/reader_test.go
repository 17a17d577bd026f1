package reader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"platter/image"
	"platter/image/segment"
	"platter/image/store"
)

func TestReadReturnsWhatWasStored(t *testing.T) {
	for _, bs := range []int{4 << 10, 64 << 10, 4 << 20} {
		for seed := range uint64(6) {
			rng := rand.New(rand.NewPCG(seed, 1))
			size := rng.IntN(300*bs) + 1
			if bs == 4<<20 {
				size = rng.IntN(5*bs) + 1
			}
			if seed == 0 {
				size = 128 * min(bs, 64<<10)
			}
			d := newDepot(t, bs)
			first, second := randomDisk(rng, size, bs), randomDisk(rng, size+1, bs)
			a, b := d.put(t, first), d.put(t, second)
			r := New(d.Repo, nil, 32<<20)
			for m, want := range map[*image.Manifest][]byte{a: first, b: second} {
				got, err := get(t.Context(), r, m)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("block size %d, seed %d, size %d: %v, equal %v", bs, seed, size, err, bytes.Equal(got, want))
				}
			}
		}
	}
}

func TestEmptyAndZeroImages(t *testing.T) {
	d := newDepot(t, 4096)
	r := New(d.Repo, nil, 0)
	for _, size := range []int{0, 1, 4096, 128 * 4096, 129 * 4096} {
		got, err := get(t.Context(), r, d.put(t, make([]byte, size)))
		if err != nil || len(got) != size || !image.IsZero(got) {
			t.Errorf("size %d: got %d bytes, %v", size, len(got), err)
		}
	}
}

// hintless takes all hints out of what walks give.
func TestWrongAndMissingHintsCostALookup(t *testing.T) {
	d := newDepot(t, 4096)
	disk := randomDisk(rand.New(rand.NewPCG(1, 2)), 300*4096+5, 4096)
	m := d.put(t, disk)
	for name, hint := range map[string]func(Ref) image.Location{
		"none":          func(Ref) image.Location { return image.Location{} },
		"no segment":    func(Ref) image.Location { return image.Location{Segment: image.SegmentID{1}, Record: 3} },
		"wrong record":  func(r Ref) image.Location { return image.Location{Segment: r.At.Segment, Record: r.At.Record + 1} },
		"absurd record": func(r Ref) image.Location { return image.Location{Segment: r.At.Segment, Record: 1<<32 - 1} },
		"pages":         func(Ref) image.Location { return m.RootAt },
	} {
		for _, index := range []Index{nil, wrong{}, known(d.known)} {
			r := New(d.Repo, index, 8<<20)
			var refs []Ref
			if err := r.Walk(t.Context(), Map{m.Root, hint(Ref{At: m.RootAt}), m.Blocks()}, 0, m.Blocks(), func(first int64, p *image.Page) error {
				refs = appendRefs(refs, m, first, p)
				return nil
			}); err != nil {
				t.Fatalf("%s: walk: %v", name, err)
			}
			for i := range refs {
				refs[i].At = hint(refs[i])
			}
			var n int64
			ch := make(chan int64, len(refs))
			err := r.Read(t.Context(), refs, func(first int64, plain []byte) error {
				off := first * 4096
				if !bytes.Equal(plain, disk[off:off+int64(len(plain))]) {
					return errors.New("other bytes")
				}
				ch <- int64((len(plain) + 4095) / 4096)
				return nil
			})
			for close(ch); ; {
				k, ok := <-ch
				if !ok {
					break
				}
				n += k
			}
			if err != nil || n != int64(len(refs)) {
				t.Errorf("%s, index %T: %d of %d blocks, %v", name, index, n, len(refs), err)
			}
		}
	}
}

// wrong is an index that is wrong about everything.
type wrong struct{}

func (wrong) Locate(context.Context, image.ID) ([]image.Location, error) {
	return []image.Location{{Segment: image.SegmentID{9}}, {}}, nil
}

func (wrong) Page(context.Context, image.ID) (*image.Page, image.Location, error) {
	return &image.Page{Entries: [128]image.ID{{1}}}, image.Location{}, nil
}

type known map[image.ID]image.Location

func (k known) Locate(_ context.Context, id image.ID) ([]image.Location, error) {
	return []image.Location{{Segment: image.SegmentID{9}}, k[id]}, nil
}

func (k known) Page(_ context.Context, id image.ID) (*image.Page, image.Location, error) {
	return nil, k[id], errors.New("no pages here")
}

func TestDamagedBlockIsHealedByItsCopy(t *testing.T) {
	d := newDepot(t, 4096)
	disk := randomDisk(rand.New(rand.NewPCG(3, 2)), 64*4096, 4096)
	m := d.put(t, disk)
	copies := *d
	copies.known = map[image.ID]image.Location{}
	copies.put(t, disk)
	for id, at := range d.known {
		f, err := d.Footer(t.Context(), at.Segment)
		if err != nil {
			t.Fatal(err)
		}
		flip(t, d, segment.Name(at.Segment), f.Records[at.Record].Offset)
		_ = id
	}
	got, err := get(t.Context(), New(d.Repo, nil, 8<<20), m)
	if err != nil || !bytes.Equal(got, disk) {
		t.Fatalf("got %v, equal %v", err, bytes.Equal(got, disk))
	}
}

func flip(t *testing.T, d *depot, name string, off int64) {
	t.Helper()
	b, err := d.store.Get(context.Background(), name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 0x40
	d.store.Replace(name, b)
}

func TestLostBlockIsNamed(t *testing.T) {
	d := newDepot(t, 4096)
	disk := randomDisk(rand.New(rand.NewPCG(4, 2)), 40*4096, 4096)
	for i := range 4096 {
		disk[17*4096+i] = byte(i * i >> 3)
	}
	m := d.put(t, disk)
	id := d.Hasher().Block(disk[17*4096 : 18*4096])
	at := d.known[id]
	f, _ := d.Footer(t.Context(), at.Segment)
	flip(t, d, segment.Name(at.Segment), f.Records[at.Record].Offset+3)
	_, err := get(t.Context(), New(d.Repo, nil, 8<<20), m)
	var lost *Lost
	if !errors.As(err, &lost) || lost.Block != 17 || lost.ID != id || lost.At != at || !errors.Is(err, image.ErrCorrupt) || !Damaged(err) {
		t.Fatalf("got %v, want block 17 of %v at %v lost", err, id, at)
	}
	if err := d.store.Delete(t.Context(), segment.Name(at.Segment)); err != nil {
		t.Fatal(err)
	}
	_, err = get(t.Context(), New(d.Repo, nil, 8<<20), m)
	if !errors.As(err, &lost) || !errors.Is(err, store.ErrNotFound) || !Damaged(err) {
		t.Fatalf("got %v, want a block lost with its segment", err)
	}
}

// Whatever byte of whatever object is flipped, what is read is right or is
// refused.
func TestFlippedBytesNeverGiveWrongBlocks(t *testing.T) {
	d := newDepot(t, 4096)
	disk := randomDisk(rand.New(rand.NewPCG(5, 2)), 140*4096+77, 4096)
	m := d.put(t, disk)
	var names []string
	if err := d.store.List(t.Context(), "segments/", func(o store.Info) error {
		names = append(names, o.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(6, 2))
	refused := 0
	for _, name := range names {
		whole, _ := d.store.Get(t.Context(), name, 1<<30)
		step := 1 + len(whole)/200
		for off := 0; off < len(whole); off += 1 + rng.IntN(2*step) {
			bad := bytes.Clone(whole)
			bad[off] ^= 1 << rng.IntN(8)
			if rng.IntN(20) == 0 {
				bad = bad[:off]
			}
			d.store.Replace(name, bad)
			got, err := get(t.Context(), New(d.Repo, nil, 4<<20), m)
			switch {
			case err == nil && !bytes.Equal(got, disk):
				t.Fatalf("%s, byte %d: wrong bytes", name, off)
			case err != nil && !Damaged(err):
				t.Fatalf("%s, byte %d: %v", name, off, err)
			case err != nil:
				refused++
			}
		}
		d.store.Replace(name, whole)
	}
	if refused == 0 {
		t.Error("no flip was noticed")
	}
}

func TestVisitorsErrorEndsTheRead(t *testing.T) {
	d := newDepot(t, 4096)
	m := d.put(t, randomDisk(rand.New(rand.NewPCG(7, 2)), 600*4096, 4096))
	r := New(d.Repo, nil, 4<<20)
	var refs []Ref
	if err := r.Walk(t.Context(), MapOf(m), 0, m.Blocks(), func(first int64, p *image.Page) error {
		refs = appendRefs(refs, m, first, p)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	full := errors.New("target full")
	if err := r.Read(t.Context(), refs, func(int64, []byte) error { return full }); err != full {
		t.Errorf("got %v, want %v", err, full)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := r.Read(ctx, refs, func(int64, []byte) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if err := r.Read(t.Context(), refs, func(int64, []byte) error { return nil }); err != nil {
		t.Errorf("after errors: %v", err)
	}
}

func TestLocateFindsRecordsWithoutReadingThem(t *testing.T) {
	d := newDepot(t, 4096)
	m := d.put(t, randomDisk(rand.New(rand.NewPCG(8, 2)), 200*4096, 4096))
	r := New(d.Repo, nil, 4<<20)
	var refs []Ref
	if err := r.Walk(t.Context(), MapOf(m), 0, m.Blocks(), func(first int64, p *image.Page) error {
		refs = appendRefs(refs, m, first, p)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := make([]image.Location, len(refs))
	for i := range refs {
		want[i], refs[i].At = refs[i].At, image.Location{Segment: image.SegmentID{3}}
	}
	refs[3].Length = 4095
	refs[5].ID[0]++
	lost, err := r.Locate(t.Context(), refs)
	if err != nil || len(lost) != 2 || lost[0].Ref != 3 || lost[1].Ref != 5 {
		t.Fatalf("got %v, %v, want refs 3 and 5 lost", lost, err)
	}
	for i := range refs {
		if i != 3 && i != 5 && refs[i].At != want[i] {
			t.Errorf("ref %d: got %v, want %v", i, refs[i].At, want[i])
		}
	}
}

// gone is a store that is not there any more from some moment on.
type gone struct {
	store.Store
	asked atomic.Int64
	after int64
}

func (g *gone) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if g.asked.Add(1) > g.after {
		return fmt.Errorf("read %s: %w", name, store.ErrUnreachable)
	}
	return g.Store.ReadAt(ctx, name, p, off)
}

// A store that cannot be reached is not asked for each record, nor for other
// copies: it has been waited for long enough.
func TestUnreachableStoreEndsARead(t *testing.T) {
	d := newDepot(t, 4096)
	m := d.put(t, randomDisk(rand.New(rand.NewPCG(9, 2)), 2000*4096, 4096))
	away := &gone{Store: d.Repo.Store, after: 8}
	d.Repo.Store = away
	_, err := get(t.Context(), New(d.Repo, nil, 8<<20), m)
	if lost := (*Lost)(nil); !errors.Is(err, store.ErrUnreachable) || errors.As(err, &lost) {
		t.Errorf("got %v, want ErrUnreachable alone", err)
	}
	if n := away.asked.Load() - away.after; n > 20 {
		t.Errorf("asked %d times after it was gone", n)
	}
}
