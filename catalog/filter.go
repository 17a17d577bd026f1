package catalog

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// A filter says of a block ID's hash that it was surely never added, or that
// it may have been. It is a Bloom filter in blocks of one cache line. It is
// safe for concurrent use.
type filter struct {
	words  []uint64 // groups of 8
	probes int
}

const (
	filterBits    = 10 // for each key, when memory allows
	filterMinBits = 2  // fewer say nothing worth asking
	lineWords     = 8
)

// newFilter makes a filter for so many keys that takes up to limit bytes; nil
// when that is too little to be of use.
func newFilter(keys, limit int64) *filter {
	keys = max(keys, 1024)
	size := min(keys*filterBits/8, limit)
	perKey := size * 8 / keys
	if perKey < filterMinBits {
		return nil
	}
	lines := max(size/(lineWords*8), 1)
	return &filter{words: make([]uint64, lines*lineWords), probes: int(min(max(perKey*7/10, 1), 7))}
}

// line returns where a hash's bits are, and the bits' numbers, 9 bits each.
func (f *filter) line(hash uint64) (words []uint64, bitsOf uint64) {
	n, _ := bits.Mul64(hash, uint64(len(f.words)/lineWords))
	return f.words[n*lineWords:][:lineWords], hash * 0x9e3779b97f4a7c15 >> 1
}

func (f *filter) add(hash uint64) {
	words, b := f.line(hash)
	for range f.probes {
		atomic.OrUint64(&words[b>>6&7], 1<<(b&63))
		b >>= 9
	}
}

// has is false only for a hash that was never added.
func (f *filter) has(hash uint64) bool {
	words, b := f.line(hash)
	for range f.probes {
		if atomic.LoadUint64(&words[b>>6&7])&(1<<(b&63)) == 0 {
			return false
		}
		b >>= 9
	}
	return true
}

func (f *filter) bytes() int64 { return int64(len(f.words)) * 8 }

// fits reports whether f still says enough with so many keys.
func (f *filter) fits(keys, limit int64) bool {
	bitsPerKey := f.bytes() * 8 / max(keys, 1)
	return bitsPerKey >= filterBits*2/3 || bitsPerKey >= filterMinBits && f.bytes() >= limit/2
}

// The file of a filter, little-endian:
//
//	 0:16  "platter filter 1"
//	16:32  instance of the index
//	32:36  number of the next segment when it was written
//	36:40  probes
//	40:48  length of the words in bytes
//	48:    words
//	 +0:8  xxhash64 of all before
const filterHeader = 48

const filterMagic = "platter filter 1"

// filterFile keeps a filter between two runs.
type filterFile struct {
	dir      *directory
	instance [16]byte
}

func (ff filterFile) header(next uint32, probes int, size int64) []byte {
	b := append(make([]byte, 0, filterHeader), filterMagic...)
	b = append(b, ff.instance[:]...)
	b = binary.LittleEndian.AppendUint32(b, next)
	b = binary.LittleEndian.AppendUint32(b, uint32(probes))
	return binary.LittleEndian.AppendUint64(b, uint64(size))
}

func (ff filterFile) save(f *filter, next uint32) error {
	head := ff.header(next, f.probes, f.bytes())
	body := make([]byte, 0, f.bytes())
	for i := range f.words {
		body = binary.LittleEndian.AppendUint64(body, f.words[i])
	}
	sum := xxhash.New()
	sum.Write(head)
	sum.Write(body)
	return ff.dir.put(filterName, head, body, binary.LittleEndian.AppendUint64(nil, sum.Sum64()))
}

// load reads the filter when it knows every segment before next, and takes up
// to limit bytes.
func (ff filterFile) load(next uint32, limit int64) (*filter, error) {
	info, err := ff.dir.fs.Stat(ff.dir.path(filterName))
	if err != nil {
		return nil, err
	}
	if info.Size() > limit+filterHeader+8 {
		return nil, fmt.Errorf("%s: %d bytes are more than %d", filterName, info.Size(), limit)
	}
	b, err := ff.dir.get(filterName)
	if err != nil {
		return nil, err
	}
	size := int64(len(b)) - filterHeader - 8
	if size < lineWords*8 || size%(lineWords*8) != 0 {
		return nil, fmt.Errorf("%s: %d bytes", filterName, len(b))
	}
	probes := int(binary.LittleEndian.Uint32(b[36:]))
	if string(b[:filterHeader]) != string(ff.header(next, probes, size)) || probes < 1 || probes > 7 {
		return nil, fmt.Errorf("%s: not of this moment", filterName)
	}
	end := filterHeader + size
	if xxhash.Sum64(b[:end]) != binary.LittleEndian.Uint64(b[end:]) {
		return nil, fmt.Errorf("%s: checksum differs", filterName)
	}
	f := &filter{words: make([]uint64, size/8), probes: probes}
	set := int64(0)
	for i := range f.words {
		f.words[i] = binary.LittleEndian.Uint64(b[filterHeader+i*8:])
		set += int64(bits.OnesCount64(f.words[i]))
	}
	// What was dropped since leaves its bits behind, until too many are set.
	if set > size*8*6/10 {
		return nil, fmt.Errorf("%s: worn out", filterName)
	}
	return f, nil
}
