package job

import (
	"encoding/binary"
	"math/bits"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// twins returns two different blocks of 4096 bytes with the same xxhash64.
//
// xxhash64 runs four lanes of 8 bytes over every 32 bytes; the round of a lane
// is acc = rotl(acc + in·P2, 31)·P1, so that any change made to a lane by one
// input word is undone by a fitting change of the lane's next word.
func twins(t *testing.T) (a, b []byte) {
	const p1, p2 = 11400714785074694791, 14029467366897019727
	a = make([]byte, 4096)
	random(seeded(t, 64), a)
	b = append([]byte(nil), a...)
	round := func(acc, in uint64) uint64 { return bits.RotateLeft64(acc+in*p2, 31) * p1 }
	// The first lane begins at P1+P2 and takes the words at 0, 32, 64, …
	var seed uint64 = p1
	seed += p2
	wa, wb := binary.LittleEndian.Uint64(a), binary.LittleEndian.Uint64(a)+1
	accA, accB := round(seed, wa), round(seed, wb)
	binary.LittleEndian.PutUint64(b, wb)
	// accB + x·P2 must equal accA + (word at 32)·P2.
	inverse := uint64(1)
	for range 6 { // Newton's iteration doubles the right bits each time
		inverse *= 2 - p2*inverse
	}
	target := accA + binary.LittleEndian.Uint64(a[32:])*p2
	binary.LittleEndian.PutUint64(b[32:], (target-accB)*inverse)
	if xxhash.Sum64(a) != xxhash.Sum64(b) {
		t.Fatalf("hashes %016x and %016x, want twins", xxhash.Sum64(a), xxhash.Sum64(b))
	}
	return a, b
}
