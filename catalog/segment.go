package catalog

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"platter/image"
	"platter/image/segment"
)

// batchBytes is how much is written at once. A larger segment is written in
// parts, and marked as unsure until the last one.
const batchBytes = 1 << 20

// A PageSource calls f with every page of a segment, in order of its records.
type PageSource func(ctx context.Context, f func(record int, p *image.Page) error) error

// AddSegment records a durable segment and where its records are. pages gives
// the contents of a page segment; it is nil for a data segment. A segment that
// is known already is left as it is. When AddSegment returns nil, a crash does
// not undo it.
func (c *Catalog) AddSegment(ctx context.Context, f *segment.Footer, pages PageSource) error {
	return c.add(ctx, f, pages, true)
}

func (c *Catalog) add(ctx context.Context, f *segment.Footer, pages PageSource, durable bool) error {
	what := "add segment " + f.ID.String() + " to"
	entries := entriesOf(f)
	if err := c.write.take(ctx); err != nil {
		return err
	}
	defer c.write.leave()
	if _, err := c.segment(f.ID); !errors.Is(err, ErrNotFound) {
		return c.state.wrap(what, err)
	}
	if c.totals.next == math.MaxUint32 {
		return c.state.wrap(what, errNumbers)
	}
	w := &segmentWriter{c: c, what: what, number: c.totals.next, footer: f, batch: c.db.NewBatch()}
	if err := w.writeAll(ctx, entries, pages, durable); err != nil {
		return errors.Join(err, c.undo(w))
	}
	c.segments.added(entries, c.totals.records+c.totals.pages)
	return nil
}

// An entry is what the index holds of a record.
type entry struct {
	hash   uint64
	record uint32
}

// entriesOf returns the index entries of a segment chunk by chunk, sorted
// inside a chunk: Pebble takes sorted keys faster.
func entriesOf(f *segment.Footer) []entry {
	entries := make([]entry, len(f.Records))
	for i := range f.Records {
		entries[i] = entry{hashID(&f.Records[i].ID), uint32(i)}
	}
	for part := range slices.Chunk(entries, chunkRecords) {
		slices.SortFunc(part, func(a, b entry) int { return cmp.Compare(a.hash, b.hash) })
	}
	return entries
}

// segmentWriter writes one segment under a number of its own.
type segmentWriter struct {
	c      *Catalog
	what   string
	number uint32
	footer *segment.Footer
	batch  *pebble.Batch
	parts  int
	key    []byte
}

func (w *segmentWriter) writeAll(ctx context.Context, entries []entry, pages PageSource, durable bool) error {
	if err := w.writePages(ctx, pages); err != nil {
		return err
	}
	for chunk := range chunks(len(entries)) {
		first := int(chunk) * chunkRecords
		last := min(first+chunkRecords, len(entries))
		if err := w.writeChunk(ctx, chunk, entries[first:last]); err != nil {
			return err
		}
	}
	return w.finish(durable)
}

func (w *segmentWriter) writePages(ctx context.Context, pages PageSource) error {
	if w.footer.Kind != segment.Pages {
		return nil
	}
	if pages == nil {
		return fmt.Errorf("%s catalog %s: pages are missing", w.what, w.c.opts.Dir)
	}
	n := 0
	var buf []byte
	err := pages(ctx, func(record int, p *image.Page) error {
		if record < 0 || record >= len(w.footer.Records) {
			return fmt.Errorf("page %d of %d", record, len(w.footer.Records))
		}
		n++
		buf = p.Encode(buf[:0])
		if err := w.batch.Set(numberKey(tagPage, w.number, uint32(record)), buf, nil); err != nil {
			return err
		}
		return w.flush(ctx)
	})
	if err != nil {
		return fmt.Errorf("%s catalog %s: %w", w.what, w.c.opts.Dir, err)
	}
	if n != len(w.footer.Records) {
		return fmt.Errorf("%s catalog %s: got %d pages of %d", w.what, w.c.opts.Dir, n, len(w.footer.Records))
	}
	return nil
}

// writeChunk writes the IDs of some records, and for each how to find it.
func (w *segmentWriter) writeChunk(ctx context.Context, chunk uint32, entries []entry) error {
	if err := w.batch.Set(numberKey(tagRecords, w.number, chunk), listValue(w.footer, chunk), nil); err != nil {
		return err
	}
	for _, e := range entries {
		w.key = appendBlockKey(w.key[:0], e.hash, w.number, e.record)
		if err := w.batch.Set(w.key, nil, nil); err != nil {
			return err
		}
	}
	return w.flush(ctx)
}

// flush writes what there is when it is enough for a batch. The first part
// also says that the segment is unsure, and takes its number out of use.
func (w *segmentWriter) flush(ctx context.Context) error {
	if w.batch.Len() < batchBytes {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.parts++; w.parts == 1 {
		next := w.c.totals
		next.next = w.number + 1
		if err := w.batch.Set(unsureKey(w.number), w.footer.ID[:], nil); err != nil {
			return err
		}
		if err := w.batch.Set([]byte{tagTotals}, next.encode(), nil); err != nil {
			return err
		}
		w.c.totals = next
	}
	b := w.batch
	w.batch = w.c.db.NewBatch()
	return w.c.apply(w.what, b, false)
}

// finish writes the last part, which makes the segment known.
func (w *segmentWriter) finish(durable bool) error {
	info := infoOf(w.footer, w.number)
	next := w.c.totals
	next.next = w.number + 1
	next.add(&info, 1)
	if err := w.batch.Set(segmentKey(info.ID), info.encode(), nil); err != nil {
		return err
	}
	if err := w.batch.Set([]byte{tagTotals}, next.encode(), nil); err != nil {
		return err
	}
	if w.parts > 0 {
		if err := w.batch.Delete(unsureKey(w.number), nil); err != nil {
			return err
		}
	}
	b := w.batch
	w.batch = nil
	if err := w.c.apply(w.what, b, durable); err != nil {
		return err
	}
	w.c.setTotals(next)
	return nil
}

// undo takes back the parts of a segment that could not be written whole.
func (c *Catalog) undo(w *segmentWriter) error {
	if w.batch != nil {
		w.batch.Close()
	}
	if w.parts == 0 || c.state.get() != nil {
		return nil
	}
	return c.abandon(w.number)
}

func infoOf(f *segment.Footer, number uint32) SegmentInfo {
	s := SegmentInfo{ID: f.ID, Kind: f.Kind, Size: f.Size, Records: len(f.Records), Writer: f.Writer, Moved: f.Moved, Digest: f.Digest, number: number}
	for i := range f.Records {
		s.Plain += int64(f.Records[i].Plain)
		s.Stored += int64(f.Records[i].Stored)
	}
	return s
}

// segment returns what is known of a segment, or ErrNotFound.
func (c *Catalog) segment(id image.SegmentID) (SegmentInfo, error) {
	key := segmentKey(id)
	value, closer, err := c.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return SegmentInfo{}, ErrNotFound
	}
	if err != nil {
		return SegmentInfo{}, err
	}
	defer closer.Close()
	return parseInfo(key, value)
}

// Segments calls f for every segment known, in order of ID, until f returns an
// error.
func (c *Catalog) Segments(ctx context.Context, f func(SegmentInfo) error) error {
	return c.scan(ctx, "list segments of", bounds(tagSegment), func(key, value []byte) error {
		s, err := parseInfo(key, value)
		if err != nil {
			return err
		}
		return own(f(s))
	})
}

// DropSegments forgets segments that are gone from the repository, and all
// that was said of their records. Unknown ones are passed over.
func (c *Catalog) DropSegments(ctx context.Context, ids []image.SegmentID) error {
	if err := c.write.take(ctx); err != nil {
		return err
	}
	defer c.write.leave()
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.drop(id); err != nil {
			return c.state.wrap("drop segment "+id.String()+" from", err)
		}
	}
	return nil
}

func (c *Catalog) drop(id image.SegmentID) error {
	info, err := c.segment(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.dropRecords(info.number); err != nil {
		return err
	}
	next := c.totals
	next.add(&info, -1)
	b := c.db.NewBatch()
	b.Delete(segmentKey(id), nil)
	b.Set([]byte{tagTotals}, next.encode(), nil)
	b.DeleteRange(damageKey(image.Location{Segment: id}), damageKey(image.Location{Segment: id, Record: math.MaxUint32}), nil)
	if err := c.apply("drop segment from", b, true); err != nil {
		return err
	}
	c.setTotals(next)
	c.segments.dropped(id, info.number)
	return nil
}

// dropRecords removes the entries of a segment. A chunk goes together with the
// entries it is the only list of.
func (c *Catalog) dropRecords(number uint32) error {
	o := &pebble.IterOptions{LowerBound: numberKey(tagRecords, number, 0), UpperBound: numberKey(tagRecords, number, math.MaxUint32)}
	iter, err := c.db.NewIter(o)
	if err != nil {
		return err
	}
	defer iter.Close()
	var key []byte
	for iter.First(); iter.Valid(); iter.Next() {
		list, err := parseList(iter.Key(), iter.Value())
		if err != nil {
			return err
		}
		b := c.db.NewBatch()
		for i := range list.ids {
			key = appendBlockKey(key[:0], hashID(&list.ids[i]), number, list.record(i))
			b.Delete(key, nil)
		}
		b.Delete(iter.Key(), nil)
		if err := c.apply("drop segment from", b, false); err != nil {
			return err
		}
	}
	if err := iter.Error(); err != nil {
		return err
	}
	b := c.db.NewBatch()
	b.DeleteRange(numberKey(tagPage, number, 0), numberKey(tagPage, number, math.MaxUint32), nil)
	return c.apply("drop segment from", b, false)
}

// abandon removes what was written of an unsure segment.
func (c *Catalog) abandon(number uint32) error {
	if err := c.dropRecords(number); err != nil {
		return err
	}
	b := c.db.NewBatch()
	b.Delete(unsureKey(number), nil)
	return c.apply("drop unfinished segment from", b, false)
}

// abandonUnfinished removes segments whose adding a crash cut short.
func (c *Catalog) abandonUnfinished() error {
	var numbers []uint32
	err := c.scan(context.Background(), "open", bounds(tagUnsure), func(key, _ []byte) error {
		if len(key) != 5 {
			return corrupt("mark of %d bytes", len(key))
		}
		numbers = append(numbers, binary.BigEndian.Uint32(key[1:]))
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if err := c.abandon(n); err != nil {
			return err
		}
	}
	return nil
}

func (c *Catalog) loadTotals() error {
	value, closer, err := c.db.Get([]byte{tagTotals})
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer closer.Close()
	t, err := parseTotals(value)
	c.setTotals(t)
	return err
}

func (c *Catalog) setTotals(t totals) {
	c.totals = t
	c.keys.Store(t.records + t.pages)
}

// next returns the number that the next segment gets.
func (c *Catalog) next() uint32 {
	_ = c.write.take(context.Background())
	defer c.write.leave()
	return c.totals.next
}
