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
	"testing"
	"time"

	"platter/image/store"
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

// TestMixOfFaults makes random operations while a third of all requests go
// wrong, and compares with a model what each says.
func TestMixOfFaults(t *testing.T) {
	t.Parallel()
	seed, ops := uint64(1), 150
	if testing.Short() {
		ops = 40
	}
	if os.Getenv("PLATTER_TEST_LONG") != "" {
		seed, ops = uint64(time.Now().UnixNano()), 20_000
	}
	t.Logf("seed %d", seed)
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	proxy.Random(seed, 0.3, mixed())
	direct, s := open(t, server.Config("mix")), hasty(t, proxy.URL, "mix", 2*time.Second)
	m := &mix{rng: rand.New(rand.NewPCG(seed, 1)), s: s, direct: direct, known: map[string]record{}}
	for i := range ops {
		if err := m.step(t.Context(), i); err != nil {
			seen := proxy.Seen()
			t.Fatalf("seed %d, operation %d: %v\n%q", seed, i, err, seen[max(0, len(seen)-12):])
		}
	}
	if err := m.audit(t.Context()); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	t.Logf("%d operations, %d gave an error; %d requests", ops, m.failed, len(proxy.Seen()))
}

type mix struct {
	rng       *rand.Rand
	s, direct store.Store
	known     map[string]record
	failed    int
}

func (m *mix) step(ctx context.Context, i int) error {
	name := fmt.Sprintf("m/%d", m.rng.IntN(30))
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
	size := m.rng.IntN(200_000)
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
