package catalog

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A spill sorts the index entries of many segments in a file: they are put
// into buckets by the first bits of their hash, and each bucket is sorted in
// memory. Hashes are even, so that of n million entries a bucket holds n
// thousand, 16 bytes each. The buckets' own buffers take 4 MiB.
type spill struct {
	file    vfs.File
	buckets [spillBuckets]bucket
	pending []byte // filled parts on their way to the file
	end     int64  // of the file, pending included
	key     []byte
}

const (
	spillBuckets = 1 << spillBits
	spillBits    = 10
	spillEntry   = 8 + 4 + 4
	spillPart    = 4 << 10 // bytes of a bucket written together
	spillWrite   = 1 << 20
)

type bucket struct {
	part  []byte
	parts []int64 // where the full ones are
}

// A spilled entry is a key of tagBlock.
type spilled struct {
	hash           uint64
	number, record uint32
}

func newSpill(t *tables) (*spill, error) {
	f, err := t.create("spill")
	return &spill{file: f}, err
}

func (s *spill) close() error { return s.file.Close() }

func (s *spill) add(e spilled) error {
	b := &s.buckets[e.hash>>(64-spillBits)]
	if b.part == nil {
		b.part = make([]byte, 0, spillPart)
	}
	b.part = binary.LittleEndian.AppendUint64(b.part, e.hash)
	b.part = binary.LittleEndian.AppendUint32(b.part, e.number)
	b.part = binary.LittleEndian.AppendUint32(b.part, e.record)
	if len(b.part) < spillPart {
		return nil
	}
	b.parts = append(b.parts, s.end)
	s.pending = append(s.pending, b.part...)
	s.end += spillPart
	b.part = b.part[:0]
	if len(s.pending) < spillWrite {
		return nil
	}
	return s.flush()
}

func (s *spill) flush() error {
	_, err := s.file.Write(s.pending)
	s.pending = s.pending[:0]
	return err
}

// sorted writes all entries to w in order, and finishes it.
func (s *spill) sorted(ctx context.Context, w *tableWriter) error {
	if err := s.flush(); err != nil {
		return err
	}
	var entries []spilled
	part := make([]byte, spillPart)
	for i := range s.buckets {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := &s.buckets[i]
		entries = appendSpilled(entries[:0], b.part)
		for _, off := range b.parts {
			if _, err := s.file.ReadAt(part, off); err != nil {
				return err
			}
			entries = appendSpilled(entries, part)
		}
		*b = bucket{}
		slices.SortFunc(entries, compareSpilled)
		for _, e := range entries {
			s.key = appendBlockKey(s.key[:0], e.hash, e.number, e.record)
			if err := w.set(s.key, nil); err != nil {
				return err
			}
		}
	}
	return w.finish()
}

func appendSpilled(dst []spilled, b []byte) []spilled {
	for ; len(b) > 0; b = b[spillEntry:] {
		dst = append(dst, spilled{
			hash:   binary.LittleEndian.Uint64(b),
			number: binary.LittleEndian.Uint32(b[8:]),
			record: binary.LittleEndian.Uint32(b[12:]),
		})
	}
	return dst
}

func compareSpilled(a, b spilled) int {
	if a.hash != b.hash {
		return cmp.Compare(a.hash, b.hash)
	}
	return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.record, b.record))
}
