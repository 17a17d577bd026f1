package job

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"platter/catalog"
	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

const (
	// indexFloor is from how many segments without an index on one is written.
	indexFloor = 16
	// indexSpace of the catalog remembers which segments each index holds.
	indexSpace = "indexes"
	// movesKept is how many small objects of moves stay as they are.
	movesKept = 4
)

// index merges the footers of segments that are in no index. An index of which
// a quarter is of segments that are gone, or that is less than half full, is
// written again with the new ones, and deleted when they are durable: who reads
// it meanwhile reads the segments' ends instead.
func (c *collector) index(ctx context.Context) error {
	segments, err := c.counting(ctx)
	if err != nil {
		return err
	}
	indexes, err := c.readIndexes(ctx)
	if err != nil {
		return err
	}
	left := maps.Clone(segments)
	var old []string
	worn := false
	for _, x := range indexes {
		there := 0
		for _, id := range x.ids {
			if _, ok := segments[id]; ok {
				there++
			}
		}
		if x.damaged || 4*there < 3*len(x.ids) {
			worn = true
		} else if x.size >= repo.MaxIndex/2 {
			for _, id := range x.ids {
				delete(left, id)
			}
			continue
		}
		old = append(old, x.name)
	}
	if fresh := len(left) - c.covered(indexes, left); fresh < c.indexFloor() && !worn {
		return nil
	}
	if err := c.writeIndexes(ctx, slices.Collect(maps.Values(left))); err != nil {
		return err
	}
	for _, name := range old {
		if err := c.env.Repo.Store.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err := c.env.Catalog.Delete(ctx, indexSpace, name); err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) indexFloor() int {
	if c.opts.indexFloor > 0 {
		return c.opts.indexFloor
	}
	return indexFloor
}

// counting returns the segments that are there and not condemned.
func (c *collector) counting(ctx context.Context) (map[image.SegmentID]segment.Object, error) {
	condemned := c.state.IDs()
	segments := map[image.SegmentID]segment.Object{}
	err := c.env.Repo.Segments(ctx, func(id image.SegmentID, size int64, _ time.Time) error {
		if !condemned[id] {
			segments[id] = segment.Object{ID: id, Size: size}
		}
		return nil
	})
	return segments, err
}

// covered returns how many of some segments an index holds.
func (c *collector) covered(indexes []knownIndex, segments map[image.SegmentID]segment.Object) int {
	seen := map[image.SegmentID]bool{}
	for _, x := range indexes {
		for _, id := range x.ids {
			if _, ok := segments[id]; ok {
				seen[id] = true
			}
		}
	}
	return len(seen)
}

// A knownIndex says which segments an index holds.
type knownIndex struct {
	name    string
	size    int64
	ids     []image.SegmentID
	damaged bool
}

// readIndexes returns what indexes there are: from the catalog those that were
// read before.
func (c *collector) readIndexes(ctx context.Context) (list []knownIndex, err error) {
	err = c.env.Repo.Indexes(ctx, func(name string, size int64) error {
		list = append(list, knownIndex{name: name, size: size})
		return nil
	})
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for i := range list {
		x := &list[i]
		there[x.name] = true
		if err := c.readIndex(ctx, x); err != nil {
			return nil, err
		}
	}
	var gone []string
	err = c.env.Catalog.Scan(ctx, indexSpace, "", func(key string, _ []byte) error {
		if !there[key] {
			gone = append(gone, key)
		}
		return nil
	})
	for _, key := range gone {
		err = errors.Join(err, c.env.Catalog.Delete(ctx, indexSpace, key))
	}
	return list, err
}

func (c *collector) readIndex(ctx context.Context, x *knownIndex) error {
	known, err := c.env.Catalog.Get(ctx, indexSpace, x.name)
	if err == nil {
		for ids := range slices.Chunk(known, 16) {
			if len(ids) == 16 {
				x.ids = append(x.ids, image.SegmentID(ids))
			}
		}
		return nil
	}
	if !errors.Is(err, catalog.ErrNotFound) {
		return err
	}
	list, err := c.env.Repo.Index(ctx, x.name)
	switch {
	case errors.Is(err, image.ErrCorrupt):
		c.notice("%v: the index is written again", err)
		x.damaged = true
		return nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	for i := range list {
		x.ids = append(x.ids, list[i].ID)
	}
	return c.remember(ctx, x.name, list)
}

// remember keeps in the catalog which segments an index holds.
func (c *collector) remember(ctx context.Context, name string, list []repo.Indexed) error {
	value := make([]byte, 0, 16*len(list))
	for i := range list {
		value = append(value, list[i].ID[:]...)
	}
	return c.env.Catalog.Put(ctx, indexSpace, name, value)
}

// writeIndexes reads the ends of segments and stores them in as few indexes as
// hold them. A segment whose end is damaged is left out.
func (c *collector) writeIndexes(ctx context.Context, list []segment.Object) error {
	slices.SortFunc(list, func(a, b segment.Object) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	var full []repo.Indexed
	size := 0
	flush := func() error {
		if len(full) == 0 {
			return nil
		}
		name, err := c.env.Repo.PutIndex(ctx, full)
		if err == nil {
			err = c.remember(ctx, name, full)
		}
		c.report.Indexes++
		full, size = nil, 0
		return err
	}
	for some := range slices.Chunk(list, indexFloor) {
		ends, err := c.ends(ctx, some)
		if err != nil {
			return err
		}
		for _, e := range ends {
			if e.IndexSize() > repo.MaxIndex/4 {
				continue // it would fill an index by itself, and is read as fast from the segment
			}
			if size+e.IndexSize() > repo.MaxIndex {
				if err := flush(); err != nil {
					return err
				}
			}
			full, size = append(full, e), size+e.IndexSize()
		}
	}
	return flush()
}

// ends reads the ends of some segments, and proves them.
func (c *collector) ends(ctx context.Context, list []segment.Object) ([]repo.Indexed, error) {
	ends := make([]repo.Indexed, len(list))
	g, group := errgroup.WithContext(ctx)
	var mu sync.Mutex
	for i, o := range list {
		g.Go(func() error {
			tail, err := segment.ReadTail(group, c.env.Repo.Store, o)
			if err == nil {
				_, err = tail.Open(c.env.Repo.Keys, o)
			}
			if errors.Is(err, image.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			// The end read with it is much longer than it: keep a copy.
			ends[i] = repo.Indexed{Object: o, Tail: segment.Tail{Footer: bytes.Clone(tail.Footer), Trailer: bytes.Clone(tail.Trailer)}}
			return err
		})
	}
	err := g.Wait()
	return slices.DeleteFunc(ends, func(e repo.Indexed) bool { return e.Trailer == nil }), err
}

// tidyMoves writes the moves that are still of use again where there are many
// small objects of them, or where hints no longer name most of the segments
// that an object tells of. Those that are damaged are of no use to anybody: what
// they told is looked for among all segments.
func (c *collector) tidyMoves(ctx context.Context) error {
	small := 0
	for _, m := range c.marks.moves {
		if m.Bytes() < repo.MaxMoves/2 {
			small++
		}
	}
	kept := map[image.SegmentID][]repo.Move{}
	old := c.marks.uselessMoves
	for _, m := range c.marks.moves {
		total, useful := 0, map[image.SegmentID][]repo.Move{}
		m.Each(func(id image.SegmentID, moves []repo.Move) {
			if total++; c.marks.referred[id] {
				useful[id] = moves
			}
		})
		if small > movesKept && m.Bytes() < repo.MaxMoves/2 || 2*len(useful) < total {
			maps.Copy(kept, useful)
			old = append(old, m.Name)
		}
	}
	if _, err := c.env.Repo.PutMoves(ctx, kept); err != nil {
		return err
	}
	for _, name := range old {
		if err := c.env.Repo.Store.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return nil
}
