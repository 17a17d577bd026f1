package catalog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"platter/image"
	"platter/image/segment"
)

// Many segments at once are not written entry by entry: their entries are
// sorted on disk first and handed to Pebble as finished tables, which costs a
// fifth. A round adds all its segments or none of them.
const (
	bulkFloor  = 256     // segments from which on a round is worth it
	bulkBlocks = 1 << 18 // blocks' worth of segments from which on it is
	bulkRound  = 16384   // segments in a round: what a crash can cost
)

// worthRounds reports whether segments are better added in rounds. What few
// segments hold is told by their size: with small blocks it is as much as many.
func worthRounds(list []segment.Object, blockSize int) bool {
	var size int64
	for i := range list {
		size += list[i].Size
	}
	return len(list) >= bulkFloor || size/int64(blockSize) >= bulkBlocks
}

// A bulk collects the entries of one round.
type bulk struct {
	c      *Catalog
	report *SyncReport
	tables *tables

	next    totals
	blocks  *spill
	pages   *tableWriter
	records *tableWriter
	infos   []SegmentInfo
	failed  []uint32 // numbers of segments of which only some pages were written
}

// addRounds adds segments. step is called after each.
func (c *Catalog) addRounds(ctx context.Context, repo Repository, list []segment.Object, report *SyncReport, step func()) (err error) {
	if err := c.write.take(ctx); err != nil {
		return err
	}
	defer c.write.leave()
	var mu sync.Mutex // one segment at a time
	var b *bulk
	defer func() {
		if b != nil {
			err = errors.Join(err, b.close())
		}
	}()
	err = repo.Footers(ctx, list, func(o segment.Object, f *segment.Footer, problem error) (err error) {
		var entries []entry
		if problem == nil {
			entries = entriesOf(f)
		}
		mu.Lock()
		defer mu.Unlock()
		if b == nil {
			if b, err = c.newBulk(report); err != nil {
				return err
			}
		}
		if err := b.add(ctx, repo, o.ID, f, entries, problem, step); err != nil {
			return err
		}
		if len(b.infos) < bulkRound {
			return nil
		}
		err = errors.Join(b.finish(ctx), b.close())
		b = nil
		return err
	})
	if err == nil && b != nil {
		err = b.finish(ctx)
	}
	return err
}

func (c *Catalog) newBulk(report *SyncReport) (*bulk, error) {
	t, err := c.newTables()
	if err != nil {
		return nil, err
	}
	b := &bulk{c: c, report: report, tables: t, next: c.totals}
	b.pages, b.records = t.writer(), t.writer()
	b.blocks, err = newSpill(t)
	if err != nil {
		return nil, errors.Join(err, t.remove())
	}
	return b, nil
}

func (b *bulk) close() error { return errors.Join(b.blocks.close(), b.tables.remove()) }

// add takes one segment in, or warns of it.
func (b *bulk) add(ctx context.Context, repo Repository, id image.SegmentID, f *segment.Footer, entries []entry, problem error, step func()) error {
	defer step()
	if _, err := b.c.segment(id); !errors.Is(err, ErrNotFound) {
		return err // it was added since the listing
	}
	if problem == nil {
		var err error
		if problem, err = b.write(ctx, repo, f, entries); err != nil {
			return err
		}
	}
	if problem != nil {
		b.report.skip(id, problem)
	} else {
		b.report.Added++
		b.report.Records += int64(len(f.Records))
	}
	return ctx.Err()
}

func (b *bulk) write(ctx context.Context, repo Repository, f *segment.Footer, entries []entry) (problem, err error) {
	if b.next.next == math.MaxUint32 {
		return nil, errNumbers
	}
	info := infoOf(f, b.next.next)
	b.next.next++
	if f.Kind == segment.Pages {
		if problem, err = b.writePages(ctx, repo, f, info.number); problem != nil || err != nil {
			return problem, err
		}
	}
	for chunk := range chunks(len(f.Records)) {
		if err := b.records.set(numberKey(tagRecords, info.number, chunk), listValue(f, chunk)); err != nil {
			return nil, err
		}
	}
	for _, e := range entries {
		if err := b.blocks.add(spilled{e.hash, info.number, e.record}); err != nil {
			return nil, err
		}
	}
	b.next.add(&info, 1)
	b.infos = append(b.infos, info)
	b.c.segments.added(entries, b.next.records+b.next.pages)
	return nil, nil
}

// writePages writes the pages of a segment. If they end early, those written
// are removed again, after a crash too.
func (b *bulk) writePages(ctx context.Context, repo Repository, f *segment.Footer, number uint32) (problem, err error) {
	n := 0
	var buf []byte
	problem = repo.Pages(ctx, f, func(record int, p *image.Page, _ image.ID) error {
		if record != n {
			return fmt.Errorf("page %d came as number %d", record, n)
		}
		n++
		buf = p.Encode(buf[:0])
		err = b.pages.set(numberKey(tagPage, number, uint32(record)), buf)
		return err
	})
	if err == nil && problem == nil && n != len(f.Records) {
		problem = fmt.Errorf("%d pages of %d", n, len(f.Records))
	}
	if problem == nil || err != nil || n == 0 {
		return problem, err
	}
	b.failed = append(b.failed, number)
	mark := b.c.db.NewBatch()
	mark.Set(unsureKey(number), f.ID[:], nil)
	return problem, b.c.apply("mark unfinished segment in", mark, true)
}

// finish hands everything to Pebble, at once.
func (b *bulk) finish(ctx context.Context) error {
	if err := b.blocks.sorted(ctx, b.tables.writer()); err != nil {
		return err
	}
	slices.SortFunc(b.infos, func(x, y SegmentInfo) int { return compareSegments(x.ID, y.ID) })
	last := b.tables.writer()
	for i := range b.infos {
		if err := last.set(segmentKey(b.infos[i].ID), b.infos[i].encode()); err != nil {
			return err
		}
	}
	if err := last.set([]byte{tagTotals}, b.next.encode()); err != nil {
		return err
	}
	if err := errors.Join(last.finish(), b.pages.finish(), b.records.finish()); err != nil {
		return err
	}
	if err := b.c.read("add segments to", func() error { return b.c.db.Ingest(ctx, b.tables.paths) }); err != nil {
		return err
	}
	b.c.setTotals(b.next)
	for _, number := range b.failed {
		if err := b.c.abandon(number); err != nil {
			return err
		}
	}
	return nil
}

// listValue is what is stored of a chunk of records.
func listValue(f *segment.Footer, chunk uint32) []byte {
	first := int(chunk) * chunkRecords
	last := min(first+chunkRecords, len(f.Records))
	b := append(make([]byte, 0, 16+(last-first)*image.IDSize), f.ID[:]...)
	for i := first; i < last; i++ {
		b = append(b, f.Records[i].ID[:]...)
	}
	return b
}

var errNumbers = errors.New("segment numbers are used up: run platter catalog rebuild")
