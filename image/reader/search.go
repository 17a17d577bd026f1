package reader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"platter/image"
	"platter/image/keys"
	"platter/image/segment"
	"platter/image/store"
)

// errStale means that a place holds something else: no damage, only an old or
// wrong hint.
var errStale = errors.New("stored elsewhere")

// maxCopies is how many places of one block are tried that the index names, and
// then of each writer: one that cannot read may have stored junk under an ID any
// number of times, and must not hide what another stored.
const maxCopies = 8

// A trouble is a ref that could not be had yet.
type trouble struct {
	tried []image.Location
	// absent are those of tried where nothing was found at all.
	absent []image.Location
	next   []image.Location // to be tried
	from   map[keys.Writer]int
	at     image.Location // of the first copy that was found bad
	err    error          // why that one is bad
}

// search looks for what the hints did not lead to: first in the index, then
// where collectors moved it to, then in the footers of all segments.
//
// A collector may move it meanwhile, and delete where it was: it is lost only
// when no segment is there whose footer was not read.
func (b *batch) search(ctx context.Context) ([]*Lost, error) {
	troubles := make(map[int32]*trouble)
	b.collect(troubles)
	s := &scanner{batch: b}
	for _, find := range []func(context.Context, map[int32]*trouble) error{b.ask, b.forward, s.all, s.fresh} {
		for more := true; more; more = s.more {
			if len(troubles) == 0 {
				return nil, nil
			}
			s.more = false
			if err := find(ctx, troubles); err != nil {
				return nil, err
			}
			if err := b.retry(ctx, troubles); err != nil {
				return nil, err
			}
		}
	}
	return b.lost(troubles), nil
}

// collect moves what failed to troubles.
func (b *batch) collect(troubles map[int32]*trouble) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.failed {
		t := troubles[f.ref]
		if t == nil {
			t = new(trouble)
			troubles[f.ref] = t
		}
		// What a listing tells of after it was not found is tried again: what
		// stands between us and a store says too easily that nothing is there.
		if t.tried = append(t.tried, f.at); errors.Is(f.err, store.ErrNotFound) {
			t.absent = append(t.absent, f.at)
		}
		// A hint may lead to a segment that is rightly gone: what is wrong with
		// the place that the record was moved to since tells more.
		if f.err != nil && f.err != errStale && (t.err == nil || errors.Is(t.err, store.ErrNotFound)) {
			t.at, t.err = f.at, f.err
		}
	}
	b.failed = b.failed[:0]
}

// retry reads from the places found until none is left to try.
func (b *batch) retry(ctx context.Context, troubles map[int32]*trouble) error {
	for {
		p := newPlan(0)
		var trying []int32
		for ref, t := range troubles {
			if len(t.next) > 0 {
				p.add(int(ref), t.next[0])
				t.next = t.next[1:]
				trying = append(trying, ref)
			}
		}
		if len(trying) == 0 {
			return nil
		}
		if err := b.run(ctx, p); err != nil {
			return err
		}
		b.settle(troubles, trying)
	}
}

// settle forgets the troubles that were tried and did not fail again.
func (b *batch) settle(troubles map[int32]*trouble, trying []int32) {
	again := make(map[int32]bool)
	for _, f := range b.failed {
		again[f.ref] = true
	}
	b.collect(troubles)
	for _, ref := range trying {
		if !again[ref] {
			delete(troubles, ref)
		}
	}
}

// suggestOf suggests a place in a writer's segment.
func (t *trouble) suggestOf(w keys.Writer, at image.Location) {
	if t.from == nil {
		t.from = map[keys.Writer]int{}
	}
	again := slices.Contains(t.absent, at)
	t.absent = slices.DeleteFunc(t.absent, func(a image.Location) bool { return a == at })
	if t.from[w] < maxCopies && (again || !slices.Contains(t.tried, at)) && !slices.Contains(t.next, at) {
		t.from[w]++
		t.next = append(t.next, at)
	}
}

func (t *trouble) suggest(at image.Location) {
	if len(t.next) < maxCopies && !slices.Contains(t.tried, at) && !slices.Contains(t.next, at) {
		t.next = append(t.next, at)
	}
}

// ask asks the index.
func (b *batch) ask(ctx context.Context, troubles map[int32]*trouble) error {
	if b.reader.index == nil {
		return nil
	}
	for ref, t := range troubles {
		id := b.refs[ref].ID
		if b.kind == segment.Pages {
			if done, err := b.askPage(ctx, ref, t); err != nil {
				return err
			} else if done {
				delete(troubles, ref)
			}
			continue
		}
		places, err := b.reader.index.Locate(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			continue // it does not know, and the footers do
		}
		for _, at := range places {
			t.suggest(at)
		}
	}
	return nil
}

// askPage takes a page's content from the index, checked like any other.
func (b *batch) askPage(ctx context.Context, ref int32, t *trouble) (done bool, err error) {
	page, at, err := b.reader.index.Page(ctx, b.refs[ref].ID)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil || page == nil {
		return false, nil
	}
	t.suggest(at)
	w, err := b.reader.acquire(ctx)
	if err != nil {
		return false, err
	}
	defer b.reader.release(w)
	return b.check(w, []item{{ref: ref}}, page.Encode(nil)) == nil, nil
}

// lost describes what could not be had, in order of refs.
func (b *batch) lost(troubles map[int32]*trouble) []*Lost {
	var lost []*Lost
	for _, i := range slices.Sorted(maps.Keys(troubles)) {
		t, ref := troubles[i], &b.refs[i]
		if t.err == nil {
			t.err = fmt.Errorf("in no segment of the repository: %w", store.ErrNotFound)
		}
		if unread := b.reader.unread.Load(); unread != nil && errors.Is(t.err, store.ErrNotFound) {
			t.err = fmt.Errorf("%w; it may be where nothing can be read: %s", t.err, *unread)
		}
		lost = append(lost, &Lost{
			Page: b.kind == segment.Pages, Ref: int(i), Block: ref.Block, ID: ref.ID, At: t.at, Err: t.err,
		})
	}
	return lost
}
