package trace

import (
	"math/rand/v2"
	"slices"
	"testing"

	"platter/block"
)

// The unit grows with the disk, so that the map does not.
func TestMapsOfDisksAreBounded(t *testing.T) {
	for _, c := range []struct {
		size, unit int64
	}{{1, 4 << 10}, {256 << 30, 4 << 10}, {256<<30 + 4096, 8 << 10}, {4 << 40, 64 << 10}, {64 << 40, 1 << 20}, {1 << 60, 16 << 30}} {
		sectors := uint64(c.size+511) / 512
		shift := shiftFor(sectors)
		if got := int64(512) << shift; got != c.unit {
			t.Errorf("%d bytes: a unit of %d, want %d", c.size, got, c.unit)
		}
		coarse, lines := geometry(sectors, shift)
		if bytes := int64(lines) * lineBytes; bytes > 8<<20+8192 {
			t.Errorf("%d bytes: a map of %d", c.size, bytes)
		}
		last := (sectors - 1) >> shift
		if uint64(coarse-firstLine)*bitsPerLine <= last || uint64(lines-coarse)*bitsPerLine <= last>>coarseShift {
			t.Errorf("%d bytes: no room for unit %d", c.size, last)
		}
	}
}

func TestRunsAreThoseOfTheBits(t *testing.T) {
	for seed := range uint64(3000) {
		random := rand.New(rand.NewPCG(seed, 0))
		words := make([]uint64, 1+random.IntN(6))
		for i := range words {
			switch random.IntN(4) {
			case 0:
				words[i] = random.Uint64()
			case 1:
				words[i] = ^uint64(0)
			case 2:
				words[i] = random.Uint64() & random.Uint64() & random.Uint64()
			}
		}
		var want []block.Extent
		for i := 0; i < len(words)*64; i++ {
			if words[i/64]>>(i%64)&1 == 0 {
				continue
			}
			if n := len(want); n > 0 && want[n-1].End() == int64(i)*8 {
				want[n-1].Length += 8
			} else {
				want = append(want, block.Extent{Offset: int64(i) * 8, Length: 8})
			}
		}
		var got []block.Extent
		runs(words, 8, func(e block.Extent) bool { got = append(got, e); return true })
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: %x: got %v, want %v", seed, words, got, want)
		}
	}
}
