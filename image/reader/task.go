package reader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"platter/image"
	"platter/image/segment"
	"platter/image/store"
)

// A task is what one worker reads in one go: items of one segment in order of
// record, several perhaps of one record.
type task struct {
	footer *segment.Footer
	items  []item
}

// work reads what a task asks for, then decodes and hands it out, a buffer at
// a time.
func (b *batch) work(ctx context.Context, t task) error {
	w, err := b.reader.acquire(ctx)
	if err != nil {
		return err
	}
	defer b.reader.release(w)
	in := b.load(ctx, w, t)
	if errors.Is(in.err, store.ErrUnreachable) {
		return in.err
	}
	for items := t.items; len(items) > 0; {
		n := b.fill(items)
		w.out = room(w.out, min(n, b.slots())*b.stride)
		good, err := b.decode(ctx, w, t.footer, in, items[:n])
		if err == nil && b.visit != nil {
			err = b.deliver(ctx, w, good)
		}
		if err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// A span is a part of a segment in memory; what it holds counts unless err is
// set.
type span struct {
	at    int64
	bytes []byte
	err   error
}

// load reads all records of a task into w.in.
func (b *batch) load(ctx context.Context, w *worker, t task) (s span) {
	first, last := &t.footer.Records[t.items[0].record()], &t.footer.Records[t.items[len(t.items)-1].record()]
	s.at = first.Offset &^ (store.Align - 1)
	end := (last.Offset + int64(last.Stored) + store.Align - 1) &^ (store.Align - 1)
	w.in = room(w.in, int(end-s.at))
	s.bytes = w.in[:end-s.at]
	s.err = b.reader.repo.Store.ReadAt(ctx, segment.Name(t.footer.ID), s.bytes, s.at)
	return s
}

// fill returns how many of the items, at least one, w.out holds together.
func (b *batch) fill(items []item) int {
	for n, slots := 1, 1; n < len(items); n++ {
		if items[n].key == items[n-1].key {
			continue // another place for the same record
		}
		if slots++; slots > b.slots() {
			return n
		}
	}
	return len(items)
}

// slots is how many records w.out holds at most.
func (b *batch) slots() int { return max(1, max(runSize, b.reader.stride)/b.stride) }

// A slot is an item and where in the worker's out its block is.
type slot struct {
	ref  int32
	slot int32
}

// decode puts records into w.out, one stride each, and returns what is good.
// Only a context's error ends it.
func (b *batch) decode(ctx context.Context, w *worker, f *segment.Footer, in span, items []item) ([]slot, error) {
	good := make([]slot, 0, len(items))
	n := int32(0)
	for len(items) > 0 {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		same := 1
		for same < len(items) && items[same].key == items[0].key {
			same++
		}
		rec := items[0].record()
		r := &f.Records[rec]
		stored := in.bytes[r.Offset-in.at:][:r.Stored]
		err := in.err
		if err != nil {
			// One bad sector must not take the records around it along.
			err = b.reader.repo.Store.ReadAt(ctx, segment.Name(f.ID), stored, r.Offset)
		}
		if err == nil {
			err = b.decodeOne(w, f, rec, items[:same], stored, w.out[int(n)*b.stride:][:r.Plain])
		}
		for _, it := range items[:same] {
			if err != nil {
				b.fail(it.ref, image.Location{Segment: f.ID, Record: uint32(rec)}, err)
			} else {
				good = append(good, slot{it.ref, n})
			}
		}
		items = items[same:]
		n++
	}
	return good, ctx.Err()
}

func (b *batch) decodeOne(w *worker, f *segment.Footer, rec int, items []item, stored, plain []byte) error {
	name := func(err error) error {
		return fmt.Errorf("%s at %d: record %d: %w", segment.Name(f.ID), f.Records[rec].Offset, rec, err)
	}
	if b.kind == segment.Pages {
		// Hints are no part of a page's ID: only the checksum speaks for them.
		if err := f.Decode(w.codec, plain, stored, rec); err != nil {
			return err
		}
	} else if err := f.Expand(w.codec, plain, stored, rec); err != nil {
		return name(err)
	}
	if err := b.check(w, items, plain); err != nil {
		return name(err)
	}
	return nil
}

// deliver hands out blocks, together where they follow each other in the image
// and in w.out.
func (b *batch) deliver(ctx context.Context, w *worker, good []slot) error {
	slices.SortFunc(good, func(x, y slot) int { return cmp.Compare(x.ref, y.ref) })
	for len(good) > 0 {
		ref := &b.refs[good[0].ref]
		n, length := 1, int(ref.Length)
		for n < len(good) && length == n*b.stride &&
			good[n].slot == good[n-1].slot+1 && b.refs[good[n].ref].Block == ref.Block+int64(n) {
			length += int(b.refs[good[n].ref].Length)
			n++
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.visit(ref.Block, w.out[int(good[0].slot)*b.stride:][:length]); err != nil {
			return err
		}
		good = good[n:]
	}
	return nil
}
