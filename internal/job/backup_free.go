package job

import (
	"context"

	"platter/block"
	"platter/block/freespace"
	"platter/block/snapshot"
	"platter/cbt"
	"platter/image"
)

// vacant returns the blocks of a still view in which its filesystems say that
// there is nothing, nil for none, and sets down in the manifest how much that
// is, or why a filesystem is read whole.
func (r *run) vacant(ctx context.Context, view snapshot.View, m *image.Manifest) (*cbt.Set, error) {
	if r.opts.AllBlocks {
		return nil, nil
	}
	_, moving := view.(cbt.Converging)
	moving = moving || m.Fuzzy
	all := cbt.NewSet(m.Size)
	for _, f := range filesystemsOf(m.Device) {
		found := image.FreeSpace{Partition: f.Number, Content: f.Content}
		if moving {
			// Where free bytes are may change before they are read.
			found.Why = "it is written to while it is read"
			m.Free = append(m.Free, found)
			continue
		}
		set := cbt.NewSet(m.Size)
		src := &countedSource{Source: view}
		blocks := max(int64(m.BlockSize), set.Unit())
		err := freespace.Walk(ctx, src, f.Content, f.Extent, func(e block.Extent) { set.Add(within(e, blocks)) })
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			found.Why = err.Error()
		} else {
			all.Union(set)
			found.Bytes = set.Bytes()
		}
		found.Read = src.read
		m.Free = append(m.Free, found)
	}
	if all.Bytes() == 0 {
		return nil, nil
	}
	return all, nil
}

// filesystemsOf returns those that free space can be asked of, as the
// partitions that they are in. What lies across another is left out: tables
// are data of others.
func filesystemsOf(d block.Info) (list []block.Partition) {
	parts := []block.Partition{{Extent: block.Extent{Length: d.Size}, Content: d.Content}}
	if d.Table != nil {
		parts = d.Table.Partitions
	}
	for i, p := range parts {
		alone := p.Offset >= 0 && p.Length > 0 && p.Length <= d.Size-p.Offset
		for j, o := range parts {
			alone = alone && (i == j || p.End() <= o.Offset || o.End() <= p.Offset)
		}
		if alone && freespace.Known(p.Content) {
			list = append(list, p)
		}
	}
	return list
}

// within returns the whole blocks of an extent: one is left out only if all of
// it is free.
func within(e block.Extent, size int64) block.Extent {
	from, to := (e.Offset+size-1)/size*size, e.End()/size*size
	return block.Extent{Offset: from, Length: max(0, to-from)}
}

// A countedSource counts the bytes that are read.
type countedSource struct {
	block.Source
	read int64
}

func (c *countedSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	c.read += int64(len(p))
	return c.Source.ReadAt(ctx, p, off)
}

// doubtful reads blocks again of which nobody can say whether they changed: the
// image before has zeros for them because they were free, and now they are in
// use, and the tracker saw no write. Their filesystem may not have written to
// them yet; then what they hold is nothing, and does no harm.
func (i *imaging) doubtful(ctx context.Context, blocks []block.Extent) error {
	if len(blocks) == 0 || i.opts.DryRun {
		return nil
	}
	if err := i.flush(); err != nil {
		return err
	}
	i.trustOwn()
	before, changed := *i.m, cbt.NewSet(i.m.Size)
	for _, e := range blocks {
		changed.Add(e)
	}
	// Not a view to the pass: it is not to go on at a checkpoint.
	p := &pass{run: i.run, src: struct{ block.Source }{i.s.view}, m: i.m, parent: &before, changed: changed, counts: new(counters)}
	if err := p.do(ctx); err != nil {
		return err
	}
	i.pass.add(p)
	return nil
}
