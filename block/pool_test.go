package block

import (
	"context"
	"errors"
	"testing"
)

func TestPoolHandsOutItsBuffersAndWaits(t *testing.T) {
	p, err := NewPool(2, 12345)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	a, _ := p.Get(ctx)
	b, _ := p.Get(ctx)
	for _, buf := range [][]byte{a, b} {
		if len(buf) != 12345 || cap(buf) != 16384 || !aligned(buf) {
			t.Errorf("buffer of %d bytes, room for %d, aligned %v", len(buf), cap(buf), aligned(buf))
		}
	}
	if &a[0] == &b[0] {
		t.Fatal("one buffer handed out twice")
	}
	got := make(chan []byte)
	go func() {
		c, _ := p.Get(ctx)
		got <- c
	}()
	p.Put(a[:100])
	if c := <-got; &c[0] != &a[0] || len(c) != 12345 {
		t.Errorf("got a buffer of %d bytes, want the one put back, whole", len(c))
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := p.Get(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Get on a done context = %v", err)
	}
	p.Put(a)
	if err := p.Close(); err == nil {
		t.Error("Close with a buffer out succeeded")
	}
	if err := FreeAligned(b); err != nil {
		t.Error(err)
	}
}

func TestPoolPanicsOnForeignBuffers(t *testing.T) {
	p, err := NewPool(1, 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	b, _ := p.Get(context.Background())
	p.Put(b)
	for name, buf := range map[string][]byte{"put twice": b, "another's": make([]byte, 4096), "short": make([]byte, 10), "nil": nil} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			p.Put(buf)
		}()
	}
}

func TestAlignedBuffersOfNoSizeFail(t *testing.T) {
	for _, n := range []int{0, -1} {
		if _, err := AllocAligned(n); err == nil {
			t.Errorf("AllocAligned(%d) succeeded", n)
		}
	}
	if err := FreeAligned(nil); err != nil {
		t.Error(err)
	}
	if _, err := NewPool(0, 4096); err == nil {
		t.Error("a pool of no buffers")
	}
}
