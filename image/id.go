// Package image is the vocabulary of a stored backup: block IDs, the pages of
// a block map and the manifest that makes them one image.
//
// It reads and writes no files. The bytes are described in FORMAT.md.
package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/zeebo/blake3"
)

// IDSize is the length of an ID in bytes.
const IDSize = 32

// An ID names a block or a map page by its content: xxhash64 of the content,
// big-endian (8 bytes), followed by the first 24 bytes of its keyed BLAKE3.
// The zero ID means content of zeros only, which is never stored.
//
// Two contents are the same only if all 32 bytes are equal. The first 8 bytes
// find candidates and prove differences; equal ones prove nothing.
type ID [IDSize]byte

// IsZero reports whether id stands for content of zeros only.
func (id ID) IsZero() bool { return id == ID{} }

// Hash64 returns the xxhash64 part.
func (id ID) Hash64() uint64 { return binary.BigEndian.Uint64(id[:8]) }

// String returns id as 64 hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes id as 64 hex digits.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (id *ID) UnmarshalText(text []byte) error { return unhex(id[:], text, "ID") }

// A SegmentID is the random 128-bit name of a segment. It is never reused.
type SegmentID [16]byte

// String returns id as 32 hex digits.
func (id SegmentID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes id as 32 hex digits.
func (id SegmentID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (id *SegmentID) UnmarshalText(text []byte) error { return unhex(id[:], text, "segment ID") }

// A Location says where a block or page is stored: which record of which
// segment. The zero Location means unknown.
type Location struct {
	Segment SegmentID `json:"segment"`
	Record  uint32    `json:"record"`
}

// IsZero reports whether the location is unknown.
func (l Location) IsZero() bool { return l == Location{} }

// String returns SEGMENT/RECORD.
func (l Location) String() string { return fmt.Sprintf("%s/%d", l.Segment, l.Record) }

func unhex(dst, text []byte, what string) error {
	if len(text) != 2*len(dst) {
		return fmt.Errorf("%s %q: want %d hex digits", what, text, 2*len(dst))
	}
	if _, err := hex.Decode(dst, text); err != nil {
		return fmt.Errorf("%s %q: %w", what, text, err)
	}
	return nil
}

// Algorithms that make IDs, as named in a repository's config.
const (
	// IDAlgorithm is the one that repositories use.
	IDAlgorithm = "xxhash64+blake3-192"
	// IDAlgorithm8 keeps 8 bits of the xxhash64. It exists so that tests meet
	// blocks which share their first 8 bytes all the time.
	IDAlgorithm8 = "xxhash8+blake3-192"
)

// A Hasher computes IDs under the keys of one domain. It belongs to one
// goroutine at a time; Clone makes another.
type Hasher struct {
	mask    uint64
	key     [32]byte // of blocks
	pageKey [32]byte
	// Each takes 10 KiB, and most goroutines need one of them.
	block, page *blake3.Hasher // nil until first used
	sum         []byte
}

// NewHasher returns a Hasher under a domain's 32-byte ID key. Pages are hashed
// under a key derived from it, so that disk content never passes for a page.
func NewHasher(algorithm string, key [32]byte) (*Hasher, error) {
	h := &Hasher{key: key, sum: make([]byte, 0, 32)}
	switch algorithm {
	case IDAlgorithm:
		h.mask = ^uint64(0)
	case IDAlgorithm8:
		h.mask = 0xff
	default:
		return nil, fmt.Errorf("unknown ID algorithm %q", algorithm)
	}
	blake3.DeriveKey("platter 2026 map page ID", key[:], h.pageKey[:])
	return h, nil
}

// Clone returns a Hasher of the same domain for another goroutine.
func (h *Hasher) Clone() *Hasher {
	return &Hasher{mask: h.mask, key: h.key, pageKey: h.pageKey, sum: make([]byte, 0, 32)}
}

// Block returns the ID of a block; the zero ID if p holds zeros only.
func (h *Hasher) Block(p []byte) ID {
	if IsZero(p) {
		return ID{}
	}
	h.strong(&h.block, &h.key, p)
	return h.finish(p)
}

// Page returns the ID of a map page's content; the zero ID if it is zeros only.
func (h *Hasher) Page(p []byte) ID {
	if IsZero(p) {
		return ID{}
	}
	h.strong(&h.page, &h.pageKey, p)
	return h.finish(p)
}

// Is reports whether p is the block that id names.
func (h *Hasher) Is(id ID, p []byte) bool { return h.Block(p) == id }

// Compare returns the ID of a block, given the ID of the block that stood at
// its place before.
//
// The 192 bits of keyed BLAKE3 decide: where they agree with those of before,
// which this domain made, the content is the same and its xxhash64 is known
// without being computed again.
func (h *Hasher) Compare(p []byte, before ID) ID {
	if before.IsZero() || IsZero(p) {
		return h.Block(p)
	}
	h.strong(&h.block, &h.key, p)
	if bytes.Equal(h.sum[:24], before[8:]) {
		return before
	}
	return h.finish(p)
}

// strong puts the keyed BLAKE3 of p into sum, by a hasher that it makes when
// there is none.
func (h *Hasher) strong(b **blake3.Hasher, key *[32]byte, p []byte) {
	if *b == nil {
		var err error
		if *b, err = blake3.NewKeyed(key[:]); err != nil {
			panic(err) // only for a key that is not 32 bytes long
		}
	} else {
		(*b).Reset()
	}
	(*b).Write(p)
	h.sum = (*b).Sum(h.sum[:0])
}

func (h *Hasher) finish(p []byte) (id ID) {
	binary.BigEndian.PutUint64(id[:8], xxhash.Sum64(p)&h.mask)
	copy(id[8:], h.sum)
	return id
}

var zeros [4096]byte

// IsZero reports whether p holds zeros only.
func IsZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
