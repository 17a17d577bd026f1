package job

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"platter/image"
	"platter/image/segment"
)

// A source is a segment whose live records are to be moved.
type source struct {
	*live
	merged bool // for its size, not for what it holds of no use
}

// useful returns about how many bytes of a segment are in use: its share of
// records that are.
func (l *live) useful() int64 {
	if l.Records == 0 {
		return 0
	}
	return l.size * int64(l.count) / int64(l.Records)
}

// unused returns about how many bytes of a segment are of no use.
func (l *live) unused() int64 { return l.size - l.useful() }

// Segments are merged when there are mergeCount of one kind and about one
// size: below a 64th, an 8th or a half of a full one. So a byte is moved three
// times at most until it lies in a large segment.
const mergeCount = 8

func mergeSizes() []int64 { return []int64{64, 8, 2} }

// plan returns what to move: segments that hold too much of no use, and small
// ones.
func (c *collector) plan(ctx context.Context) ([]source, error) {
	candidates, stored, unused := c.candidates()
	room := c.mostMoved()
	var sources []source
	var rest []*live
	for _, l := range candidates {
		switch {
		case float64(unused) <= c.opts.MaxUnused*float64(stored) || float64(l.unused()) <= c.opts.MaxUnused*float64(l.size):
			rest = append(rest, l)
		case l.size > room:
			c.report.Postponed += l.size
		default:
			room -= l.size
			unused, stored = unused-l.unused(), stored-l.unused()
			sources = append(sources, source{l, false})
		}
	}
	for _, kind := range []segment.Kind{segment.Data, segment.Pages} {
		merged, err := c.small(ctx, kind, rest)
		if err != nil {
			return nil, err
		}
		for _, l := range merged {
			if room -= l.size; room < 0 {
				break
			}
			unused -= l.unused()
			sources = append(sources, source{l, true})
		}
	}
	c.report.Unused = max(unused, 0)
	if c.report.Postponed > 0 {
		c.notice("segments of %d bytes hold more of no use than they may: they wait for the next collection, for this one moves no more", c.report.Postponed)
	}
	return c.settledSources(ctx, sources)
}

// candidates returns the segments that may be moved, those that hold the least
// in use first, and what all segments hold that are in use, and hold of no use.
//
// Where each that is moved holds more of no use than is allowed, and none does
// that stays, all together hold no more than is allowed: whichever is moved
// first. So there is never a reason to move one that does not.
func (c *collector) candidates() (list []*live, stored, unused int64) {
	condemned, damaged := c.state.IDs(), c.damagedSources()
	for id, l := range c.marks.segments {
		if condemned[id] || c.gone[id] || !l.used || l.bits == nil {
			continue
		}
		stored += l.size
		unused += l.unused()
		// Without the data key only what is vouched for stays so when it is moved.
		trusted := l.vouched || l.Kind == segment.Pages || c.env.Repo.Keys.CanRead()
		if !c.young[id] && !damaged[id] && l.count > 0 && trusted {
			list = append(list, l)
		}
	}
	slices.SortFunc(list, func(a, b *live) int {
		return cmp.Or(cmp.Compare(float64(a.count)/float64(a.Records), float64(b.count)/float64(b.Records)),
			cmp.Compare(b.size, a.size), slices.Compare(a.ID[:], b.ID[:]))
	})
	return list, stored, unused
}

// mostMoved bounds what is stored twice until the next collection, in bytes of
// sources: a share of everything, or a few segments where that is next to
// nothing.
func (c *collector) mostMoved() int64 {
	if c.opts.MaxDelete == 1 {
		return math.MaxInt64
	}
	return max(int64(c.opts.MaxDelete/2*float64(c.total)), 4*maxSegment)
}

// small returns the segments of a kind that are worth merging.
func (c *collector) small(ctx context.Context, kind segment.Kind, candidates []*live) (list []*live, err error) {
	full := c.segmentSize(kind)
	tiers := make([][]*live, len(mergeSizes()))
	for _, l := range candidates {
		for i, part := range mergeSizes() {
			if l.Kind == kind && l.useful() < full/part {
				tiers[i] = append(tiers[i], l)
				break
			}
		}
	}
	for _, tier := range tiers {
		if len(tier) < mergeCount {
			continue
		}
		var bytes int64
		for _, l := range tier {
			bytes += l.useful()
		}
		origins, err := c.origins(ctx, tier)
		if err != nil {
			return nil, err
		}
		// Few large ones must come of it, also where key tables fill up first.
		into := max((bytes+full-1)/full, int64(origins+segment.MaxMoved-1)/segment.MaxMoved)
		if into <= int64(len(tier)/2) {
			list = append(list, tier...)
		}
	}
	return list, nil
}

func (c *collector) segmentSize(kind segment.Kind) int64 {
	if kind == segment.Pages {
		return pageSegment
	}
	return min(max(c.env.Memory/8, minSegment), maxSegment) &^ (segment.Align - 1)
}

// damagedSources returns the segments in which a live record is known to be
// damaged: they stay as they are.
func (c *collector) damagedSources() map[image.SegmentID]bool {
	set := maps.Clone(c.marks.ruined)
	for at := range c.marks.damaged {
		if l := c.marks.segments[at.Segment]; l != nil && int64(at.Record/64) < int64(len(l.bits)) && l.has(at.Record) {
			set[at.Segment] = true
		}
	}
	return set
}

// origins returns how many entries the key tables of some segments have in
// all, where payloads are sealed.
func (c *collector) origins(ctx context.Context, list []*live) (n int, err error) {
	if !c.env.Repo.Keys.Encrypted() {
		return 0, nil
	}
	for _, l := range list {
		f, err := c.marks.footer(ctx, l.ID)
		if err != nil {
			return 0, err
		}
		if f == nil {
			continue
		}
		seen := map[uint16]bool{}
		for i := range f.Records {
			seen[f.Records[i].Origin] = true
		}
		n += len(seen)
	}
	return n, nil
}

// settledSources leaves out segments of runs at work, and puts the rest in the
// order in which they were written, by kind: what lay together stays so.
func (c *collector) settledSources(ctx context.Context, sources []source) ([]source, error) {
	atWork := c.atWork()
	var list []source
	for _, s := range sources {
		f, err := c.marks.footer(ctx, s.ID)
		if err != nil {
			return nil, err
		}
		if f == nil {
			c.notice("segment %s should be repacked, and its end cannot be read: run platter verify", s.ID)
			continue
		}
		if !atWork[fmt.Sprintf("%x", f.Run)] {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b source) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Order(), b.Order()))
	})
	return list, nil
}

func (c *collector) notice(format string, args ...any) {
	c.report.Notices = append(c.report.Notices, fmt.Sprintf(format, args...))
}

func (c *collector) repacked(s source) {
	c.report.Repacked = append(c.report.Repacked, Repacked{Segment: s.ID, Size: s.size, Live: s.useful(), Merged: s.merged})
}

// ids returns the sources' names as a set.
func ids(sources []source) map[image.SegmentID]bool {
	set := make(map[image.SegmentID]bool, len(sources))
	for _, s := range sources {
		set[s.ID] = true
	}
	return set
}
