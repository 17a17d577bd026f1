package workload

import (
	"bufio"
	"encoding/binary"
	"os"
)

// Many small, different blocks, made in parts of which one is on the disk at a
// time: a repository of ten million takes 40 GiB of disks and little space.
const (
	ManyBlockSize = 4 * kib
	ManyParts     = 4
	manyPerPart   = 2_560_000
	// OneSize is the size of the disk that is restored out of that repository.
	OneSize = 1 * gib
)

// ManyBlocks is the number of different blocks in all parts.
const ManyBlocks = ManyParts*manyPerPart + OneSize/ManyBlockSize

// MakeMany writes a part, from 0, into a file: no block of any part is the same
// as another, and all compress to almost nothing.
func MakeMany(path string, part int) error {
	return writeBlocks(path, uint64(part)*manyPerPart, manyPerPart)
}

// MakeOne writes the disk that is restored, in the same manner.
func MakeOne(path string) error {
	return writeBlocks(path, ManyParts*manyPerPart, OneSize/ManyBlockSize)
}

func writeBlocks(path string, first uint64, n int) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return write(path, func(w *bufio.Writer) error {
		block := make([]byte, ManyBlockSize)
		for i := range block[16:] {
			block[16+i] = byte('a' + i%13)
		}
		return repeat(n, func(i int) error {
			binary.LittleEndian.PutUint64(block, first+uint64(i)+1)
			_, err := w.Write(block)
			return err
		})
	})
}
