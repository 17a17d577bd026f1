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

// Segments are merged when there are mergeCount of one kind and about one
// size: below a 64th, an 8th or a half of a full one. So a byte is moved three
// times at most until it lies in a large segment.
const mergeCount = 8

func mergeSizes() []int64 { return []int64{64, 8, 2} }

// plan returns what to move. Segments that hold the least in use go first,
// until what stays holds no more of no use than it may.
func (c *collector) plan(ctx context.Context) ([]source, error) {
	condemned, atWork, damaged := c.state.IDs(), c.atWork(), c.damagedSources()
	var candidates []*live
	var stored, unused int64
	for id, l := range c.marks.segments {
		if condemned[id] || c.gone[id] || !l.used || l.bits == nil {
			continue
		}
		stored += l.size
		unused += l.size - l.useful()
		// Without the data key only what is vouched for stays so when it is moved.
		trusted := l.vouched || l.Kind == segment.Pages || c.env.Repo.Keys.CanRead()
		if !c.young[id] && !damaged[id] && l.count > 0 && trusted {
			candidates = append(candidates, l)
		}
	}
	slices.SortFunc(candidates, func(a, b *live) int {
		return cmp.Or(cmp.Compare(float64(a.count)/float64(a.Records), float64(b.count)/float64(b.Records)),
			cmp.Compare(b.size, a.size), slices.Compare(a.ID[:], b.ID[:]))
	})
	var sources []source
	most := c.mostMoved()
	for len(candidates) > 0 && c.opts.MaxUnused < 1 {
		l := candidates[0]
		waste := l.size - l.useful()
		if waste <= 0 || float64(unused) <= c.opts.MaxUnused*float64(stored) || most < l.size {
			break
		}
		most -= l.size
		unused, stored = unused-waste, stored-waste
		sources, candidates = append(sources, source{l, false}), candidates[1:]
	}
	for _, kind := range []segment.Kind{segment.Data, segment.Pages} {
		merged, err := c.small(ctx, kind, candidates)
		if err != nil {
			return nil, err
		}
		for _, l := range merged {
			if most -= l.size; most < 0 {
				break
			}
			unused -= l.size - l.useful()
			sources = append(sources, source{l, true})
		}
	}
	c.report.Unused = max(unused, 0)
	return c.settledSources(ctx, sources, atWork)
}

// mostMoved bounds the size of all sources: where there is a cap on what is
// deleted, the next collection must not meet it for what this one moved.
func (c *collector) mostMoved() int64 {
	if c.opts.MaxDelete == 1 {
		return math.MaxInt64
	}
	return int64(c.opts.MaxDelete / 2 * float64(c.total))
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
func (c *collector) settledSources(ctx context.Context, sources []source, atWork map[string]bool) ([]source, error) {
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
