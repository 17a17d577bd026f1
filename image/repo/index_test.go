package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"platter/image"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/faulty"
	"platter/image/store/mem"
)

// someSegments stores segments of a few records each.
func someSegments(t testing.TB, r *Repo, n int) (list []segment.Object) {
	t.Helper()
	buf := store.AllocAligned(segment.MinBuffer(64 << 10))
	for k := range n {
		b := r.NewSegment(buf, segment.Data, [16]byte{1})
		for i := range 1 + k%3 {
			b.Add(segment.Record{ID: image.ID{1, byte(k), byte(i), 5}, Plain: 100}, make([]byte, 100))
		}
		object, f := b.Seal()
		if err := r.Store.Put(t.Context(), segment.Name(f.ID), object); err != nil {
			t.Fatal(err)
		}
		list = append(list, segment.Object{ID: f.ID, Size: f.Size})
	}
	slices.SortFunc(list, func(a, b segment.Object) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return list
}

func endsOf(t testing.TB, r *Repo, list []segment.Object) (ends []Indexed) {
	t.Helper()
	for _, o := range list {
		tail, err := segment.ReadTail(t.Context(), r.Store, o)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, Indexed{o, tail})
	}
	return ends
}

// footersOf calls Footers and returns what came of each segment.
func footersOf(t testing.TB, r *Repo, list []segment.Object) map[image.SegmentID]*segment.Footer {
	t.Helper()
	var mu sync.Mutex
	got := map[image.SegmentID]*segment.Footer{}
	err := r.Footers(t.Context(), list, func(o segment.Object, f *segment.Footer, err error) error {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := got[o.ID]; twice {
			t.Errorf("segment %s came twice", o.ID)
		}
		if got[o.ID] = f; err != nil {
			t.Errorf("segment %s: %v", o.ID, err)
		}
		return nil
	})
	if err != nil || len(got) != len(list) {
		t.Errorf("got %d footers, %v, want %d", len(got), err, len(list))
	}
	return got
}

func TestIndexesStandInForTheEndsOfSegments(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		st := faulty.New(mem.New())
		opts := InitOptions{BlockSize: 4096}
		if sealed {
			opts.Encryption = &Encryption{Passphrase: []byte("password")}
		}
		r, err := Init(t.Context(), st, opts)
		if err != nil {
			t.Fatal(err)
		}
		list := someSegments(t, r, 60)
		want := footersOf(t, r, list)
		half := endsOf(t, r, list[:40])
		name, err := r.PutIndex(t.Context(), half)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := r.Index(t.Context(), name); err != nil || !reflect.DeepEqual(back, half) {
			t.Errorf("sealed %v: the index is not what was put (%v)", sealed, err)
		}
		st.Forget()
		got := footersOf(t, r, list)
		if n := st.Count(faulty.ReadAt, "segments/"); n != 20 {
			t.Errorf("sealed %v: %d reads of segments, want 20 for those in no index", sealed, n)
		}
		for id, f := range want {
			if !reflect.DeepEqual(got[id].Records, f.Records) || got[id].Run != f.Run || got[id].Kind != f.Kind {
				t.Errorf("sealed %v: footer of %s differs", sealed, id)
			}
		}
		// An index that lies about some is not believed in those.
		half[3].Footer = half[4].Footer
		half[5].Trailer = half[6].Trailer
		half[7].Size += segment.Align
		half[9].Trailer = bytes.Clone(half[9].Trailer)
		half[9].Trailer[90] ^= 1
		if err := st.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if _, err := r.PutIndex(t.Context(), half); err != nil {
			t.Fatal(err)
		}
		st.Forget()
		for id, f := range footersOf(t, r, list) {
			if !reflect.DeepEqual(f.Records, want[id].Records) {
				t.Errorf("sealed %v: footer of %s is a lie", sealed, id)
			}
		}
		if n := st.Count(faulty.ReadAt, "segments/"); n < 23 {
			t.Errorf("sealed %v: %d reads of segments, want 23 at least", sealed, n)
		}
	}
}

// D47: an index is believed in nothing.
func TestDamagedIndexesArePassedOver(t *testing.T) {
	r, st := newRepo(t)
	list := someSegments(t, r, 40)
	want := footersOf(t, r, list)
	name, err := r.PutIndex(t.Context(), endsOf(t, r, list))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := st.Get(t.Context(), name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 5, 20, 56, len(whole) / 2, len(whole) - 100, -1} {
		object := bytes.Clone(whole)
		if at < 0 {
			object = object[:len(object)-7]
		} else {
			object[at] ^= 1
		}
		st.Replace(name, object)
		if _, err := r.Index(t.Context(), name); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("byte %d: %v, want corrupt", at, err)
		}
		for id, f := range footersOf(t, r, list) {
			if !reflect.DeepEqual(f.Records, want[id].Records) {
				t.Errorf("byte %d: footer of %s differs", at, id)
			}
		}
	}
	// One that is in place of another is none.
	st.Replace(indexPrefix+strings.Repeat("0", 32), whole)
	if _, err := r.Index(t.Context(), indexPrefix+strings.Repeat("0", 32)); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("under another name: %v, want corrupt", err)
	}
}

func TestFewFootersAreReadFromTheirSegments(t *testing.T) {
	st := faulty.New(mem.New())
	r, err := Init(t.Context(), st, InitOptions{BlockSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	list := someSegments(t, r, 3)
	if _, err := r.PutIndex(t.Context(), endsOf(t, r, list)); err != nil {
		t.Fatal(err)
	}
	st.Forget()
	footersOf(t, r, list)
	if n := st.Count(faulty.Get, "index/"); n != 0 {
		t.Errorf("read %d indexes for 3 segments", n)
	}
}

// randomMoves makes moves, and a plain model of them.
func randomMoves(rng *rand.Rand) (moves map[image.SegmentID][]Move, model map[image.Location]image.Location) {
	moves, model = map[image.SegmentID][]Move{}, map[image.Location]image.Location{}
	for range rng.IntN(20) {
		old := image.SegmentID{1, byte(rng.IntN(256)), byte(rng.IntN(256))}
		var list []Move
		for at := uint32(rng.IntN(3)); len(list) < 1+rng.IntN(6); {
			m := Move{at, uint32(1 + rng.IntN(5)), image.Location{Segment: image.SegmentID{2, byte(rng.IntN(8))}, Record: rng.Uint32N(1000)}}
			if rng.IntN(30) == 0 {
				m.Count = 1<<16 + uint32(rng.IntN(3))
			}
			list = append(list, m)
			at += m.Count + uint32(rng.IntN(3))
		}
		moves[old] = list
	}
	for old, list := range moves {
		for _, m := range list {
			for i := range m.Count {
				model[image.Location{Segment: old, Record: m.First + i}] = image.Location{Segment: m.To.Segment, Record: m.To.Record + i}
			}
		}
	}
	return moves, model
}

func TestMovesLeadWhereRecordsWent(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 4))
		moves, model := randomMoves(rng)
		r, _ := newRepo(t)
		if seed%2 == 0 {
			var all []*Moves
			limit := 200 + rng.IntN(2000)
			for rest := maps.Clone(moves); len(rest) > 0; {
				var payload []byte
				payload, rest = encodeMoves(rest, limit)
				m, err := decodeMoves(payload)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				all = append(all, m)
			}
			checkMoves(t, seed, all, model)
			continue
		}
		names, err := r.PutMoves(t.Context(), moves)
		if err != nil {
			t.Fatal(err)
		}
		var all []*Moves
		back := map[image.SegmentID][]Move{}
		for _, name := range names {
			m, err := r.Moves(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m)
			m.Each(func(old image.SegmentID, list []Move) { back[old] = list })
		}
		if len(back) != len(moves) {
			t.Errorf("seed %d: moves of %d segments, want %d", seed, len(back), len(moves))
		}
		checkMoves(t, seed, all, model)
	}
}

func checkMoves(t *testing.T, seed uint64, all []*Moves, model map[image.Location]image.Location) {
	t.Helper()
	find := func(at image.Location) (image.Location, bool) {
		for _, m := range all {
			if to, ok := m.Find(at); ok {
				return to, true
			}
		}
		return image.Location{}, false
	}
	for at, want := range model {
		if got, ok := find(at); !ok || got != want {
			t.Fatalf("seed %d: %s leads to %s (%v), want %s", seed, at, got, ok, want)
		}
		at.Record++
		if got, ok := find(at); ok != (model[at] != image.Location{}) || got != model[at] {
			t.Fatalf("seed %d: %s leads to %s (%v), want %s", seed, at, got, ok, model[at])
		}
	}
	if _, ok := find(image.Location{Segment: image.SegmentID{9}}); ok {
		t.Errorf("seed %d: a segment of which nothing is known leads somewhere", seed)
	}
}

func TestHostileIndexesAndMovesAreRefused(t *testing.T) {
	le := binary.LittleEndian
	entry := func(id byte, units, length uint32) []byte {
		b := append([]byte{id}, make([]byte, 15)...)
		return le.AppendUint32(le.AppendUint32(b, units), length)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	u32 := func(n uint32) []byte { return le.AppendUint32(nil, n) }
	end := make([]byte, segment.TrailerSize)
	for name, b := range map[string][]byte{
		"empty": nil, "short": {1, 0, 0}, "absurd number": u32(1<<32 - 1), "one too many": join(u32(2), entry(1, 2, 0), end),
		"twice the same": join(u32(2), entry(1, 2, 0), entry(1, 2, 0), end, end), "descending": join(u32(2), entry(2, 2, 0), entry(1, 2, 0), end, end),
		"absurd footer": join(u32(1), entry(1, 2, 1<<32-1), end), "footer into the trailer": join(u32(1), entry(1, 2, 1), end),
		"bytes left": join(u32(1), entry(1, 2, 0), end, []byte{0}),
	} {
		if list, err := decodeIndex(b); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("index, %s: got %d segments, %v, want corrupt", name, len(list), err)
		}
	}
	old := func(id byte, runs uint32) []byte {
		return le.AppendUint32(append([]byte{id}, make([]byte, 15)...), runs)
	}
	run := func(first uint32, count, place uint16, record uint32) []byte {
		return le.AppendUint32(le.AppendUint16(le.AppendUint16(u32(first), count), place), record)
	}
	to := make([]byte, 16)
	for name, b := range map[string][]byte{
		"empty": nil, "short": make([]byte, 7), "absurd": join(u32(1<<32-1), u32(1<<32-1)), "more targets than bytes": join(u32(9), u32(0), to),
		"too many targets": join(u32(1<<16+1), u32(0), make([]byte, 16<<16+16)), "no runs": join(u32(0), u32(1), old(1, 0)),
		"runs left": join(u32(1), u32(1), to, old(1, 1), run(0, 0, 0, 0), run(9, 0, 0, 0)), "runs missing": join(u32(1), u32(1), to, old(1, 2), run(0, 0, 0, 0)),
		"absurd runs":  join(u32(1), u32(2), to, old(1, 1), old(2, 1<<32-1), run(0, 0, 0, 0), run(0, 0, 0, 0)),
		"place past":   join(u32(1), u32(1), to, old(1, 1), run(0, 0, 1, 0)),
		"overlap":      join(u32(1), u32(1), to, old(1, 2), run(0, 4, 0, 0), run(4, 0, 0, 9)),
		"record past":  join(u32(1), u32(1), to, old(1, 1), run(0, 1, 0, 1<<32-1)),
		"same segment": join(u32(1), u32(2), to, old(1, 1), old(1, 1), run(0, 0, 0, 0), run(0, 0, 0, 0)),
		"odd length":   join(u32(1), u32(1), to, old(1, 1), run(0, 0, 0, 0), []byte{1}),
	} {
		if m, err := decodeMoves(b); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("moves, %s: got %v, %v, want corrupt", name, m, err)
		}
	}
}

func FuzzIndex(f *testing.F) {
	r, _ := newRepo(f)
	list := endsOf(f, r, someSegments(f, r, 3))
	f.Add(encodeIndex(list))
	f.Add(encodeIndex(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeIndex(b)
		if err != nil {
			if !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("got %v, want corrupt", err)
			}
			return
		}
		if back := encodeIndex(list); !bytes.Equal(back, b) {
			t.Errorf("%d bytes decode to what encodes as %d others", len(b), len(back))
		}
		for i := range list {
			if f, err := list[i].Open(r.Keys, list[i].Object); err == nil && f.ID != list[i].ID {
				t.Errorf("footer of %s for %s", f.ID, list[i].ID)
			}
		}
	})
}

func FuzzMoves(f *testing.F) {
	for seed := range uint64(5) {
		moves, _ := randomMoves(rand.New(rand.NewPCG(seed, 4)))
		payload, _ := encodeMoves(moves, MaxMoves)
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMoves(b)
		if err != nil {
			if !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("got %v, want corrupt", err)
			}
			return
		}
		m.Each(func(old image.SegmentID, moves []Move) {
			for _, move := range moves {
				to, ok := m.Find(image.Location{Segment: old, Record: move.First + move.Count - 1})
				want := image.Location{Segment: move.To.Segment, Record: move.To.Record + move.Count - 1}
				if !ok || to != want {
					t.Errorf("%s/%d leads to %s (%v), want %s", old, move.First, to, ok, want)
				}
			}
		})
	})
}

func TestFootersStopsAtAnError(t *testing.T) {
	r, _ := newRepo(t)
	list := someSegments(t, r, 40)
	stop := errors.New("enough")
	for range 2 {
		if err := r.Footers(t.Context(), list, func(segment.Object, *segment.Footer, error) error { return stop }); err != stop {
			t.Errorf("got %v, want %v", err, stop)
		}
		if _, err := r.PutIndex(t.Context(), endsOf(t, r, list)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Footers(ctx, list, func(segment.Object, *segment.Footer, error) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}
