package segment

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"platter/image"
)

func TestCodecGivesBackWhatItTook(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	c := new(Codec)
	for _, n := range []int{1, 2, 12, 13, 63, 64, 65, 4095, 4096, 64 << 10, 1<<20 - 1, 1 << 20} {
		for name, plain := range map[string][]byte{"random": random(rng, n), "repeated": compressible(rng, n), "zeros": make([]byte, n)} {
			want := bytes.Clone(plain)
			stored, flags, err := c.Encode(plain)
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", name, n, err)
			}
			if len(stored) > n || flags == 0 && len(stored) != n || flags == FlagLZ4 && len(stored) > n-n/64 {
				t.Errorf("%s, %d bytes: stored as %d with flags %d", name, n, len(stored), flags)
			}
			if name == "repeated" && n >= 4095 && flags != FlagLZ4 {
				t.Errorf("%s, %d bytes: not compressed", name, n)
			}
			got := bytes.Repeat([]byte{0xee}, n+64)
			if err := c.Decode(got[:n], stored, flags); err != nil || !bytes.Equal(got[:n], want) {
				t.Errorf("%s, %d bytes: decoded to something else (%v)", name, n, err)
			}
			if !bytes.Equal(got[n:], bytes.Repeat([]byte{0xee}, 64)) {
				t.Errorf("%s, %d bytes: decoded past the end", name, n)
			}
		}
	}
}

// bomb is an LZ4 block that decodes to n zeros: one literal, then a match of
// n-1 bytes at distance 1, whose length costs a byte for every 255.
func bomb(n int) []byte {
	b := []byte{0x1f, 0, 1, 0}
	left := n - 1 - 4 - 15 - 5 // the shortest match, its nibble, and the last literals
	for ; left >= 255; left -= 255 {
		b = append(b, 255)
	}
	b = append(b, byte(left))
	return append(b, 0x50, 0, 0, 0, 0, 0)
}

func TestCodecFillsExactlyAndNoMore(t *testing.T) {
	c := new(Codec)
	const n = 1 << 20
	payload := bomb(n)
	dst := make([]byte, n+64)
	if err := c.Decode(dst[:n], payload, FlagLZ4); err != nil {
		t.Fatalf("the bomb's own length: %v", err)
	}
	for _, want := range []int{0, 1, 4096, n - 1, n + 1} {
		for i := range dst {
			dst[i] = 0xee
		}
		if err := c.Decode(dst[:want:want], payload, FlagLZ4); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%d bytes decoded into %d: %v, want corrupt", n, want, err)
		}
		if want < n && !bytes.Equal(dst[want:], bytes.Repeat([]byte{0xee}, len(dst)-want)) {
			t.Errorf("%d bytes decoded into %d: written past the end", n, want)
		}
	}
	for _, length := range []int{4095, 4097} {
		if err := c.Decode(make([]byte, 4096), make([]byte, length), 0); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%d raw bytes for 4096: %v, want corrupt", length, err)
		}
	}
	for flags := 2; flags < 256; flags++ {
		if err := c.Decode(make([]byte, 16), make([]byte, 16), uint8(flags)); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("flags %#x: %v, want corrupt", flags, err)
		}
	}
}

func TestCodecSurvivesDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	c := new(Codec)
	plain := append(compressible(rng, 3000), random(rng, 1000)...)
	stored, flags, err := c.Encode(plain)
	if err != nil || flags != FlagLZ4 {
		t.Fatalf("flags %d, %v", flags, err)
	}
	stored = bytes.Clone(stored)
	dst := make([]byte, len(plain))
	check := func(p []byte, what string, i int) {
		if err := c.Decode(dst, p, FlagLZ4); err != nil && !errors.Is(err, image.ErrCorrupt) {
			t.Fatalf("%s %d: %v", what, i, err)
		}
	}
	for i := range stored {
		for bit := range 8 {
			stored[i] ^= 1 << bit
			check(stored, "flip in byte", i)
			stored[i] ^= 1 << bit
		}
		check(stored[:i], "cut at", i)
	}
	for i := range 2000 {
		check(random(rng, rng.IntN(200)), "random payload", i)
	}
}
