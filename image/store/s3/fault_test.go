package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"platter/image/store"
	"platter/image/store/s3"
	"platter/image/store/s3/s3test"
	"platter/image/store/storetest"
)

// hasty is a store that soon gives up.
func hasty(t testing.TB, url, prefix string, patience time.Duration) *s3.Store {
	config := s3test.Config(url, prefix)
	config.Patience, config.Stall = patience, min(patience, time.Second)
	return open(t, config)
}

// A deed is one operation of a store and how to tell, from the server itself,
// whether its result is true.
type deed struct {
	name  string
	do    func(context.Context, store.Store) error
	truth func(t *testing.T, direct store.Store, err error) string // what is wrong
}

const old, fresh, doomed = "d/old", "d/fresh", "d/doomed"

func content(seed uint64) []byte { return storetest.Bytes(seed, 50_000) }

func deeds() []deed {
	var got []byte
	var part [9_000]byte
	var info store.Info
	var list []string
	return []deed{
		{"put", func(ctx context.Context, s store.Store) error {
			return s.Put(ctx, fresh, content(2)[:100], content(2)[100:])
		}, putTruth},
		{"put over another", func(ctx context.Context, s store.Store) error {
			return s.Put(ctx, old, content(3))
		}, func(t *testing.T, direct store.Store, err error) string {
			if !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNotDurable) {
				if err == nil {
					return "success"
				}
			}
			return holds(t, direct, old, content(1))
		}},
		{"get", func(ctx context.Context, s store.Store) (err error) {
			got, err = s.Get(ctx, old, 1<<20)
			return err
		}, func(_ *testing.T, _ store.Store, err error) string {
			return wrong(err, bytes.Equal(got, content(1)))
		}},
		{"read", func(ctx context.Context, s store.Store) error {
			return s.ReadAt(ctx, old, part[:], 777)
		}, func(_ *testing.T, _ store.Store, err error) string {
			return wrong(err, bytes.Equal(part[:], content(1)[777:][:len(part)]))
		}},
		{"head", func(ctx context.Context, s store.Store) (err error) {
			info, err = s.Head(ctx, old)
			return err
		}, func(_ *testing.T, _ store.Store, err error) string {
			return wrong(err, info.Size == 50_000)
		}},
		{"list", func(ctx context.Context, s store.Store) error {
			list = nil
			return s.List(ctx, "d/", func(o store.Info) error {
				list = append(list, o.Name)
				return nil
			})
		}, func(_ *testing.T, _ store.Store, err error) string {
			return wrong(err, slices.Equal(list, []string{doomed, old}))
		}},
		{"delete", func(ctx context.Context, s store.Store) error {
			return s.Delete(ctx, doomed)
		}, func(t *testing.T, direct store.Store, err error) string {
			if _, there := direct.Head(t.Context(), doomed); err == nil && there == nil {
				return "said to be deleted, and is there"
			}
			return ""
		}},
		{"now", func(ctx context.Context, s store.Store) error {
			now, err := s.Now(ctx)
			if err == nil && time.Since(now).Abs() > time.Minute {
				return fmt.Errorf("it is %s", now)
			}
			return err
		}, func(*testing.T, store.Store, error) string { return "" }},
	}
}

func wrong(err error, right bool) string {
	if err == nil && !right {
		return "success with wrong results"
	}
	if errors.Is(err, store.ErrNotFound) {
		return "not found, though it is there"
	}
	return ""
}

// putTruth (D2): success means that the object is there and right, an error that it
// is not there, and ErrNotDurable that nobody knows.
func putTruth(t *testing.T, direct store.Store, err error) string {
	if err == nil {
		return holds(t, direct, fresh, content(2))
	}
	_, there := direct.Head(t.Context(), fresh)
	switch {
	case errors.Is(err, store.ErrExists):
		return "said to be another's"
	case !errors.Is(err, store.ErrNotDurable) && there == nil:
		return "an error that leaves an object"
	}
	return ""
}

func holds(t *testing.T, direct store.Store, name string, want []byte) string {
	got, err := direct.Get(t.Context(), name, 1<<20)
	if err != nil || !bytes.Equal(got, want) {
		return fmt.Sprintf("%s holds %d bytes that are not those put, or: %v", name, len(got), err)
	}
	return ""
}

// unseen are results that no store can tell from the truth: a bit that turns
// over on a way without TLS, in what has no checksum; a server that overwrites
// after its probe; and one that says again and again that it has nothing.
func unseen(d string, f s3test.Fault, nth int) bool {
	switch f {
	case s3test.FlipAnswer:
		return d == "read" || d == "list"
	case s3test.NoCondition:
		return d == "put over another"
	case s3test.StaleNotFound, s3test.WordlessNotFound:
		return nth == 0 && slices.Contains([]string{"get", "read", "head"}, d)
	}
	return false
}

// try does every deed through a proxy with the fault in the nth request of each.
func try(t *testing.T, server *s3test.Server, f s3test.Fault, nth int, patience time.Duration) {
	proxy := server.Proxy(t)
	for i, d := range deeds() {
		prefix := fmt.Sprintf("%s/%d-%d-%d", strings.ReplaceAll(t.Name(), "/", "-"), f, nth, i)
		direct, s := open(t, server.Config(prefix)), hasty(t, proxy.URL, prefix, patience)
		for n, name := range []string{old, doomed} {
			if err := direct.Put(t.Context(), name, content(uint64(n+1))); err != nil {
				t.Error(err)
				return
			}
		}
		if _, err := s.Now(t.Context()); err != nil { // now it was met
			t.Error(err)
			return
		}
		rule := s3test.Rule{Nth: nth, Fault: f}
		if f == s3test.TwoWriters { // an answer to writes alone
			rule.Method = "PUT"
		}
		proxy.Fail(rule)
		err := d.do(t.Context(), s)
		proxy.Heal()
		if unseen(d.name, f, nth) {
			continue
		}
		if nth > 0 && err != nil && !(d.name == "put over another" && errors.Is(err, store.ErrExists)) {
			t.Errorf("%s, %s at request %d: %v", d.name, f, nth, err)
		}
		if what := d.truth(t, direct, err); what != "" {
			t.Errorf("%s, %s at request %d: %s (%v)\n%s", d.name, f, nth, what, err, strings.Join(proxy.Seen(), "\n"))
		}
	}
}

// everyFault runs f for all kinds of faults side by side.
func everyFault(f func(s3test.Fault)) {
	var wg sync.WaitGroup
	for _, fault := range s3test.Faults() {
		wg.Go(func() { f(fault) })
	}
	wg.Wait()
}

func TestFaultsThatPassAreNotNoticed(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	last := 2
	if testing.Short() {
		last = 1
	}
	for nth := 1; nth <= last; nth++ {
		everyFault(func(f s3test.Fault) { try(t, server, f, nth, time.Minute) })
	}
}

func TestFaultsThatStayNeverPassForSuccess(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it waits for many a store to lose its patience")
	}
	server := s3test.Start(t)
	everyFault(func(f s3test.Fault) { try(t, server, f, 0, 500*time.Millisecond) })
}

// "Not there" in answer to a DELETE comes from something else than the server:
// whether the object has gone, a look at it tells.
func TestDeleteThatNeverArrivesIsNoSuccess(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	for _, f := range []s3test.Fault{s3test.StaleNotFound, s3test.WordlessNotFound} {
		proxy := server.Proxy(t)
		prefix := "delete/" + strings.ReplaceAll(f.String(), " ", "-")
		direct, s := open(t, server.Config(prefix)), hasty(t, proxy.URL, prefix, 300*time.Millisecond)
		if err := direct.Put(t.Context(), doomed, content(1)); err != nil {
			t.Fatal(err)
		}
		proxy.Fail(s3test.Rule{Method: "DELETE", Fault: f})
		if err := s.Delete(t.Context(), doomed); err == nil {
			t.Errorf("%s: success", f)
		}
		if what := holds(t, direct, doomed, content(1)); what != "" {
			t.Error(what)
		}
	}
}

// "Not there" in answer to a write is nonsense, however often it comes.
func TestWriteThatIsAnsweredNotFoundIsSentAgain(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	s := hasty(t, proxy.URL, "write-not-found", time.Minute)
	for range 4 { // one request each
		proxy.Fail(s3test.Rule{Method: "PUT", Nth: 1, Fault: s3test.StaleNotFound})
	}
	if err := s.Put(t.Context(), "new", content(1)); err != nil {
		t.Fatal(err)
	}
	if what := holds(t, open(t, server.Config("write-not-found")), "new", content(1)); what != "" {
		t.Error(what)
	}
}
