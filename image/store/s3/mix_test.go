package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"platter/image/store"
	"platter/image/store/s3"
	"platter/image/store/s3/s3test"
	"platter/image/store/storetest"
)

// A record is what a model knows of an object.
type record struct {
	seed  uint64
	size  int
	maybe bool // nobody knows whether it is there
}

// mixed are the faults of the mix: not those that no store can tell from the
// truth where there is no TLS.
func mixed() []s3test.Fault {
	return slices.DeleteFunc(s3test.Faults(), func(f s3test.Fault) bool {
		return f == s3test.FlipAnswer || f == s3test.NoCondition || f == s3test.TwoWriters
	})
}

// TestMixesOfFaults makes random operations while a third of all requests go
// wrong, many short stories side by side, and compares with a model what each
// says. The campaign is 20,000 of them; PLATTER_TEST_SEED repeats one.
func TestMixesOfFaults(t *testing.T) {
	t.Parallel()
	first, stories := uint64(1), 48
	if testing.Short() {
		stories = 12
	}
	if os.Getenv("PLATTER_TEST_LONG") != "" {
		first, stories = uint64(time.Now().UnixNano()), 20_000
	}
	if seed, err := strconv.ParseUint(os.Getenv("PLATTER_TEST_SEED"), 10, 64); err == nil {
		first, stories = seed, 1
	}
	server := s3test.Start(t)
	var total tally
	var g errgroup.Group
	g.SetLimit(64) // most of the time they wait
	for i := range stories {
		g.Go(func() error { return story(t, server, first+uint64(i), &total) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d stories from seed %d on: %d operations, %d gave an error; %d requests, of which went wrong: %v",
		stories, first, total.operations, total.failed, total.requests, total.faults)
	if stories >= 1000 && len(total.faults) < len(mixed()) {
		t.Errorf("%d kinds of faults were met, want all %d", len(total.faults), len(mixed()))
	}
}

// A tally is of all stories together.
type tally struct {
	mu                           sync.Mutex
	operations, failed, requests int
	faults                       map[string]int
}

func (c *tally) add(operations, failed int, seen []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.operations, c.failed, c.requests = c.operations+operations, c.failed+failed, c.requests+len(seen)
	if c.faults == nil {
		c.faults = map[string]int{}
	}
	for _, line := range seen {
		if f := line[strings.LastIndex(line, ": ")+2:]; f != s3test.None.String() {
			c.faults[f]++
		}
	}
}

// story is one mix: a few operations on a few names.
func story(t *testing.T, server *s3test.Server, seed uint64, total *tally) error {
	const operations = 8
	proxy := server.Proxy(t)
	defer proxy.Close()
	proxy.Random(seed, 0.3, mixed())
	prefix := fmt.Sprintf("mix/%d", seed)
	config := s3test.Config(proxy.URL, prefix)
	config.Patience, config.Stall = 1500*time.Millisecond, 200*time.Millisecond
	s, err := s3.Open(t.Context(), config)
	if err != nil {
		return err
	}
	defer s.Close()
	direct, err := s3.Open(t.Context(), server.Config(prefix))
	if err != nil {
		return err
	}
	defer direct.Close()
	m := &mix{rng: rand.New(rand.NewPCG(seed, 1)), s: s, direct: direct, known: map[string]record{}}
	tell := func(i int, err error) error {
		seen := proxy.Seen()
		return fmt.Errorf("seed %d, operation %d: %w\n%q", seed, i, err, seen[max(0, len(seen)-12):])
	}
	for i := range operations {
		if err := m.step(t.Context(), i); err != nil {
			return tell(i, err)
		}
	}
	total.add(operations, m.failed, proxy.Seen())
	if err := m.audit(t.Context()); err != nil {
		return tell(operations, err)
	}
	return nil
}

type mix struct {
	rng       *rand.Rand
	s, direct store.Store
	known     map[string]record
	failed    int
}

func (m *mix) step(ctx context.Context, i int) error {
	name := fmt.Sprintf("m/%d", m.rng.IntN(3))
	var err error
	switch m.rng.IntN(6) {
	case 0, 1:
		err = m.put(ctx, name, uint64(i))
	case 2:
		err = m.get(ctx, name)
	case 3:
		err = m.read(ctx, name)
	case 4:
		err = m.list(ctx)
	case 5:
		err = m.delete(ctx, name)
	}
	return err
}

func (m *mix) put(ctx context.Context, name string, seed uint64) error {
	r, there := m.known[name]
	size := m.rng.IntN(60_000)
	err := m.s.Put(ctx, name, storetest.Bytes(seed, size))
	switch {
	case err == nil && there && !r.maybe:
		return fmt.Errorf("put over %s: success", name)
	case err == nil:
		m.known[name] = record{seed: seed, size: size}
	case errors.Is(err, store.ErrExists) && !there:
		return fmt.Errorf("put %s, which is free: %w", name, err)
	case errors.Is(err, store.ErrNotDurable) && !there:
		m.known[name] = record{seed: seed, size: size, maybe: true}
	}
	return m.note(err)
}

// note counts errors.
func (m *mix) note(err error) error {
	if err != nil {
		m.failed++
	}
	return nil
}

func (m *mix) get(ctx context.Context, name string) error {
	got, err := m.s.Get(ctx, name, 1<<20)
	return m.judge(name, got, 0, err)
}

func (m *mix) read(ctx context.Context, name string) error {
	r := m.known[name]
	off := m.rng.IntN(r.size + 1)
	p := make([]byte, r.size-off)
	err := m.s.ReadAt(ctx, name, p, int64(off))
	if r.maybe && errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return m.judge(name, p, off, err)
}

func (m *mix) judge(name string, got []byte, off int, err error) error {
	r, there := m.known[name]
	switch {
	case err == nil && !there:
		return fmt.Errorf("%s is not there and was read", name)
	case err == nil && !r.maybe && !bytes.Equal(got, storetest.Bytes(r.seed, r.size)[off:]):
		return fmt.Errorf("%s: %d bytes from %d on are not those put", name, len(got), off)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s ends too soon: %w", name, err)
	}
	return m.note(err)
}

func (m *mix) list(ctx context.Context) error {
	var got []string
	err := m.s.List(ctx, "m/", func(o store.Info) error {
		got = append(got, o.Name)
		return nil
	})
	if err != nil {
		return m.note(err)
	}
	return m.compare(got)
}

func (m *mix) compare(got []string) error {
	for _, name := range got {
		if _, there := m.known[name]; !there {
			return fmt.Errorf("%s is listed and not there", name)
		}
	}
	for name, r := range m.known {
		if !r.maybe && !slices.Contains(got, name) {
			return fmt.Errorf("%s is there and not listed in %q", name, got)
		}
	}
	return nil
}

func (m *mix) delete(ctx context.Context, name string) error {
	r, there := m.known[name]
	err := m.s.Delete(ctx, name)
	switch {
	case err == nil && !there:
		return fmt.Errorf("%s is not there and was deleted", name)
	case err == nil:
		delete(m.known, name)
	case there && !errors.Is(err, store.ErrNotFound):
		r.maybe = true
		m.known[name] = r
	}
	return m.note(err)
}

// audit looks at the server itself.
func (m *mix) audit(ctx context.Context) error {
	var got []string
	err := m.direct.List(ctx, "", func(o store.Info) error {
		got = append(got, o.Name)
		return nil
	})
	if err != nil {
		return err
	}
	if err := m.compare(got); err != nil {
		return err
	}
	for name, r := range m.known {
		p, err := m.direct.Get(ctx, name, 1<<20)
		if !r.maybe && (err != nil || !bytes.Equal(p, storetest.Bytes(r.seed, r.size))) {
			return fmt.Errorf("%s holds %d bytes that are not those put, or: %w", name, len(p), err)
		}
	}
	return nil
}
