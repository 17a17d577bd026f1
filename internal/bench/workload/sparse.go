package workload

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// The huge disk: so many bytes of data in so many extents, one in each equal
// stretch of the disk.
const (
	HugeSize    = 8 << 40
	HugeData    = 4 * gib
	hugeExtents = 4096
	hugeExtent  = HugeData / hugeExtents
	hugeStretch = HugeSize / hugeExtents
)

// MakeHuge makes a sparse file of HugeSize that holds HugeData bytes, half of
// which compress well. A file of an earlier run is replaced.
func MakeHuge(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := sparseFile(path, HugeSize); err != nil {
		return err
	}
	return editHuge(path, func(f *os.File) error {
		return repeat(hugeExtents, func(i int) error { return writeExtent(f, i, "huge") })
	})
}

// ChangeHuge rewrites one extent in a hundred of a file made by MakeHuge and
// returns the bytes it wrote.
func ChangeHuge(path string) (changed int64, err error) {
	err = editHuge(path, func(f *os.File) error {
		for i := 50; i < hugeExtents; i += 100 {
			if err := writeExtent(f, i, "huge next night"); err != nil {
				return err
			}
			changed += hugeExtent
		}
		return nil
	})
	return changed, err
}

func editHuge(path string, edit func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(edit(f), f.Sync(), f.Close())
}

// writeExtent writes extent i: noise, then text of few letters.
func writeExtent(f *os.File, i int, name string) error {
	b := make([]byte, hugeExtent)
	s := stream(fmt.Sprintf("%s %d", name, i))
	if _, err := io.ReadFull(s, b); err != nil {
		return err
	}
	for j := range b[hugeExtent/2:] {
		b[hugeExtent/2+j] = "aaaaaaab"[b[hugeExtent/2+j]%8]
	}
	_, err := f.WriteAt(b, hugeOffset(i))
	return err
}

// hugeOffset places extent i somewhere in its stretch, on a page of 4 KiB.
func hugeOffset(i int) int64 {
	r := rand.New(stream(fmt.Sprintf("huge place %d", i)))
	return int64(i)*hugeStretch + r.Int64N((hugeStretch-hugeExtent)/(4*kib))*(4*kib)
}

// HugeBlocks returns the bytes of all blocks of so many bytes that hold any of
// the data: what must be read to compare it block by block.
func HugeBlocks(blockSize int64) (n int64) {
	for i := range hugeExtents {
		from := hugeOffset(i) / blockSize
		to := (hugeOffset(i) + hugeExtent + blockSize - 1) / blockSize
		n += (to - from) * blockSize
	}
	return n
}
