// Package era is the tracker of dm-era devices: the kernel notes for each block
// the era in which it was last written, on a disk of its own, and so it knows
// after reboots and crashes, too.
//
// The history is that metadata. It is believed if it is on the same device, for
// the same device below, no earlier than the generation, and still knows of what
// had been written then. What is written to the device below while the dm-era
// device is not there, nobody sees.
package era

import (
	"context"
	"encoding/json"
	"fmt"

	"platter/block"
	"platter/block/snapshot"
	"platter/cbt"
)

// Name is the tracker's name in manifests, reports and --tracker.
const Name = "dm-era"

// Opener opens trackers of dm-era devices.
type Opener struct{}

// Name implements cbt.Opener.
func (Opener) Name() string { return Name }

// Method implements cbt.Opener.
func (Opener) Method() string { return Method }

// Base implements cbt.Opener: what is kept is in the kernel's metadata.
func (Opener) Base(cbt.Generation) string { return "" }

// Open begins a new era: all that is written from here on is of it, or later.
func (Opener) Open(ctx context.Context, v snapshot.View, _ snapshot.Consumer) (cbt.Tracker, error) {
	s, err := look(ctx, v.Info().Path)
	if err != nil {
		return nil, fmt.Errorf("tracker %s: %s: %w", Name, v.Info().Path, err)
	}
	t := &tracker{stack: s}
	if t.now, err = s.point(ctx, v.Info().Size); err != nil {
		return nil, fmt.Errorf("tracker %s: %w", Name, err)
	}
	return t, nil
}

// A point is what a generation says: an era, and what proves that the metadata
// is still of the same history.
type point struct {
	Version  int    `json:"era"` // of this format
	Metadata string `json:"metadata"`
	Origin   string `json:"origin"` // identities of devices
	Block    int64  `json:"block"`  // bytes
	Size     int64  `json:"size"`   // bytes
	Now      int64  `json:"now"`    // the era that begins with the view
	// Written are some blocks that had been written by then. Metadata that was
	// made anew has forgotten them.
	Written []int64 `json:"written"`
	Discards
}

const (
	version = 1
	// samples is how many blocks a generation names at most.
	samples = 64
)

func decode(g cbt.Generation) (p point, err error) {
	err = g.Decode(Name, &p, func() bool {
		return p.Version == version && p.Now > 0 && p.Metadata != ""
	})
	return p, err
}

// point is the history as it is, from a new era on.
func (s *stack) point(ctx context.Context, size int64) (p point, err error) {
	p = point{Version: version, Block: s.block, Size: size}
	if p.Metadata, err = identity(s.metadata); err != nil {
		return p, err
	}
	if p.Origin, err = identity(s.origin); err != nil {
		return p, err
	}
	p.Discards = s.discards()
	err = s.hold(ctx, func(era int64) error {
		p.Now = era
		all := reservoir{}
		if err := s.written(ctx, 1, all.add); err != nil {
			return err
		}
		p.Written = all.pick()
		return nil
	})
	return p, err
}

// A reservoir chooses some of the blocks of runs: the last one always, the
// others evenly over all.
type reservoir struct {
	runs  [][2]int64
	total int64
}

func (r *reservoir) add(from, to int64) {
	r.runs = append(r.runs, [2]int64{from, to})
	r.total += to - from
}

func (r *reservoir) pick() (picked []int64) {
	n := min(samples, r.total)
	before := int64(0)
	for _, run := range r.runs {
		for k := int64(len(picked)); k < n; k++ {
			at := (k+1)*r.total/n - 1 // of all, from 0
			if at >= before+run[1]-run[0] {
				break
			}
			picked = append(picked, run[0]+at-before)
		}
		before += run[1] - run[0]
	}
	return picked
}

type tracker struct {
	stack *stack
	now   point
}

func (*tracker) Name() string { return Name }

func (*tracker) Close() error { return nil }

// Mark names the era that began with the view.
func (t *tracker) Mark(context.Context) (cbt.Generation, error) { return json.Marshal(t.now) }

// Changed returns what was written in the era of the generation or later.
func (t *tracker) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	p, err := decode(since)
	if err != nil {
		return nil, err
	}
	if err := t.joinsUp(p); err != nil {
		return nil, fmt.Errorf("%w: %w", err, cbt.ErrHistoryLost)
	}
	set, ever := cbt.NewSet(p.Size), cbt.NewSet(p.Size)
	add := func(to *cbt.Set) func(from, to int64) {
		return func(from, end int64) {
			to.Add(block.Extent{Offset: from * p.Block, Length: (end - from) * p.Block})
		}
	}
	err = t.stack.hold(ctx, func(int64) error {
		if err := t.stack.written(ctx, 1, add(ever)); err != nil {
			return err
		}
		return t.stack.written(ctx, p.Now, add(set))
	})
	if err != nil {
		return nil, fmt.Errorf("read the metadata of %s: %w", t.stack.name, err)
	}
	for _, n := range p.Written {
		if !ever.Contains(block.Extent{Offset: n * p.Block, Length: 1}) {
			return nil, fmt.Errorf("the metadata of %s was made anew since: it has forgotten that block %d was ever written: %w", t.stack.name, n, cbt.ErrHistoryLost)
		}
	}
	return set, nil
}

// joinsUp returns an error unless the metadata goes on from p.
func (t *tracker) joinsUp(p point) error {
	n := t.now
	switch {
	case p.Metadata != n.Metadata:
		return fmt.Errorf("the metadata was on %s, now it is on %s", p.Metadata, n.Metadata)
	case p.Origin != n.Origin:
		return fmt.Errorf("the device below was %s, now it is %s", p.Origin, n.Origin)
	case p.Size != n.Size:
		return fmt.Errorf("the device had %d bytes, now it has %d", p.Size, n.Size)
	case p.Block != n.Block:
		return fmt.Errorf("the era's blocks had %d bytes, now they have %d", p.Block, n.Block)
	case p.Now >= n.Now:
		return fmt.Errorf("the metadata is in era %d, and the parent was made in era %d: it was made anew, or is an older copy", n.Now, p.Now)
	}
	return n.Discards.since(p.Discards)
}

// Commit has nothing to do: the kernel keeps all eras.
func (t *tracker) Commit(context.Context, cbt.Generation) error { return nil }
