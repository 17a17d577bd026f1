package cbttest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"platter/block"
	"platter/cbt"
)

// A Flaw breaks a tracker that is right, in one way, and names the story of the
// suite that finds it.
type Flaw struct {
	Name, Story string
	Wrap        func(cbt.Tracker) cbt.Tracker
}

// CatchFlaws breaks trackers that open makes in each of a dozen ways, and fails
// where the suite does not notice. They have a Grain, and give sets. Left out is
// what is no flaw of theirs.
func CatchFlaws(t *testing.T, open func(t testing.TB, size int64, wrap func(cbt.Tracker) cbt.Tracker) Fixture, leftOut ...string) {
	for _, f := range flaws() {
		if slices.Contains(leftOut, f.Name) {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			err := Try(t, f.Story, func(t testing.TB, size int64) Fixture { return open(t, size, f.Wrap) })
			if err == nil {
				t.Fatalf("%s: passes", f.Story)
			}
			t.Logf("%s: %v", f.Story, err)
		})
	}
}

// answering changes what a tracker says.
type answering struct {
	cbt.Tracker
	answer func(set *cbt.Set, err error) (*cbt.Set, error)
}

func (a *answering) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	return a.answer(a.Tracker.Changed(ctx, since))
}

// bent is a flaw that changes sets: edit says what becomes of an extent.
func bent(edit func(block.Extent) block.Extent) func(cbt.Tracker) cbt.Tracker {
	return remade(func(s *cbt.Set) *cbt.Set {
		out := cbt.NewSet(s.Size())
		for e, ok := s.Next(0); ok; e, ok = s.Next(e.End()) {
			out.Add(edit(e))
		}
		return out
	})
}

func remade(edit func(*cbt.Set) *cbt.Set) func(cbt.Tracker) cbt.Tracker {
	return func(t cbt.Tracker) cbt.Tracker {
		return &answering{t, func(s *cbt.Set, err error) (*cbt.Set, error) {
			if s != nil {
				s = edit(s)
			}
			return s, err
		}}
	}
}

// wrong is a tracker that does what it should not when it is told to mark or to
// commit.
type wrong struct {
	cbt.Tracker
	mark   func(t cbt.Tracker, ctx context.Context) (cbt.Generation, error)
	commit func(t cbt.Tracker, ctx context.Context, g cbt.Generation) error
}

func (w *wrong) Mark(ctx context.Context) (cbt.Generation, error) {
	if w.mark == nil {
		return w.Tracker.Mark(ctx)
	}
	return w.mark(w.Tracker, ctx)
}

func (w *wrong) Commit(ctx context.Context, g cbt.Generation) error {
	if w.commit == nil {
		return w.Tracker.Commit(ctx, g)
	}
	return w.commit(w.Tracker, ctx, g)
}

func flaws() []Flaw {
	const unit = 4096
	var last *cbt.Set
	var first cbt.Generation
	return []Flaw{
		{"loses what it begins with", "edges of extents", remade(func(s *cbt.Set) *cbt.Set {
			out := cbt.NewSet(s.Size())
			first, _ := s.Next(0)
			for e, ok := s.Next(first.End()); ok; e, ok = s.Next(e.End()) {
				out.Add(e)
			}
			return out
		})},
		{"ends a unit early", "edges of extents", bent(func(e block.Extent) block.Extent { e.Length -= unit; return e })},
		{"begins a unit late", "edges of extents", bent(func(e block.Extent) block.Extent {
			return block.Extent{Offset: e.Offset + unit, Length: e.Length - unit}
		})},
		{"is a block off", "edges of extents", bent(func(e block.Extent) block.Extent { e.Offset += 64 << 10; return e })},
		{"loses a part of everything long", "edges of extents", bent(func(e block.Extent) block.Extent { e.Length = min(e.Length, 64<<10); return e })},
		{"gives nothing", "cost", remade(func(s *cbt.Set) *cbt.Set { return cbt.NewSet(s.Size()) })},
		{"gives everything", "cost", remade(func(s *cbt.Set) *cbt.Set { return cbt.Unknown(s.Size()) })},
		{"speaks of another size", "cost", remade(func(s *cbt.Set) *cbt.Set { return cbt.NewSet(s.Size() - 512) })},
		{"gives what it gave before", "writes during a run", remade(func(s *cbt.Set) *cbt.Set {
			was := last
			if last = s; was == nil || was.Size() != s.Size() {
				return s
			}
			return was
		})},
		{"vouches for what it cannot know", "foreign generation", func(t cbt.Tracker) cbt.Tracker {
			return &vouching{Tracker: t}
		}},
		{"does not say why", "first run", func(t cbt.Tracker) cbt.Tracker {
			return &answering{t, func(s *cbt.Set, err error) (*cbt.Set, error) {
				if errors.Is(err, cbt.ErrHistoryLost) {
					err = cbt.ErrHistoryLost
				}
				return s, err
			}}
		}},
		{"commits when it marks", "run abandoned", func(t cbt.Tracker) cbt.Tracker {
			return &wrong{Tracker: t, mark: func(t cbt.Tracker, ctx context.Context) (cbt.Generation, error) {
				g, err := t.Mark(ctx)
				return g, errors.Join(err, t.Commit(ctx, g))
			}}
		}},
		{"marks what was", "cost", func(t cbt.Tracker) cbt.Tracker {
			return &wrong{Tracker: t, mark: func(t cbt.Tracker, ctx context.Context) (cbt.Generation, error) {
				g, err := t.Mark(ctx)
				if first == nil {
					first = g
				}
				return first, err
			}}
		}},
	}
}

// vouching takes any generation for one since which nothing was written.
type vouching struct {
	cbt.Tracker
}

func (v *vouching) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	s, err := v.Tracker.Changed(ctx, since)
	if !errors.Is(err, cbt.ErrHistoryLost) {
		return s, err
	}
	return cbt.NewSet(deviceSize), nil
}
