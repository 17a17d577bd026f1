package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"platter/image"
	"platter/image/store"
	"platter/image/store/mem"
)

func condemn(t testing.TB, r *Repo, epoch uint64, ids ...byte) {
	t.Helper()
	if err := r.PublishCondemned(t.Context(), list(epoch, ids...)); err != nil {
		t.Fatal(err)
	}
}

// list condemns segments at their own number, so that id 3 came with list 3.
func list(epoch uint64, ids ...byte) *Condemned {
	c := &Condemned{Epoch: epoch, Time: mem.Epoch(), Seen: map[string]uint64{"x": epoch}}
	for _, id := range ids {
		c.Segments = append(c.Segments, CondemnedSegment{Segment: image.SegmentID{id}, Size: int64(id), Since: mem.Epoch(), Epoch: uint64(id)})
	}
	return c
}

func ids(set map[image.SegmentID]bool) (list []byte) {
	for id := range set {
		list = append(list, id[0])
	}
	slices.Sort(list)
	return list
}

func TestTheNewestListCounts(t *testing.T) {
	r, st := newRepo(t)
	c, err := r.NewestCondemned(t.Context())
	if err != nil || c.Epoch != 0 || len(c.Segments) != 0 {
		t.Fatalf("before any: %+v, %v", c, err)
	}
	for epoch := uint64(1); epoch <= 20; epoch++ {
		condemn(t, r, epoch, byte(epoch))
		c, err := r.NewestCondemned(t.Context())
		if err != nil || c.Epoch != epoch || !slices.Equal(ids(c.IDs()), []byte{byte(epoch)}) || c.Seen["x"] != epoch || c.Segments[0].Size != int64(epoch) {
			t.Fatalf("epoch %d: %+v, %v", epoch, c, err)
		}
	}
	for _, junk := range []string{"trash/segments/x", "trash/segments/1", "trash/segments/" + strings.Repeat("0", 17)} {
		st.Replace(junk, []byte("junk"))
	}
	if c, err := r.NewestCondemned(t.Context()); err != nil || c.Epoch != 20 {
		t.Errorf("beside junk: %+v, %v", c, err)
	}
}

func TestRacingPublishersFormOneLine(t *testing.T) {
	r, _ := newRepo(t)
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for {
				c, err := r.NewestCondemned(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				c.Epoch++
				c.Segments = append(c.Segments, CondemnedSegment{Segment: image.SegmentID{byte(i + 1)}, Epoch: c.Epoch})
				err = r.PublishCondemned(context.Background(), c)
				if err == nil {
					return
				}
				if !errors.Is(err, store.ErrExists) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	c, err := r.NewestCondemned(t.Context())
	if err != nil || c.Epoch != n || len(c.IDs()) != n {
		t.Fatalf("epoch %d of %d segments, %v; want %d of as many", c.Epoch, len(c.IDs()), err, n)
	}
}

func TestCondemnedSince(t *testing.T) {
	for _, tt := range []struct {
		name  string
		gone  []uint64
		since uint64
		want  []byte
		whole bool
	}{
		{"all", nil, 0, []byte{1, 2, 3, 4}, true},
		{"after the first", nil, 1, []byte{2, 3, 4}, true},
		{"after the third", nil, 3, []byte{4}, true},
		{"after the last", nil, 4, nil, true},
		{"after what is to come", nil, 9, nil, true},
		{"the first gone", []uint64{1}, 0, []byte{2, 3, 4}, false},
		{"the first gone, known before", []uint64{1}, 1, []byte{2, 3, 4}, true},
		{"one between gone", []uint64{3}, 1, []byte{2, 4}, false},
		{"all but the last gone", []uint64{1, 2, 3}, 1, []byte{4}, false},
		{"all but the last gone, and known", []uint64{1, 2, 3}, 3, []byte{4}, true},
	} {
		r, st := newRepo(t)
		for n := byte(1); n <= 4; n++ {
			condemn(t, r, uint64(n), n) // each list drops what was on the one before
		}
		for _, epoch := range tt.gone {
			if err := st.Delete(t.Context(), condemnedName(epoch)); err != nil {
				t.Fatal(err)
			}
		}
		set, whole, err := r.CondemnedSince(t.Context(), tt.since)
		if err != nil || whole != tt.whole || !slices.Equal(ids(set), tt.want) {
			t.Errorf("%s: %v, whole %v, %v; want %v, %v", tt.name, ids(set), whole, err, tt.want, tt.whole)
		}
	}
	// What stood on an older list already is not news.
	r, _ := newRepo(t)
	condemn(t, r, 1, 1)
	condemn(t, r, 2, 1, 2)
	if set, whole, err := r.CondemnedSince(t.Context(), 1); err != nil || !whole || !slices.Equal(ids(set), []byte{2}) {
		t.Errorf("%v, whole %v, %v; want 2", ids(set), whole, err)
	}
}

func TestDamagedListsAreTold(t *testing.T) {
	// D21: a collector deletes nothing while one is there. A backup goes on, by
	// the list before, and its lease says so.
	r, st := newRepo(t)
	condemn(t, r, 1, 1)
	condemn(t, r, 2, 1, 2)
	whole, err := st.Get(t.Context(), condemnedName(1), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for what, damaged := range map[string][]byte{"junk": []byte("junk"), "another list": whole} {
		st.Replace(condemnedName(2), damaged)
		c, err := r.NewestCondemned(t.Context())
		if err != nil || c.Epoch != 1 || c.Next != 3 || !slices.Equal(c.Unread, []string{condemnedName(2)}) {
			t.Errorf("%s: newest: %+v, %v; want the first, the second unread and the third next", what, c, err)
		}
		if set, whole, err := r.CondemnedSince(t.Context(), 0); err != nil || whole || !slices.Equal(ids(set), []byte{1}) {
			t.Errorf("%s: since: %v, whole %v, %v; want the first's, not whole", what, ids(set), whole, err)
		}
	}
}

func TestDropCondemnedBefore(t *testing.T) {
	r, st := newRepo(t)
	for n := byte(1); n <= 5; n++ {
		condemn(t, r, uint64(n), n)
	}
	if err := r.DropCondemnedBefore(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	var left []string
	for name := range contents(t, st) {
		if strings.HasPrefix(name, condemnedPrefix) {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	if want := []string{condemnedName(4), condemnedName(5)}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
}

func TestNotesOfDamage(t *testing.T) {
	r, st := newRepo(t)
	want := map[string]bool{}
	for n := range 3 {
		var blocks []image.ID
		var at []image.Location
		for i := range n + 1 {
			blocks = append(blocks, image.ID{byte(n), byte(i)})
			at = append(at, image.Location{Segment: image.SegmentID{byte(n)}, Record: uint32(i)})
			want[fmt.Sprint(blocks[i], at[i])] = true
		}
		if err := r.NoteDamage(t.Context(), blocks, at); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]bool{}
	if err := r.Damaged(t.Context(), func(id image.ID, at image.Location) error { got[fmt.Sprint(id, at)] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%d records, want %d", len(got), len(want))
	}
	for k := range want {
		if !got[k] {
			t.Errorf("%s is not noted", k)
		}
	}
	st.Replace(damagePrefix+strings.Repeat("0", 32), []byte("damaged"))
	n := 0
	if err := r.Damaged(t.Context(), func(image.ID, image.Location) error { n++; return nil }); !errors.Is(err, image.ErrCorrupt) || n != len(want) {
		t.Errorf("a damaged note: %d records, %v, want %d and corrupt", n, err, len(want))
	}
}
