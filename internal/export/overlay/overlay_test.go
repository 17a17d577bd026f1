package overlay

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"platter/block"
	"platter/image"
	"platter/image/reader"
)

// memory is a disk below.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, m[off:]), nil
}

func (m memory) Stretches(_ context.Context, off, length int64, most int) (list []reader.Stretch, err error) {
	for at := off; at < off+length; {
		next := min(at/granule*granule+granule, off+length)
		zero := image.IsZero(m[at:next])
		if n := len(list); n > 0 && list[n-1].Zero == zero {
			list[n-1].Length += next - at
		} else if n == most {
			return list, nil
		} else {
			list = append(list, reader.Stretch{Extent: block.Extent{Offset: at, Length: next - at}, Zero: zero})
		}
		at = next
	}
	return list, nil
}

func random(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// scribble writes to a disk and to a plain copy of it, and compares.
func scribble(t *testing.T, d *Disk, plain []byte, rng *rand.Rand, rounds int) {
	t.Helper()
	size := int64(len(plain))
	for range rounds {
		off := rng.Int64N(size)
		length := rng.Int64N(min(size-off, 50<<10) + 1)
		switch rng.IntN(4) {
		case 0:
			if err := d.Zero(t.Context(), off, length); err != nil {
				t.Fatal(err)
			}
			clear(plain[off : off+length])
		case 1, 2:
			p := random(rng, int(length))
			if err := d.WriteAt(t.Context(), p, off); err != nil {
				t.Fatal(err)
			}
			copy(plain[off:], p)
		default:
			compare(t, d, plain, off, length)
		}
	}
	compare(t, d, plain, 0, size)
	list, err := d.Stretches(t.Context(), 0, size, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, s := range list {
		if s.Offset != at || s.Zero && !image.IsZero(plain[at:s.End()]) {
			t.Fatalf("stretch %+v after %d", s, at)
		}
		at = s.End()
	}
	if at != size {
		t.Fatalf("stretches end at %d of %d", at, size)
	}
}

func compare(t *testing.T, d *Disk, plain []byte, off, length int64) {
	t.Helper()
	p := make([]byte, length)
	if _, err := d.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p, plain[off:off+length]) {
		t.Fatalf("read %d at %d: %v, or other bytes", length, off, err)
	}
}

func TestOverlayReadsWhatWasWritten(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 1))
		base := memory(random(rng, 1+rng.IntN(300<<10)))
		clear(base[len(base)/3 : len(base)/2])
		before := bytes.Clone(base)
		d, err := Temporary(base, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		scribble(t, d, bytes.Clone(base), rng, 200)
		if !bytes.Equal(base, before) {
			t.Error("the image was written to")
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestKeptOverlayHasWhatWasFlushed(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	base := memory(random(rng, 300<<20/1024+77))
	path := filepath.Join(t.TempDir(), "overlay")
	id := image.ImageID{1, 2, 3}
	plain := bytes.Clone(base)
	for range 3 {
		d, err := Open(base, id, path)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, d, plain, 0, d.Size())
		scribble(t, d, plain, rng, 60)
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The process dies: what was not flushed may be there or not, and what
		// was flushed is.
		if err := d.file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", st.Mode(), err)
	}
}

func TestOverlayIsRefused(t *testing.T) {
	base := memory(make([]byte, 1<<20))
	path := filepath.Join(t.TempDir(), "overlay")
	d, err := Open(base, image.ImageID{1}, path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(base, image.ImageID{1}, path); err == nil {
		t.Error("opened twice")
	}
	if err := d.WriteAt(t.Context(), []byte{1}, 5000); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(base, image.ImageID{2}, path); !errors.Is(err, ErrForeign) {
		t.Errorf("the overlay of another image: %v", err)
	}
	if _, err := Open(memory(make([]byte, 2<<20)), image.ImageID{1}, path); !errors.Is(err, ErrForeign) {
		t.Errorf("the overlay of an image of another size: %v", err)
	}
	for name, flip := range map[string]int64{"header": 30, "bits beyond the disk": headerSize + 100} {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := filepath.Join(t.TempDir(), "bad")
		whole[flip] ^= 1
		if err := os.WriteFile(bad, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(base, image.ImageID{1}, bad); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: got %v, want corrupt", name, err)
		}
	}
	if err := os.WriteFile(path, []byte("something of value"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(base, image.ImageID{1}, path); err == nil {
		t.Error("another file was taken for an overlay")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "something of value" {
		t.Errorf("the other file is now %q, %v", b, err)
	}
}

func FuzzBitmap(f *testing.F) {
	f.Add([]byte{1, 5, 200, 7})
	f.Fuzz(func(t *testing.T, edits []byte) {
		b, plain := bitmap{}, make([]bool, 4*chunkGranules)
		for i := 0; i+3 < len(edits); i += 4 {
			first := (int64(edits[i])<<8 | int64(edits[i+1])) * 2 % int64(len(plain))
			last := min(first+int64(edits[i+2])*int64(edits[i+3]), int64(len(plain))-1)
			b.set(first, last)
			for g := first; g <= last; g++ {
				plain[g] = true
			}
		}
		for g := int64(0); g < int64(len(plain)); {
			end, set := b.run(g, int64(len(plain))-1)
			if end <= g {
				t.Fatalf("run at %d ends at %d", g, end)
			}
			for i := g; i < end; i++ {
				if plain[i] != set {
					t.Fatalf("granule %d: got %v", i, set)
				}
			}
			if end < int64(len(plain)) && plain[end] == set {
				t.Fatalf("run at %d ends too early, at %d", g, end)
			}
			g = end
		}
	})
}
