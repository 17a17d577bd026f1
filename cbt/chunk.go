package cbt

import "math/bits"

const (
	// chunkUnits units make a chunk, so that one is named by 16 bits.
	chunkUnits = 1 << 16
	// maxRuns is where runs cost as much as a bitmap: 8 KiB.
	maxRuns = 2048
)

// A chunk keeps runs while they are few, then one bit for each unit.
type chunk struct {
	runs []run // in order, never touching
	bits *[chunkUnits / 64]uint64
}

// A run is the units first to last, both of them included.
type run struct{ first, last uint16 }

func (c *chunk) add(first, last uint16) {
	if c.bits != nil {
		setBits(c.bits, int(first), int(last))
		return
	}
	// runs[i:j] touch or overlap the new run, which takes their place.
	i := c.search(int(first) - 1)
	j := i
	for j < len(c.runs) && int(c.runs[j].first) <= int(last)+1 {
		first, last = min(first, c.runs[j].first), max(last, c.runs[j].last)
		j++
	}
	if i == j {
		c.runs = append(c.runs, run{})
		copy(c.runs[i+1:], c.runs[i:])
	} else {
		c.runs = append(c.runs[:i+1], c.runs[j:]...)
	}
	c.runs[i] = run{first, last}
	if len(c.runs) > maxRuns {
		c.toBits()
	}
}

func (c *chunk) toBits() {
	c.bits = new([chunkUnits / 64]uint64)
	for _, r := range c.runs {
		setBits(c.bits, int(r.first), int(r.last))
	}
	c.runs = nil
}

// search returns the place of the first run that ends at or after u.
func (c *chunk) search(u int) int {
	i, j := 0, len(c.runs)
	for i < j {
		if m := (i + j) / 2; int(c.runs[m].last) < u {
			i = m + 1
		} else {
			j = m
		}
	}
	return i
}

// first returns the first unit at or after u that is in the chunk, or not.
func (c *chunk) first(u int, in bool) (int, bool) {
	if c.bits != nil {
		return firstBit(c.bits, u, in)
	}
	i := c.search(u)
	if in {
		if i == len(c.runs) {
			return 0, false
		}
		return max(u, int(c.runs[i].first)), true
	}
	if i < len(c.runs) && int(c.runs[i].first) <= u {
		u = int(c.runs[i].last) + 1
	}
	return u, u < chunkUnits
}

func setBits(words *[chunkUnits / 64]uint64, first, last int) {
	from, to := ^uint64(0)<<(first%64), ^uint64(0)>>(63-last%64)
	if first/64 == last/64 {
		words[first/64] |= from & to
		return
	}
	words[first/64] |= from
	for i := first/64 + 1; i < last/64; i++ {
		words[i] = ^uint64(0)
	}
	words[last/64] |= to
}

func firstBit(words *[chunkUnits / 64]uint64, u int, in bool) (int, bool) {
	mask := ^uint64(0) << (u % 64)
	for i := u / 64; i < len(words); i++ {
		w := words[i]
		if !in {
			w = ^w
		}
		if w &= mask; w != 0 {
			return i*64 + bits.TrailingZeros64(w), true
		}
		mask = ^uint64(0)
	}
	return 0, false
}
