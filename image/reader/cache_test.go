package reader

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestCacheStaysWithinItsLimit(t *testing.T) {
	c := newCache[int](10, func(n int) int64 { return int64(n) })
	for _, n := range []int{4, 5, 6, 4, 11, 1, 10, 0} {
		c.put(n, n)
		if c.used > 10 {
			t.Fatalf("after %d: %d used, limit 10", n, c.used)
		}
	}
	if _, ok := c.get(10); !ok {
		t.Error("a value as large as the limit is not kept")
	}
	if _, ok := c.get(11); ok {
		t.Error("a value larger than the limit is kept")
	}
	c = newCache[int](10, func(n int) int64 { return int64(n) })
	c.put(3, 3)
	c.put(4, 4)
	c.get(3)
	c.put(5, 5)
	if _, ok := c.get(4); ok {
		t.Error("the one used longest ago is still there")
	}
	if _, ok := c.get(3); !ok {
		t.Error("the one used last is gone")
	}
}

func TestCacheLoadsEachValueOnce(t *testing.T) {
	c := newCache[int](1<<20, func(int) int64 { return 1 })
	var calls atomic.Int64
	start := make(chan struct{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			<-start
			v, err := c.load(t.Context(), 7, func() (int, error) { calls.Add(1); return 49, nil })
			if v != 49 || err != nil {
				t.Errorf("got %d, %v", v, err)
			}
		})
	}
	close(start)
	wg.Wait()
	if calls.Load() != 1 {
		t.Errorf("loaded %d times, want once", calls.Load())
	}
}

func TestCacheErrorsAreNotKeptAndCancellingOneSparesOthers(t *testing.T) {
	c := newCache[int](1<<20, func(int) int64 { return 1 })
	broken := errors.New("broken")
	if _, err := c.load(t.Context(), 1, func() (int, error) { return 0, broken }); err != broken {
		t.Errorf("got %v, want %v", err, broken)
	}
	if v, err := c.load(t.Context(), 1, func() (int, error) { return 5, nil }); v != 5 || err != nil {
		t.Errorf("after an error: got %d, %v", v, err)
	}
	// One loads and is cancelled while another waits for it.
	loading, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.load(t.Context(), 2, func() (int, error) { close(loading); <-release; return 0, context.Canceled })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the cancelled one: got %v", err)
		}
	})
	<-loading
	wg.Go(func() {
		v, err := c.load(t.Context(), 2, func() (int, error) { return 6, nil })
		if v != 6 || err != nil {
			t.Errorf("the other: got %d, %v", v, err)
		}
	})
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.load(stopped, 2, func() (int, error) { return 6, nil }); err == nil && stopped.Err() == nil {
		t.Error("a cancelled waiter got a value")
	}
	close(release)
	wg.Wait()
}
