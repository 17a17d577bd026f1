package reader

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"platter/image"
	"platter/image/segment"
)

func TestDiskReadsAnyPlace(t *testing.T) {
	for _, bs := range []int{4 << 10, 64 << 10, 1 << 20} {
		for seed := range uint64(3) {
			rng := rand.New(rand.NewPCG(seed, 7))
			want := randomDisk(rng, rng.IntN(200*bs)+1, bs)
			depot := newDepot(t, bs)
			d := NewDisk(New(depot.Repo, nil, 8<<20), depot.put(t, want), 1<<20)
			var all sync.WaitGroup
			for g := range uint64(4) {
				all.Go(func() { readPlaces(t, d, want, rand.New(rand.NewPCG(seed, g))) })
			}
			all.Wait()
			d.Close()
			if got := d.pieces.used; got > d.pieces.limit {
				t.Errorf("block size %d: %d bytes are kept, the limit is %d", bs, got, d.pieces.limit)
			}
		}
	}
}

// readPlaces reads stretches at random places, and some from front to back.
func readPlaces(t *testing.T, d *Disk, want []byte, rng *rand.Rand) {
	size := int64(len(want))
	var off int64
	for range 60 {
		if rng.IntN(3) == 0 {
			off = rng.Int64N(size + 1)
		}
		p := make([]byte, rng.IntN(300<<10))
		n, err := d.ReadAt(t.Context(), p, off)
		end := min(size, off+int64(len(p)))
		if (err == io.EOF) != (off+int64(len(p)) > size) || err != nil && err != io.EOF {
			t.Errorf("read %d at %d of %d: %v", len(p), off, size, err)
			return
		}
		if !bytes.Equal(p[:n], want[off:end]) {
			t.Errorf("read %d at %d: wrong bytes", len(p), off)
			return
		}
		off = end
	}
}

func TestDiskReadsAhead(t *testing.T) {
	const bs = 64 << 10
	want := make([]byte, 200*bs)
	for i := range want {
		want[i] = byte(i/bs + 1)
	}
	depot := newDepot(t, bs)
	d := NewDisk(New(depot.Repo, nil, 8<<20), depot.put(t, want), 32<<20)
	defer d.Close()
	p := make([]byte, 32<<10)
	for off := int64(0); off < 4<<20; off += int64(len(p)) {
		if _, err := d.ReadAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
	d.loads.Wait()
	if _, mine := d.pieces.claim(4<<20/bs, 16); len(mine) > 0 {
		t.Errorf("%d of the next 16 pieces were not read ahead", len(mine))
	}
}

func TestDiskOfADamagedBlock(t *testing.T) {
	const bs = 64 << 10
	want := make([]byte, 40*bs)
	for i := range want {
		want[i] = byte(i * 7 / bs)
		want[i] += byte(i)
	}
	depot := newDepot(t, bs)
	m := depot.put(t, want)
	r := New(depot.Repo, nil, 8<<20)
	var hit Ref
	if err := r.Walk(t.Context(), MapOf(m), 0, m.Blocks(), func(first int64, p *image.Page) error {
		hit = Ref{Block: 20, ID: p.Entries[20], At: p.Hints[20]}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	f, err := r.Footer(t.Context(), hit.At.Segment)
	if err != nil {
		t.Fatal(err)
	}
	name := segment.Name(f.ID)
	object, err := depot.store.Get(t.Context(), name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	object = slices.Clone(object)
	object[f.Records[hit.At.Record].Offset+20] ^= 1
	depot.store.Replace(name, object)

	d := NewDisk(r, m, 8<<20)
	defer d.Close()
	p := make([]byte, bs)
	for n := range int64(40) {
		_, err := d.ReadAt(t.Context(), p, n*bs)
		var lost *Lost
		if n == 20 {
			if !errors.As(err, &lost) || lost.Block != 20 {
				t.Errorf("the damaged block: %v", err)
			}
		} else if err != nil || !bytes.Equal(p, want[n*bs:(n+1)*bs]) {
			t.Errorf("block %d: %v", n, err)
		}
	}
	if _, err := d.ReadAt(t.Context(), make([]byte, 4*bs), 18*bs); err == nil {
		t.Error("a read across the damaged block went well")
	}
}

func TestStretchesAreTheMaps(t *testing.T) {
	const bs = 4 << 10
	rng := rand.New(rand.NewPCG(3, 3))
	want := randomDisk(rng, 1000*bs+100, bs)
	depot := newDepot(t, bs)
	d := NewDisk(New(depot.Repo, nil, 8<<20), depot.put(t, want), 1<<20)
	defer d.Close()
	size := int64(len(want))
	for range 200 {
		off := rng.Int64N(size)
		length := rng.Int64N(size - off + 1)
		most := 1 + rng.IntN(40)
		list, err := d.Stretches(t.Context(), off, length, most)
		if err != nil {
			t.Fatal(err)
		}
		at := off
		for i, s := range list {
			if s.Offset != at || s.Length <= 0 || i > 0 && list[i-1].Zero == s.Zero {
				t.Fatalf("stretch %d of %d at %d: %+v after %d", i, length, off, s, at)
			}
			at = s.End()
			for o := s.Offset; o < s.End(); o = o/bs*bs + bs {
				b := want[o/bs*bs : min(o/bs*bs+bs, size)]
				if image.IsZero(b) != s.Zero {
					t.Fatalf("block at %d: zero %v, want %v", o/bs*bs, s.Zero, !s.Zero)
				}
			}
		}
		if at != off+length && len(list) != most {
			t.Fatalf("%d stretches end at %d, want %d", len(list), at, off+length)
		}
	}
}
