package catalog

import (
	"container/list"
	"encoding/binary"
	"math/bits"

	"platter/image"
)

// A records is a chunk of a segment's records in memory: the IDs of up to
// chunkRecords blocks that were written together, and so are likely to be
// looked for together.
type records struct {
	segment   image.SegmentID
	number    uint32
	chunk     uint32
	ids       []image.ID
	table     []uint32 // open addressing: hash bits ‖ place in ids, 0 for none; made when needed
	condemned bool
	damaged   map[uint32]struct{} // records of the segment
}

type chunkKey struct{ number, chunk uint32 }

// parseList reads an entry of tagRecords. Nothing of value is kept.
func parseList(key, value []byte) (*records, error) {
	n := (len(value) - 16) / image.IDSize
	if len(key) != numberKeySize || len(value) < 16+image.IDSize || (len(value)-16)%image.IDSize != 0 || n > chunkRecords {
		return nil, corrupt("records of %d bytes under a key of %d", len(value), len(key))
	}
	r := &records{
		segment: image.SegmentID(value),
		number:  binary.BigEndian.Uint32(key[1:]),
		chunk:   binary.BigEndian.Uint32(key[5:]),
		ids:     make([]image.ID, n),
	}
	for i := range r.ids {
		copy(r.ids[i][:], value[16+i*image.IDSize:])
	}
	return r, nil
}

// record returns the number in the segment of the record at place i.
func (r *records) record(i int) uint32 { return r.chunk*chunkRecords + uint32(i) }

// at returns where the record at place i is.
func (r *records) at(i int) image.Location {
	return image.Location{Segment: r.segment, Record: r.record(i)}
}

// usable reports whether the record at place i may be relied on.
func (r *records) usable(i int) bool {
	if r.condemned {
		return false
	}
	if r.damaged == nil {
		return true
	}
	_, bad := r.damaged[r.record(i)]
	return !bad
}

// The low bits of a table's entry are the place plus one, the others are bits
// of the hash that save looking at most of the wrong IDs.
const placeMask = chunkRecords<<1 - 1

// find returns the place of a usable record with this ID, or -1.
func (r *records) find(id *image.ID, hash uint64) int {
	if r.table == nil {
		r.index()
	}
	mask := uint32(len(r.table) - 1)
	tag := uint32(hash>>32) &^ placeMask
	for slot := uint32(hash) & mask; ; slot = (slot + 1) & mask {
		e := r.table[slot]
		if e == 0 {
			return -1
		}
		if place := int(e&placeMask) - 1; e&^placeMask == tag && r.ids[place] == *id && r.usable(place) {
			return place
		}
	}
}

// index makes the table, at most half full.
func (r *records) index() {
	size := 1 << bits.Len(uint(2*len(r.ids)-1))
	r.table = make([]uint32, size)
	for i := range r.ids {
		hash := hashID(&r.ids[i])
		slot := uint32(hash) & uint32(size-1)
		for r.table[slot] != 0 {
			slot = (slot + 1) & uint32(size-1)
		}
		r.table[slot] = uint32(hash>>32)&^placeMask | uint32(i+1)
	}
}

// bytes is what r takes in memory, its table included.
func (r *records) bytes() int64 { return int64(len(r.ids))*(image.IDSize+16) + 256 }

// lists is a cache of chunks, the least recently used go first.
type lists struct {
	limit, used int64 // bytes
	byKey       map[chunkKey]*list.Element
	order       *list.List // of *records, most recently used in front
}

func newLists(limit int64) lists {
	return lists{limit: limit, byKey: map[chunkKey]*list.Element{}, order: list.New()}
}

// get returns a chunk that is in memory, or nil.
func (l *lists) get(key chunkKey) *records {
	e := l.byKey[key]
	if e == nil {
		return nil
	}
	l.order.MoveToFront(e)
	return e.Value.(*records)
}

func (l *lists) put(r *records) {
	key := chunkKey{r.number, r.chunk}
	if l.byKey[key] != nil {
		return
	}
	l.byKey[key] = l.order.PushFront(r)
	l.used += r.bytes()
	for l.used > l.limit && l.order.Len() > 1 {
		l.remove(l.order.Back())
	}
}

func (l *lists) remove(e *list.Element) {
	r := l.order.Remove(e).(*records)
	delete(l.byKey, chunkKey{r.number, r.chunk})
	l.used -= r.bytes()
}

// probe looks through the chunks used last. Blocks that were written together
// come in runs, so the first few answer nearly all that any can.
func (l *lists) probe(id *image.ID, hash uint64) (image.Location, bool) {
	const depth = 8
	n := 0
	for e := l.order.Front(); e != nil && n < depth; e = e.Next() {
		r := e.Value.(*records)
		if i := r.find(id, hash); i >= 0 {
			if n > 0 {
				l.order.MoveToFront(e)
			}
			return r.at(i), true
		}
		n++
	}
	return image.Location{}, false
}

// each calls f for every chunk in memory.
func (l *lists) each(f func(*records)) {
	for e := l.order.Front(); e != nil; e = e.Next() {
		f(e.Value.(*records))
	}
}

// drop removes the chunks of a segment.
func (l *lists) drop(number uint32) {
	for e := l.order.Front(); e != nil; {
		next := e.Next()
		if e.Value.(*records).number == number {
			l.remove(e)
		}
		e = next
	}
}
