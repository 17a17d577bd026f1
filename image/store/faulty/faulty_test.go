package faulty_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"platter/image/store"
	"platter/image/store/faulty"
	"platter/image/store/mem"
	"platter/image/store/storetest"
)

func TestSuite(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return faulty.New(mem.New()) })
}

// calls makes one operation of each kind on s.
func calls(t *testing.T, s store.Store) map[faulty.Kind]error {
	ctx := t.Context()
	errs := make(map[faulty.Kind]error)
	errs[faulty.Put] = s.Put(ctx, "a/new", []byte("new"))
	errs[faulty.ReadAt] = s.ReadAt(ctx, "a/old", make([]byte, 2), 1)
	_, errs[faulty.Get] = s.Get(ctx, "a/old", 10)
	_, errs[faulty.Head] = s.Head(ctx, "a/old")
	errs[faulty.List] = s.List(ctx, "a/", func(store.Info) error { return nil })
	errs[faulty.Delete] = s.Delete(ctx, "a/doomed")
	_, errs[faulty.Now] = s.Now(ctx)
	return errs
}

func filled(t *testing.T) (*faulty.Store, *mem.Store) {
	t.Helper()
	under := mem.New()
	s := faulty.New(under)
	for _, name := range []string{"a/old", "a/doomed"} {
		if err := s.Put(t.Context(), name, []byte("content")); err != nil {
			t.Fatal(err)
		}
	}
	s.Forget()
	return s, under
}

func TestEachKindFails(t *testing.T) {
	kinds := []faulty.Kind{faulty.Put, faulty.ReadAt, faulty.Get, faulty.Head, faulty.List, faulty.Delete, faulty.Now}
	for _, kind := range kinds {
		for _, after := range []bool{false, true} {
			s, under := filled(t)
			s.Fail(faulty.Rule{Kind: kind, After: after})
			for k, err := range calls(t, s) {
				if errors.Is(err, faulty.ErrInjected) != (k == kind) {
					t.Errorf("rule for %s: %s returned %v", kind, k, err)
				}
			}
			_, err := under.Head(t.Context(), "a/new")
			if done, want := err == nil, kind != faulty.Put || after; done != want {
				t.Errorf("rule for %s, after %v: put had its effect: %v, want %v", kind, after, done, want)
			}
			_, err = under.Head(t.Context(), "a/doomed")
			if gone, want := err != nil, kind != faulty.Delete || after; gone != want {
				t.Errorf("rule for %s, after %v: delete had its effect: %v, want %v", kind, after, gone, want)
			}
		}
	}
}

func TestNthOfMatching(t *testing.T) {
	s := faulty.New(mem.New())
	mine := errors.New("mine")
	s.Fail(faulty.Rule{Kind: faulty.Put, Prefix: "x/", Nth: 2, Err: mine})
	s.Fail(faulty.Rule{Nth: 5, Err: store.ErrNotDurable})
	var got []string
	for i, name := range []string{"x/1", "y/1", "x/2", "x/3", "y/2", "y/3"} {
		err := s.Put(t.Context(), name, nil)
		switch {
		case errors.Is(err, mine):
			got = append(got, fmt.Sprint(i, " mine"))
		case errors.Is(err, store.ErrNotDurable):
			got = append(got, fmt.Sprint(i, " not durable"))
		case err != nil:
			t.Error(err)
		}
	}
	if want := []string{"2 mine", "4 not durable"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	s.Heal()
	if err := s.Put(t.Context(), "x/2", nil); err != nil {
		t.Errorf("healed: %v", err)
	}
}

func TestRoom(t *testing.T) {
	s := faulty.New(mem.New())
	s.SetRoom(10)
	put := func(name string, n int) error { return s.Put(t.Context(), name, make([]byte, n)) }
	if err := put("a", 6); err != nil {
		t.Fatal(err)
	}
	if err := put("a", 4); !errors.Is(err, store.ErrExists) {
		t.Errorf("got %v, want ErrExists", err)
	}
	if err := put("b", 5); !errors.Is(err, store.ErrFull) {
		t.Errorf("one more than there is room for: got %v, want ErrFull", err)
	}
	if err := put("b", 4); err != nil {
		t.Errorf("exactly what there is room for: %v", err)
	}
}

func TestDamage(t *testing.T) {
	s, _ := filled(t)
	s.Fail(faulty.Rule{Kind: faulty.Get, Nth: 1, Damage: faulty.Flip(8)})
	s.Fail(faulty.Rule{Kind: faulty.Get, Nth: 2, Damage: faulty.Truncate(3)})
	s.Fail(faulty.Rule{Kind: faulty.ReadAt, Nth: 1, Damage: faulty.Flip(0)})
	s.Fail(faulty.Rule{Kind: faulty.ReadAt, Nth: 2, Damage: faulty.Truncate(1)})
	for _, want := range []string{"cnntent", "con", "content"} {
		got, err := s.Get(t.Context(), "a/old", 10)
		if err != nil || string(got) != want {
			t.Errorf("get: got %q, %v, want %q", got, err, want)
		}
	}
	for _, want := range []struct {
		data string
		err  error
	}{{"nn", nil}, {"on", io.ErrUnexpectedEOF}, {"on", nil}} {
		p := make([]byte, 2)
		err := s.ReadAt(t.Context(), "a/old", p, 1)
		if !errors.Is(err, want.err) || !bytes.Equal(p, []byte(want.data)) {
			t.Errorf("read: got %q, %v, want %q, %v", p, err, want.data, want.err)
		}
	}
}

func TestRecord(t *testing.T) {
	s, _ := filled(t)
	var begun []string
	s.Before(func(op faulty.Op) { begun = append(begun, op.String()) })
	calls(t, s)
	s.Fail(faulty.Rule{Kind: faulty.Put})
	s.Put(t.Context(), "b", nil)
	want := []string{
		"put a/new", "read a/old", "get a/old", "head a/old", "list a/", "delete a/doomed", "now",
		"put b: put b: injected fault",
	}
	var got []string
	for _, op := range s.Ops() {
		got = append(got, op.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("record:\n got %q\nwant %q", got, want)
	}
	if want[7] = "put b"; !slices.Equal(begun, want) {
		t.Errorf("before:\n got %q\nwant %q", begun, want)
	}
	if n := s.Count(faulty.Put, ""); n != 2 {
		t.Errorf("%d puts on record, want 2", n)
	}
	if n := s.Count(faulty.Any, "a/o"); n != 3 {
		t.Errorf("%d operations on a/o... on record, want 3", n)
	}
}

func TestSkew(t *testing.T) {
	s, under := filled(t)
	s.SetSkew(-time.Hour)
	want, _ := under.Now(t.Context())
	if got, err := s.Now(t.Context()); err != nil || !got.Equal(want.Add(-time.Hour)) {
		t.Errorf("got %v, %v, want an hour before %v", got, err, want)
	}
}
