package catalog

import (
	"slices"
	"testing"

	"platter/image/segment"
)

func TestRoundsAreForManySegmentsAndForManyBlocks(t *testing.T) {
	for _, test := range []struct {
		segments        int
		size, blockSize int64
		want            bool
	}{
		{0, 0, 4 << 10, false},
		{bulkFloor - 1, 64 << 20, 64 << 10, false},
		{bulkFloor, 1 << 10, 64 << 10, true},
		{15, 64 << 20, 4 << 10, false},
		{16, 64 << 20, 4 << 10, true}, // 16384 blocks each, and more where they were compressed
	} {
		list := slices.Repeat([]segment.Object{{Size: test.size}}, test.segments)
		if got := worthRounds(list, int(test.blockSize)); got != test.want {
			t.Errorf("%d segments of %d bytes, blocks of %d: got %t, want %t", test.segments, test.size, test.blockSize, got, test.want)
		}
	}
}
