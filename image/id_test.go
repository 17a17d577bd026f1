package image_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/zeebo/blake3"

	"platter/image"
)

// testKey is the ID key of all hashers under test.
var testKey = sha256.Sum256([]byte("an ID key for tests"))

func hasher(t testing.TB, algorithm string) *image.Hasher {
	t.Helper()
	h, err := image.NewHasher(algorithm, testKey)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func random(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// byHand makes a block ID as FORMAT.md says, mask keeping bits of the
// xxhash64.
func byHand(t *testing.T, key [32]byte, mask uint64, p []byte) (id image.ID) {
	t.Helper()
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		t.Fatal(err)
	}
	h.Write(p)
	binary.BigEndian.PutUint64(id[:8], xxhash.Sum64(p)&mask)
	copy(id[8:], h.Sum(nil)[:24])
	return id
}

func TestHasherMakesIDsAsSpecified(t *testing.T) {
	var pageKey [32]byte
	blake3.DeriveKey("platter 2026 map page ID", testKey[:], pageKey[:])
	rng := rand.New(rand.NewPCG(1, 1))
	for algorithm, mask := range map[string]uint64{image.IDAlgorithm: ^uint64(0), image.IDAlgorithm8: 0xff} {
		h := hasher(t, algorithm)
		for _, n := range []int{1, 511, 4095, 4096, 4097, 64 << 10, 1<<20 + 3} {
			p := random(rng, n)
			p[n-1] |= 1
			if got, want := h.Block(p), byHand(t, testKey, mask, p); got != want {
				t.Errorf("%s: block of %d bytes is %s, want %s", algorithm, n, got, want)
			}
			if got, want := h.Page(p), byHand(t, pageKey, mask, p); got != want {
				t.Errorf("%s: page of %d bytes is %s, want %s", algorithm, n, got, want)
			}
			if h.Block(p) == h.Page(p) {
				t.Errorf("%s: %d bytes have one ID as a block and as a page", algorithm, n)
			}
			if got := h.Clone().Block(p); got != h.Block(p) {
				t.Errorf("%s: a clone says %s, want %s", algorithm, got, h.Block(p))
			}
		}
	}
	if h, err := image.NewHasher("md5", testKey); err == nil || h != nil {
		t.Errorf("algorithm md5: got %v, %v, want an error", h, err)
	}
}

func TestHasherDependsOnTheKey(t *testing.T) {
	other, err := image.NewHasher(image.IDAlgorithm, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	h, p := hasher(t, image.IDAlgorithm), []byte("a block")
	if a, b := h.Block(p), other.Block(p); bytes.Equal(a[8:], b[8:]) || a.Hash64() != b.Hash64() {
		t.Errorf("under two keys: %s and %s, want one xxhash64 and two digests", a, b)
	}
}

func TestZerosHaveTheZeroID(t *testing.T) {
	h := hasher(t, image.IDAlgorithm)
	for _, n := range []int{0, 1, 4095, 4096, 4097, 8192, 1 << 20} {
		p := make([]byte, n)
		if !image.IsZero(p) || !h.Block(p).IsZero() || !h.Page(p).IsZero() || !h.Compare(p, image.ID{1}).IsZero() {
			t.Errorf("%d zeros are not the zero ID", n)
		}
		for _, at := range []int{0, n / 2, n - 1} {
			if at < 0 || at >= n {
				continue
			}
			p[at] = 1
			if image.IsZero(p) || h.Block(p).IsZero() || h.Page(p).IsZero() {
				t.Errorf("%d bytes with a 1 at %d count as zeros", n, at)
			}
			p[at] = 0
		}
	}
}

func TestCompareSaysWhatBlockSays(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, algorithm := range []string{image.IDAlgorithm, image.IDAlgorithm8} {
		h := hasher(t, algorithm)
		blocks := [][]byte{make([]byte, 4096), make([]byte, 1)}
		for range 40 {
			p := random(rng, 1+rng.IntN(8192))
			blocks = append(blocks, p)
			// One bit apart.
			q := bytes.Clone(p)
			q[rng.IntN(len(q))] ^= 1 << rng.IntN(8)
			blocks = append(blocks, q)
		}
		for _, p := range blocks {
			want := h.Block(p)
			for _, q := range blocks {
				if got := h.Compare(p, h.Block(q)); got != want {
					t.Fatalf("%s: compared with another block: %s, want %s", algorithm, got, want)
				}
			}
			if !h.Is(want, p) || h.Is(image.ID{1}, p) {
				t.Fatalf("%s: Is does not know a block of %d bytes", algorithm, len(p))
			}
		}
	}
}

func TestEightBitHashesCollide(t *testing.T) {
	h, rng := hasher(t, image.IDAlgorithm8), rand.New(rand.NewPCG(3, 3))
	seen := map[uint64]bool{}
	for range 8000 {
		id := h.Block(random(rng, 64))
		if id.Hash64() > 0xff {
			t.Fatalf("hash %#x, want 8 bits", id.Hash64())
		}
		seen[id.Hash64()] = true
	}
	if len(seen) != 256 {
		t.Errorf("%d different hashes of 8000 blocks, want all 256", len(seen))
	}
}

func TestNamesReadBack(t *testing.T) {
	type names struct {
		ID      image.ID
		Segment image.SegmentID
		Image   image.ImageID
		Digest  image.Digest
		At      image.Location
	}
	rng := rand.New(rand.NewPCG(4, 4))
	var in, out names
	copy(in.ID[:], random(rng, 32))
	copy(in.Segment[:], random(rng, 16))
	copy(in.Image[:], random(rng, 16))
	copy(in.Digest[:], random(rng, 32))
	in.At = image.Location{Segment: in.Segment, Record: 1<<32 - 1}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &out); err != nil || out != in {
		t.Errorf("%s: read back as %+v, %v", text, out, err)
	}
	for _, bad := range []string{"", "0", strings.Repeat("0", 31), strings.Repeat("0", 33), strings.Repeat("g", 32), strings.Repeat("0", 63), strings.Repeat("0", 65), strings.Repeat("-", 64)} {
		for _, v := range []interface{ UnmarshalText([]byte) error }{new(image.ID), new(image.SegmentID), new(image.ImageID), new(image.Digest)} {
			if err := v.UnmarshalText([]byte(bad)); err == nil {
				t.Errorf("%q was taken for a %T", bad, v)
			}
		}
	}
}

func TestBlocksCountsAShortLastOne(t *testing.T) {
	for _, tt := range []struct{ size, want int64 }{{0, 0}, {1, 1}, {4095, 1}, {4096, 1}, {4097, 2}, {image.MaxSize, image.MaxSize / 4096}} {
		m := image.Manifest{Size: tt.size, BlockSize: 4096}
		if got := m.Blocks(); got != tt.want {
			t.Errorf("%d bytes are %d blocks, want %d", tt.size, got, tt.want)
		}
	}
}
