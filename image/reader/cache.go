package reader

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// A cache keeps what was used last, within a number of bytes, and loads each
// value once however many ask for it. It is safe for concurrent use.
type cache[K comparable, V any] struct {
	limit int64
	size  func(V) int64

	mu      sync.Mutex
	used    int64
	byKey   map[K]*list.Element // of *cached[K, V]
	recent  *list.List          // last used first
	loading map[K]*loading[V]
}

type cached[K comparable, V any] struct {
	key   K
	value V
}

type loading[V any] struct {
	done  chan struct{}
	value V
	err   error
}

func newCache[K comparable, V any](limit int64, size func(V) int64) *cache[K, V] {
	return &cache[K, V]{
		limit: limit, size: size,
		byKey: make(map[K]*list.Element), recent: list.New(), loading: make(map[K]*loading[V]),
	}
}

func (c *cache[K, V]) get(key K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(key)
}

func (c *cache[K, V]) find(key K) (v V, ok bool) {
	e, ok := c.byKey[key]
	if !ok {
		return v, false
	}
	c.recent.MoveToFront(e)
	return e.Value.(*cached[K, V]).value, true
}

func (c *cache[K, V]) put(key K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byKey[key]; ok {
		return
	}
	c.byKey[key] = c.recent.PushFront(&cached[K, V]{key, v})
	c.used += c.size(v)
	for c.used > c.limit && c.recent.Len() > 0 {
		old := c.recent.Remove(c.recent.Back()).(*cached[K, V])
		delete(c.byKey, old.key)
		c.used -= c.size(old.value)
	}
}

// load returns the value of key, by f unless it is there. Errors are not kept.
func (c *cache[K, V]) load(ctx context.Context, key K, f func() (V, error)) (v V, err error) {
	for {
		c.mu.Lock()
		if v, ok := c.find(key); ok {
			c.mu.Unlock()
			return v, nil
		}
		l, busy := c.loading[key]
		if !busy {
			l = &loading[V]{done: make(chan struct{})}
			c.loading[key] = l
			c.mu.Unlock()
			return c.fill(key, l, f)
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return v, ctx.Err()
		case <-l.done:
		}
		// That another's job was stopped is no reason to fail this one.
		if errors.Is(l.err, context.Canceled) || errors.Is(l.err, context.DeadlineExceeded) {
			continue
		}
		return l.value, l.err
	}
}

func (c *cache[K, V]) fill(key K, l *loading[V], f func() (V, error)) (V, error) {
	l.value, l.err = f()
	if l.err == nil {
		c.put(key, l.value)
	}
	c.mu.Lock()
	delete(c.loading, key)
	c.mu.Unlock()
	close(l.done)
	return l.value, l.err
}
