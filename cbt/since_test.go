package cbt

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"platter/block"
)

// answer is a tracker that gives one answer.
type answer struct {
	Tracker
	set *Set
	err error
}

func (answer) Name() string { return "answer" }

func (a answer) Changed(context.Context, Generation) (*Set, error) { return a.set, a.err }

func TestSinceFallsBackToEverythingAndSaysWhy(t *testing.T) {
	part := NewSet(8192)
	part.Add(block.Extent{Offset: 4096, Length: 1})
	for _, c := range []struct {
		name  string
		from  answer
		bytes int64
		why   string
	}{
		{"an answer", answer{set: part}, 4096, ""},
		{"history lost", answer{err: fmt.Errorf("rebooted: %w", ErrHistoryLost)}, 8192, "rebooted: history lost"},
		{"the tracker fails", answer{err: errors.New("no such map")}, 8192, "no such map"},
		{"another size", answer{set: NewSet(8191)}, 8192, "tracker answer speaks of a device of 8191 bytes, this one has 8192"},
	} {
		set, why, err := Since(t.Context(), c.from, nil, 8192)
		if err != nil || why != c.why || set.Bytes() != c.bytes {
			t.Errorf("%s: got %d bytes, %q, %v, want %d bytes, %q", c.name, set.Bytes(), why, err, c.bytes, c.why)
		}
	}
}

func TestSinceHeedsItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Since(ctx, answer{err: ctx.Err()}, nil, 8192); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want %v", err, context.Canceled)
	}
}
