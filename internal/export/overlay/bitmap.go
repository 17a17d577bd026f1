package overlay

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"platter/image"
)

const (
	chunkBytes    = 4096
	chunkGranules = chunkBytes * 8 // 128 MiB of disk
)

// A chunk is the bits of so many granules, lowest first.
type chunk [chunkBytes / 8]uint64

// A bitmap says which granules were written. It has chunks where there are any.
type bitmap map[int64]*chunk

func (b bitmap) has(g int64) bool {
	c := b[g/chunkGranules]
	i := g % chunkGranules
	return c != nil && c[i/64]>>(i%64)&1 != 0
}

// set sets the bits from first to last, both included.
func (b bitmap) set(first, last int64) {
	for g := first; g <= last; {
		c := b[g/chunkGranules]
		if c == nil {
			c = new(chunk)
			b[g/chunkGranules] = c
		}
		i := g % chunkGranules
		n := min(64-i%64, last-g+1)
		c[i/64] |= ^uint64(0) >> (64 - n) << (i % 64)
		g += n
	}
}

// run returns where the run of equal bits that g is in ends, at the latest
// behind last, and what they are.
func (b bitmap) run(g, last int64) (end int64, set bool) {
	set = b.has(g)
	for end = g; end <= last; {
		c := b[end/chunkGranules]
		i := end % chunkGranules
		if c == nil {
			if set {
				return end, set
			}
			end += chunkGranules - i
			continue
		}
		w := c[i/64] >> (i % 64)
		if set {
			w = ^w
		}
		if n := int64(bits.TrailingZeros64(w)); n < 64-i%64 {
			return min(end+n, last+1), set
		}
		end += 64 - i%64
	}
	return min(end, last+1), set
}

func (c *chunk) encode() []byte {
	b := make([]byte, 0, chunkBytes)
	for _, w := range c {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// decode reads the chunk at place i from the file's bytes. last is the last
// granule that there can be.
func (b bitmap) decode(i int64, data []byte, last int64) error {
	c, any := new(chunk), false
	for n := 0; n+8 <= len(data); n += 8 {
		w := binary.LittleEndian.Uint64(data[n:])
		c[n/8] = w
		if w == 0 {
			continue
		}
		any = true
		if high := i*chunkGranules + int64(n)*8 + 63 - int64(bits.LeadingZeros64(w)); high > last {
			return fmt.Errorf("granule %d is beyond the disk: %w", high, image.ErrCorrupt)
		}
	}
	if any {
		b[i] = c
	}
	return nil
}
