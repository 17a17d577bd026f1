package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"platter/image"
	"platter/image/keys"
)

// Moves tell where the records of segments went that a collector has emptied:
// map pages are never written again, so their hints go on naming segments that
// are gone. Like a hint, a wrong move costs a lookup.
//
// Payload, little-endian:
//
//	0:4  number of new segments T, at most 65536
//	4:8  number of old segments N
//	then T IDs of new segments, 16 bytes each
//	then N entries of 20 bytes, in ascending order of ID: the old segment's ID
//	     (16), and its number of runs (4), at least 1
//	then all runs in the same order, 12 bytes each, ascending and apart:
//	      0:4  first record in the old segment
//	      4:6  number of records minus 1
//	      6:8  place of the new segment above
//	      8:12 first record in the new segment; later ones follow it
const (
	movesHeader    = 8
	movesEntrySize = 20
	movesRunSize   = 12
	movesPrefix    = "index/moves/"
	maxTargets     = 1 << 16
)

// MaxMoves bounds the payload of one object of moves on writing, in bytes.
const MaxMoves = 4 << 20

// A Move says that records of a segment are elsewhere now: Count from First
// on, one behind the other at To.
type Move struct {
	First, Count uint32
	To           image.Location
}

// Moves is one object of moves in memory: not larger than it is stored.
type Moves struct {
	Name          string // of the object
	targets, from []byte
	starts        []uint32 // place of the first run of each old segment, and one more
	runs          []byte
}

// encodeMoves returns the payload that holds moves by old segment, each list
// ascending. What does not fit into one object with limit bytes is left over.
func encodeMoves(moves map[image.SegmentID][]Move, limit int) (payload []byte, rest map[image.SegmentID][]Move) {
	old := make([]image.SegmentID, 0, len(moves))
	for id := range moves {
		old = append(old, id)
	}
	slices.SortFunc(old, func(a, b image.SegmentID) int { return bytes.Compare(a[:], b[:]) })
	var from, runs, targets []byte
	places := map[image.SegmentID]int{}
	for n, id := range old {
		added := 0
		fresh := map[image.SegmentID]bool{}
		for _, m := range moves[id] {
			added += movesRunSize * int((m.Count+maxTargets-1)/maxTargets)
			if _, ok := places[m.To.Segment]; !ok {
				fresh[m.To.Segment] = true
			}
		}
		size := movesHeader + len(targets) + len(from) + len(runs) + movesEntrySize + added + 16*len(fresh)
		if n > 0 && (size > limit || len(places)+len(fresh) > maxTargets) {
			rest = map[image.SegmentID][]Move{}
			for _, id := range old[n:] {
				rest[id] = moves[id]
			}
			break
		}
		for to := range fresh {
			places[to] = len(targets) / 16
			targets = append(targets, to[:]...)
		}
		from = append(from, id[:]...)
		from = binary.LittleEndian.AppendUint32(from, uint32(added/movesRunSize))
		for _, m := range moves[id] {
			runs = appendMove(runs, m, places[m.To.Segment])
		}
	}
	payload = binary.LittleEndian.AppendUint32(nil, uint32(len(targets)/16))
	payload = binary.LittleEndian.AppendUint32(payload, uint32(len(from)/movesEntrySize))
	return append(append(append(payload, targets...), from...), runs...), rest
}

func appendMove(runs []byte, m Move, place int) []byte {
	for m.Count > 0 {
		n := min(m.Count, maxTargets)
		runs = binary.LittleEndian.AppendUint32(runs, m.First)
		runs = binary.LittleEndian.AppendUint16(runs, uint16(n-1))
		runs = binary.LittleEndian.AppendUint16(runs, uint16(place))
		runs = binary.LittleEndian.AppendUint32(runs, m.To.Record)
		m.First, m.To.Record, m.Count = m.First+n, m.To.Record+n, m.Count-n
	}
	return runs
}

// decodeMoves is the reverse of encodeMoves. It keeps b.
func decodeMoves(b []byte) (*Moves, error) {
	bad := func(format string, args ...any) (*Moves, error) {
		return nil, fmt.Errorf("moves of %d bytes: %s: %w", len(b), fmt.Sprintf(format, args...), image.ErrCorrupt)
	}
	if len(b) < movesHeader {
		return bad("no header")
	}
	t, n := int64(binary.LittleEndian.Uint32(b)), int64(binary.LittleEndian.Uint32(b[4:]))
	rest := int64(len(b)-movesHeader) - 16*t - movesEntrySize*n
	if t > maxTargets || rest < 0 || rest%movesRunSize != 0 {
		return bad("%d new and %d old segments", t, n)
	}
	m := &Moves{targets: b[movesHeader:][:16*t], from: b[movesHeader+16*t:][:movesEntrySize*n], runs: b[int64(len(b))-rest:]}
	m.starts = make([]uint32, n+1)
	for i := range int(n) {
		if i > 0 && bytes.Compare(m.old(i-1), m.old(i)) >= 0 {
			return bad("segment %x after %x", m.old(i), m.old(i-1))
		}
		next := int64(m.starts[i]) + int64(binary.LittleEndian.Uint32(m.from[i*movesEntrySize+16:]))
		if next == int64(m.starts[i]) || next > rest/movesRunSize {
			return bad("runs of segment %x end at %d of %d", m.old(i), next, rest/movesRunSize)
		}
		m.starts[i+1] = uint32(next)
		end := int64(0)
		for k := m.starts[i]; k < m.starts[i+1]; k++ {
			first, count, place, record := m.run(k)
			if int64(first) < end || int64(place) >= t || int64(record)+int64(count) > 1<<32 {
				return bad("run %d: %d records from %d on, in segment %d of %d", k, count, first, place, t)
			}
			end = int64(first) + int64(count)
		}
	}
	if int64(m.starts[n]) != rest/movesRunSize {
		return bad("%d runs are of no segment", rest/movesRunSize-int64(m.starts[n]))
	}
	return m, nil
}

func (m *Moves) old(i int) []byte { return m.from[i*movesEntrySize:][:16] }

func (m *Moves) run(k uint32) (first, count uint32, place uint16, record uint32) {
	r := m.runs[k*movesRunSize:][:movesRunSize]
	return binary.LittleEndian.Uint32(r), uint32(binary.LittleEndian.Uint16(r[4:])) + 1,
		binary.LittleEndian.Uint16(r[6:]), binary.LittleEndian.Uint32(r[8:])
}

func (m *Moves) target(place uint16) image.SegmentID {
	return image.SegmentID(m.targets[int(place)*16:][:16])
}

// Bytes is about what m takes in memory.
func (m *Moves) Bytes() int64 {
	return int64(len(m.targets) + len(m.from) + len(m.runs) + 4*len(m.starts))
}

// Find says where a record went.
func (m *Moves) Find(at image.Location) (to image.Location, ok bool) {
	n := len(m.starts) - 1
	i := sort.Search(n, func(i int) bool { return bytes.Compare(m.old(i), at.Segment[:]) >= 0 })
	if i == n || !bytes.Equal(m.old(i), at.Segment[:]) {
		return to, false
	}
	from, end := m.starts[i], m.starts[i+1]
	k := from + uint32(sort.Search(int(end-from), func(k int) bool {
		first, count, _, _ := m.run(from + uint32(k))
		return uint64(first)+uint64(count) > uint64(at.Record)
	}))
	if k == end {
		return to, false
	}
	first, _, place, record := m.run(k)
	if at.Record < first {
		return to, false
	}
	return image.Location{Segment: m.target(place), Record: record + at.Record - first}, true
}

// Each calls f with the moves of every old segment, in order of ID.
func (m *Moves) Each(f func(old image.SegmentID, moves []Move)) {
	for i := range len(m.starts) - 1 {
		var list []Move
		for k := m.starts[i]; k < m.starts[i+1]; k++ {
			first, count, place, record := m.run(k)
			list = append(list, Move{first, count, image.Location{Segment: m.target(place), Record: record}})
		}
		f(image.SegmentID(m.old(i)), list)
	}
}

// PutMoves stores moves by old segment, each list ascending, in as many objects
// as it takes.
func (r *Repo) PutMoves(ctx context.Context, moves map[image.SegmentID][]Move) (names []string, err error) {
	for len(moves) > 0 {
		var payload []byte
		payload, moves = encodeMoves(moves, MaxMoves)
		name, err := r.putUnder(ctx, movesPrefix, keys.KindMoves, payload)
		if err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}

// MovesNames calls f for the name and size of every object of moves.
func (r *Repo) MovesNames(ctx context.Context, f func(name string, size int64) error) error {
	return r.under(ctx, movesPrefix, f)
}

// Moves reads an object of moves.
func (r *Repo) Moves(ctx context.Context, name string) (*Moves, error) {
	payload, err := r.payload(ctx, keys.KindMoves, name)
	if err != nil {
		return nil, err
	}
	m, err := decodeMoves(payload)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	m.Name = name
	return m, nil
}
