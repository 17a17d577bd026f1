// Package storetest is the suite that every store passes.
//
// It shows what a store.Store promises while it runs. That what it has
// acknowledged also outlives a crash is shown per store: for directories in
// package dir, over package crashfs.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"platter/image/store"
)

// Run runs the suite. open returns a new, empty store, which Run closes.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"PutThenGet", testPutThenGet},
		{"PartsAreJoined", testPartsAreJoined},
		{"PartsMayBeReused", testPartsMayBeReused},
		{"BigAligned", testBigAligned},
		{"PutIfAbsent", testPutIfAbsent},
		{"RacingPuts", testRacingPuts},
		{"Ranges", testRanges},
		{"LongRanges", testLongRanges},
		{"Limits", testLimits},
		{"Head", testHead},
		{"ListOrder", testListOrder},
		{"ListPrefix", testListPrefix},
		{"ListStops", testListStops},
		{"ListWhileChanging", testListWhileChanging},
		{"Delete", testDelete},
		{"NotFound", testNotFound},
		{"NamesRefused", testNamesRefused},
		{"LongNames", testLongNames},
		{"Concurrent", testConcurrent},
		{"Cancelled", testCancelled},
		{"Clock", testClock},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			defer func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}()
			tt.test(t, s)
		})
	}
}

// Bytes returns n bytes that depend on seed, aligned as by store.AllocAligned.
func Bytes(seed uint64, n int) []byte {
	p := store.AllocAligned(n)
	var key [32]byte
	key[0], key[1], key[2], key[3] = byte(seed), byte(seed>>8), byte(seed>>16), byte(seed>>24)
	rand.NewChaCha8(key).Read(p)
	return p
}

func put(t *testing.T, s store.Store, name string, parts ...[]byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, parts...); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func wantObject(t *testing.T, s store.Store, name string, want []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), name, int64(len(want)))
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("get %s: %d bytes that differ from the %d put", name, len(got), len(want))
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

func names(t *testing.T, s store.Store, prefix string) []string {
	t.Helper()
	var got []string
	err := s.List(t.Context(), prefix, func(i store.Info) error {
		got = append(got, i.Name)
		return nil
	})
	if err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	return got
}

func testPutThenGet(t *testing.T, s store.Store) {
	for _, n := range []int{0, 1, 511, 512, 4095, 4096, 4097, 65536, 1<<20 - 1, 1 << 20, 1<<20 + 1} {
		name := fmt.Sprintf("size/%d", n)
		put(t, s, name, Bytes(uint64(n), n))
		wantObject(t, s, name, Bytes(uint64(n), n))
	}
	put(t, s, "none")
	wantObject(t, s, "none", nil)
}

func testPartsAreJoined(t *testing.T, s store.Store) {
	lengths := [][]int{
		{0, 0},
		{1, 2, 3},
		{4096, 4096},
		{4096, 1},
		{1, 4096},
		{1 << 20, 4096, 100},
		{100, 1 << 20},
		{1 << 20, 0, 1 << 20},
		{4095, 1<<20 + 1, 4096, 8192},
	}
	for i, list := range lengths {
		var parts [][]byte
		for j, n := range list {
			parts = append(parts, Bytes(uint64(100*i+j), n))
		}
		name := fmt.Sprintf("parts/%d", i)
		put(t, s, name, parts...)
		wantObject(t, s, name, bytes.Join(parts, nil))
	}
	// Parts that begin anywhere in memory.
	for skip := range 3 {
		p := Bytes(uint64(skip), 3<<20)[skip*511:]
		name := fmt.Sprintf("skew/%d", skip)
		put(t, s, name, p)
		wantObject(t, s, name, p)
	}
}

func testPartsMayBeReused(t *testing.T, s store.Store) {
	for _, n := range []int{100, 2 << 20} {
		p, name := Bytes(1, n), fmt.Sprintf("reused/%d", n)
		put(t, s, name, p)
		clear(p)
		wantObject(t, s, name, Bytes(1, n))
		got, err := s.Get(t.Context(), name, int64(n))
		if err != nil {
			t.Fatal(err)
		}
		clear(got) // the caller's own
		wantObject(t, s, name, Bytes(1, n))
	}
}

func testBigAligned(t *testing.T, s store.Store) {
	for _, n := range []int{4 << 20, 4<<20 + 4096, 9<<20 - 4096} {
		p, name := Bytes(uint64(n), n), fmt.Sprintf("big/%d", n)
		put(t, s, name, p[:4096], p[4096:len(p)-4096], p[len(p)-4096:])
		wantObject(t, s, name, p)
	}
}

func testPutIfAbsent(t *testing.T, s store.Store) {
	first := Bytes(1, 5000)
	put(t, s, "a/b", first)
	for _, second := range [][]byte{Bytes(2, 5000), Bytes(2, 10), nil, first, Bytes(2, 2<<20)} {
		wantErr(t, "second put", s.Put(t.Context(), "a/b", second), store.ErrExists)
		wantObject(t, s, "a/b", first)
	}
	if got := names(t, s, ""); !slices.Equal(got, []string{"a/b"}) {
		t.Errorf("list: got %q, want only a/b", got)
	}
}

func testRacingPuts(t *testing.T, s store.Store) {
	const racers, rounds = 6, 12
	for round := range rounds {
		name := fmt.Sprintf("race/%d", round)
		size := 1000 + round%3<<20
		var wg sync.WaitGroup
		errs := make([]error, racers)
		for i := range racers {
			wg.Go(func() { errs[i] = s.Put(t.Context(), name, Bytes(uint64(i), size+i)) })
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("round %d: puts %d and %d both won", round, winner, i)
			case err == nil:
				winner = i
			default:
				wantErr(t, "losing put", err, store.ErrExists)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: no put won: %v", round, errs)
		}
		wantObject(t, s, name, Bytes(uint64(winner), size+winner))
	}
}

func testRanges(t *testing.T, s store.Store) {
	const n = 10000
	want := Bytes(1, n)
	put(t, s, "r", want)
	for _, r := range []struct{ off, length int }{
		{0, 0}, {0, 1}, {0, n}, {n - 1, 1}, {n, 0}, {4095, 2}, {4096, 4096}, {1, n - 1}, {5000, 5000},
	} {
		p := make([]byte, r.length)
		if err := s.ReadAt(t.Context(), "r", p, int64(r.off)); err != nil {
			t.Errorf("read %d at %d: %v", r.length, r.off, err)
		} else if !bytes.Equal(p, want[r.off:r.off+r.length]) {
			t.Errorf("read %d at %d: other bytes than put", r.length, r.off)
		}
	}
	for _, r := range []struct{ off, length int }{{0, n + 1}, {n - 1, 2}, {n, 1}, {n + 1, 1}, {1 << 40, 10}, {n - 1, 2 << 20}} {
		err := s.ReadAt(t.Context(), "r", make([]byte, r.length), int64(r.off))
		wantErr(t, fmt.Sprintf("read %d at %d of %d", r.length, r.off, n), err, io.ErrUnexpectedEOF)
	}
	if err := s.ReadAt(t.Context(), "r", make([]byte, 1), -1); err == nil {
		t.Errorf("read at -1: no error")
	}
}

func testLongRanges(t *testing.T, s store.Store) {
	const n = 5<<20 + 4096 + 100
	want := Bytes(1, n)
	put(t, s, "long", want)
	rng := rand.New(rand.NewPCG(1, 1))
	buffer := store.AllocAligned(n)
	for i := range 60 {
		off := rng.IntN(n)
		length := rng.IntN(n - off + 1)
		p := buffer[:length]
		if i%3 == 0 { // aligned as far as can be
			off &^= store.Align - 1
		}
		if i%3 == 1 {
			p = buffer[1:][:min(length, n-1)]
			length = len(p)
		}
		if err := s.ReadAt(t.Context(), "long", p, int64(off)); err != nil {
			t.Fatalf("read %d at %d: %v", length, off, err)
		}
		if !bytes.Equal(p, want[off:off+length]) {
			t.Fatalf("read %d at %d: other bytes than put", length, off)
		}
	}
	err := s.ReadAt(t.Context(), "long", buffer, 4096)
	wantErr(t, "long read past the end", err, io.ErrUnexpectedEOF)
}

func testLimits(t *testing.T, s store.Store) {
	want := Bytes(1, 100)
	put(t, s, "l", want)
	for _, limit := range []int64{100, 101, 1 << 62} {
		if got, err := s.Get(t.Context(), "l", limit); err != nil || !bytes.Equal(got, want) {
			t.Errorf("get with limit %d: %d bytes, %v", limit, len(got), err)
		}
	}
	for _, limit := range []int64{99, 1, 0} {
		_, err := s.Get(t.Context(), "l", limit)
		wantErr(t, fmt.Sprintf("get with limit %d", limit), err, store.ErrTooLarge)
	}
}

func testHead(t *testing.T, s store.Store) {
	before, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "h/x", Bytes(1, 12345))
	after, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Head(t.Context(), "h/x")
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "h/x" || got.Size != 12345 {
		t.Errorf("head: got %+v, want h/x of 12345 bytes", got)
	}
	if got.Modified.Before(before.Add(-time.Second)) || got.Modified.After(after.Add(time.Second)) {
		t.Errorf("head: modified %v, put between %v and %v by the store's clock", got.Modified, before, after)
	}
	err = s.List(t.Context(), "", func(i store.Info) error {
		if i.Name != got.Name || i.Size != got.Size || !i.Modified.Equal(got.Modified) {
			t.Errorf("list: got %+v, head gave %+v", i, got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func testListOrder(t *testing.T, s store.Store) {
	want := []string{
		"a-b/x", "a-c", "a/0", "a/b-c/z", "a/b/c", "a/b/d/e", "a/c", "a0", "b", "b-", "b-1/x", "b1/x", "ba/x/y", "z",
	}
	slices.Sort(want)
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(len(want)) {
		put(t, s, want[i], []byte(want[i]))
	}
	if got := names(t, s, ""); !slices.Equal(got, want) {
		t.Errorf("list:\n got %q\nwant %q", got, want)
	}
}

func testListPrefix(t *testing.T, s store.Store) {
	all := []string{"a", "ab/c", "b/a/1", "b/a/2", "b/aa/3", "b/b", "c/1"}
	for _, name := range all {
		put(t, s, name, []byte(name))
	}
	for prefix, want := range map[string][]string{
		"":         all,
		"a/":       nil,
		"ab/":      {"ab/c"},
		"b/":       {"b/a/1", "b/a/2", "b/aa/3", "b/b"},
		"b/a/1/":   nil,
		"b/a/":     {"b/a/1", "b/a/2"},
		"missing/": nil,
		"b/x/y/":   nil,
	} {
		if got := names(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("list %q: got %q, want %q", prefix, got, want)
		}
	}
	for _, prefix := range []string{"/", "b", "b//", "../", "B/", "b/.", "./"} {
		err := s.List(t.Context(), prefix, func(store.Info) error { return nil })
		wantErr(t, fmt.Sprintf("list %q", prefix), err, store.ErrName)
	}
}

func testListStops(t *testing.T, s store.Store) {
	for i := range 10 {
		put(t, s, fmt.Sprintf("s/%d/x", i), nil)
	}
	stop, seen := errors.New("stop"), 0
	err := s.List(t.Context(), "s/", func(store.Info) error {
		if seen++; seen == 4 {
			return stop
		}
		return nil
	})
	wantErr(t, "stopped list", err, stop)
	if seen != 4 {
		t.Errorf("list went on to %d objects after an error at 4", seen)
	}
}

func testListWhileChanging(t *testing.T, s store.Store) {
	var lasting []string
	for i := range 20 {
		name := fmt.Sprintf("w/%d/lasting", i)
		lasting = append(lasting, name)
		put(t, s, name, nil)
		put(t, s, fmt.Sprintf("w/%d/going", i), nil)
	}
	slices.Sort(lasting)
	var got []string
	i := 0
	err := s.List(t.Context(), "w/", func(info store.Info) error {
		got = append(got, info.Name)
		if i < 20 {
			put(t, s, fmt.Sprintf("w/%d/new", i), nil)
			if err := s.Delete(t.Context(), fmt.Sprintf("w/%d/going", i)); err != nil {
				t.Fatal(err)
			}
		}
		i++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("list out of order or twice: %q", got)
	}
	got = slices.DeleteFunc(got, func(name string) bool { return !strings.HasSuffix(name, "/lasting") })
	if !slices.Equal(got, lasting) {
		t.Errorf("list: got %q, want %q", got, lasting)
	}
}

func testDelete(t *testing.T, s store.Store) {
	ctx := t.Context()
	put(t, s, "d/a", Bytes(1, 300<<10))
	put(t, s, "d/b", Bytes(2, 100))
	if err := s.ReadAt(ctx, "d/a", make([]byte, 10), 5); err != nil { // now it may be open
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "d/a"); err != nil {
		t.Fatalf("delete: %v", err)
	}
	wantErr(t, "second delete", s.Delete(ctx, "d/a"), store.ErrNotFound)
	wantErr(t, "read of the deleted", s.ReadAt(ctx, "d/a", make([]byte, 10), 5), store.ErrNotFound)
	_, err := s.Get(ctx, "d/a", 1<<30)
	wantErr(t, "get of the deleted", err, store.ErrNotFound)
	if got := names(t, s, ""); !slices.Equal(got, []string{"d/b"}) {
		t.Errorf("list: got %q, want only d/b", got)
	}
	wantObject(t, s, "d/b", Bytes(2, 100))
}

func testNotFound(t *testing.T, s store.Store) {
	ctx := t.Context()
	put(t, s, "n/x/y", []byte("y"))
	for _, name := range []string{"a", "n/a", "n/x/z", "no/such/thing"} {
		_, err := s.Get(ctx, name, 100)
		wantErr(t, "get "+name, err, store.ErrNotFound)
		_, err = s.Head(ctx, name)
		wantErr(t, "head "+name, err, store.ErrNotFound)
		wantErr(t, "read "+name, s.ReadAt(ctx, name, make([]byte, 1), 0), store.ErrNotFound)
		wantErr(t, "delete "+name, s.Delete(ctx, name), store.ErrNotFound)
	}
}

func testNamesRefused(t *testing.T, s store.Store) {
	ctx := t.Context()
	put(t, s, "ok", []byte("ok"))
	for _, name := range []string{
		"", "/", "/ok", "ok/", "a//b", ".", "..", "../ok", "a/../ok", "./ok", "a/.", ".tmp-1", "a.b", "Ok", "a_b", "a b",
		"a\x00b", "a\\b", "é", "a\n", "a/" + strings.Repeat("x", store.MaxPart+1), strings.Repeat("abc/", store.MaxName/4) + "a",
	} {
		what := fmt.Sprintf(" %q", name)
		wantErr(t, "put"+what, s.Put(ctx, name, []byte("x")), store.ErrName)
		_, err := s.Get(ctx, name, 100)
		wantErr(t, "get"+what, err, store.ErrName)
		_, err = s.Head(ctx, name)
		wantErr(t, "head"+what, err, store.ErrName)
		wantErr(t, "read"+what, s.ReadAt(ctx, name, make([]byte, 1), 0), store.ErrName)
		wantErr(t, "delete"+what, s.Delete(ctx, name), store.ErrName)
	}
	if got := names(t, s, ""); !slices.Equal(got, []string{"ok"}) {
		t.Errorf("list: got %q, want only ok", got)
	}
}

func testLongNames(t *testing.T, s store.Store) {
	part := strings.Repeat("x", store.MaxPart)
	for _, name := range []string{part, "y/" + part + "/" + part, strings.Repeat("ab/", store.MaxName/3) + "c", "-", "0/-"} {
		put(t, s, name, []byte(name))
		wantObject(t, s, name, []byte(name))
	}
}

func testConcurrent(t *testing.T, s store.Store) {
	const workers, each = 4, 24
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				if err := cycle(t.Context(), s, w, i); err != nil {
					t.Errorf("worker %d, object %d: %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got, want := len(names(t, s, "")), workers*each/2; got != want {
		t.Errorf("%d objects left, want %d", got, want)
	}
}

// cycle puts, reads and lists an object, and deletes every second one.
func cycle(ctx context.Context, s store.Store, w, i int) error {
	name, size := fmt.Sprintf("c/%d/%d-%d", i%4, w, i), []int{10, 5000, 2 << 20}[i%3]
	want := Bytes(uint64(w*1000+i), size)
	if err := s.Put(ctx, name, want); err != nil {
		return err
	}
	p := make([]byte, size/2)
	if err := s.ReadAt(ctx, name, p, int64(size/3)); err != nil {
		return err
	}
	if !bytes.Equal(p, want[size/3:][:size/2]) {
		return errors.New("read other bytes than put")
	}
	found := false
	err := s.List(ctx, fmt.Sprintf("c/%d/", i%4), func(info store.Info) error {
		found = found || info.Name == name
		return nil
	})
	if err == nil && !found {
		err = errors.New("not listed")
	}
	if err == nil && i%2 == 0 {
		err = s.Delete(ctx, name)
	}
	return err
}

func testCancelled(t *testing.T, s store.Store) {
	put(t, s, "x", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, "put", s.Put(ctx, "y", []byte("y")), context.Canceled)
	_, err := s.Get(ctx, "x", 10)
	wantErr(t, "get", err, context.Canceled)
	wantErr(t, "read", s.ReadAt(ctx, "x", make([]byte, 1), 0), context.Canceled)
	wantErr(t, "delete", s.Delete(ctx, "x"), context.Canceled)
	wantErr(t, "list", s.List(ctx, "", func(store.Info) error { return nil }), context.Canceled)
	if got := names(t, s, ""); !slices.Equal(got, []string{"x"}) {
		t.Errorf("list: got %q, want only x", got)
	}
}

func testClock(t *testing.T, s store.Store) {
	last, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		now, err := s.Now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if now.Before(last) {
			t.Errorf("the store's clock went back from %v to %v", last, now)
		}
		last = now
	}
	if s.Location() == "" {
		t.Errorf("no location")
	}
}
