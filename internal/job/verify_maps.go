package job

import (
	"context"
	"sync/atomic"

	"platter/block"
	"platter/image"
	"platter/image/reader"
	"platter/image/segment"
)

// A pageKey names a page at a level. Pages are checked against their whole
// IDs; 128 bits of keyed BLAKE3 are enough to know one again.
type pageKey [17]byte

func keyOf(n reader.Node) (k pageKey) {
	copy(k[:16], n.ID[8:24])
	k[16] = byte(n.Level)
	return k
}

// whole reports whether a node lies within the image's full blocks, so that
// what is true of it is true of the same page in any other image.
func whole(m *image.Manifest, n reader.Node) bool {
	return n.First+image.PageBlocks(n.Level) <= m.Size/int64(m.BlockSize)
}

// maps walks every distinct page of all maps once, and looks up every block
// that they name.
func (v *verifier) maps(ctx context.Context) error {
	counts, total := new(counters), int64(0)
	v.report.Pages = 0
	for _, m := range v.images {
		total += m.Size
	}
	stop := v.env.report("verify", "maps", "walk", total, counts, func() int64 { return 0 })
	defer stop()
	seen := map[pageKey]struct{}{}
	b := &lookup{v: v, most: int(max(v.env.Memory/4/refMemory, 2*image.PageEntries))}
	for _, m := range v.images {
		before := counts.done.Load()
		err := v.reader.WalkAll(ctx, reader.MapOf(m), 0, m.Blocks(), reader.Visitor{
			Enter: func(n reader.Node) bool {
				if !n.At.IsZero() {
					v.used[n.At.Segment] = struct{}{}
				}
				if !whole(m, n) {
					return true
				}
				_, again := seen[keyOf(n)]
				seen[keyOf(n)] = struct{}{}
				return !again
			},
			Page: func(n reader.Node, p *image.Page) error {
				v.report.Pages++
				advance(&counts.done, before+min(m.Size, n.First*int64(m.BlockSize)))
				if n.Level > 0 {
					return nil
				}
				return b.add(ctx, m, n.First, p)
			},
			Bad: func(n reader.Node, err error) error {
				if !reader.Damaged(err) {
					return err
				}
				v.bad.add(finding{id: n.ID, page: true, at: n.At, object: objectOf(n.At), err: err})
				return nil
			},
		})
		if err != nil {
			return err
		}
		advance(&counts.done, before+m.Size)
	}
	err := b.flush(ctx)
	v.report.Segments, v.mapped = len(v.used), len(v.bad.list)
	return err
}

func advance(n *atomic.Int64, to int64) {
	if to > n.Load() {
		n.Store(to)
	}
}

func objectOf(at image.Location) string {
	if at.IsZero() {
		return ""
	}
	return segment.Name(at.Segment)
}

// A lookup collects the blocks of leaf pages and looks for many of them at
// once, so that each footer is read once for all.
type lookup struct {
	v    *verifier
	refs []reader.Ref
	most int
}

func (b *lookup) add(ctx context.Context, m *image.Manifest, first int64, p *image.Page) error {
	b.refs = appendRefs(b.refs, m, first, p, 0, m.Blocks())
	if len(b.refs)+image.PageEntries <= b.most {
		return nil
	}
	return b.flush(ctx)
}

func (b *lookup) flush(ctx context.Context) error {
	lost, err := b.v.reader.Locate(ctx, b.refs)
	if err != nil {
		return err
	}
	missing := map[int]bool{}
	for _, l := range lost {
		if !reader.Damaged(l) {
			return l
		}
		missing[l.Ref] = true
		ref := &b.refs[l.Ref]
		// Where the map says it was, for there it is not any more.
		b.v.bad.add(finding{id: ref.ID, length: ref.Length, at: ref.At, object: objectOf(ref.At), err: l.Err})
	}
	for i := range b.refs {
		if !missing[i] {
			b.v.used[b.refs[i].At.Segment] = struct{}{}
		}
	}
	b.refs = b.refs[:0]
	return nil
}

// affected walks the maps again and reports every stretch of an image that is
// lost. It returns which of the lost IDs any image needs.
func (v *verifier) affected(ctx context.Context, lost map[image.ID]*finding) (map[image.ID]bool, error) {
	needed := map[image.ID]bool{}
	clean := map[pageKey]struct{}{}
	for _, m := range v.images {
		w := &mapping{v: v, image: m}
		var stack []int // places found before each page on the way down
		err := v.reader.WalkAll(ctx, reader.MapOf(m), 0, m.Blocks(), reader.Visitor{
			Enter: func(n reader.Node) bool {
				_, ok := clean[keyOf(n)]
				return !ok || !whole(m, n)
			},
			Page: func(n reader.Node, p *image.Page) error {
				stack = append(stack, w.found)
				for i := range p.Entries {
					if f := lost[p.Entries[i]]; f != nil && n.Level == 0 && n.First+int64(i) < m.Blocks() {
						needed[f.id] = true
						w.add(f, blockExtent(m, n.First+int64(i)))
					}
				}
				return nil
			},
			Bad: func(n reader.Node, err error) error {
				stack = append(stack, w.found)
				if !reader.Damaged(err) {
					return err
				}
				needed[n.ID] = true
				start := n.First * int64(m.BlockSize)
				end := min(m.Blocks(), n.First+image.PageBlocks(n.Level)) * int64(m.BlockSize)
				w.add(&finding{id: n.ID, page: true, at: n.At, object: objectOf(n.At), err: err}, extentOf(start, min(end, m.Size)))
				return nil
			},
			Leave: func(n reader.Node) {
				if stack[len(stack)-1] == w.found && whole(m, n) {
					clean[keyOf(n)] = struct{}{}
				}
				stack = stack[:len(stack)-1]
			},
		})
		if err != nil {
			return nil, err
		}
		w.flush()
	}
	return needed, ctx.Err()
}

// A mapping merges what is lost of an image into stretches.
type mapping struct {
	v     *verifier
	image *image.Manifest
	found int
	last  Damage
	end   image.Location // of the record that would go on from last
}

func (w *mapping) add(f *finding, e block.Extent) {
	w.found++
	next := image.Location{Segment: f.at.Segment, Record: f.at.Record + 1}
	if w.last.Extent.Length > 0 && !f.page && w.last.Extent.End() == e.Offset && w.end == f.at && w.last.Object == f.object {
		w.last.Extent.Length += e.Length
		w.end = next
		return
	}
	w.flush()
	w.last = Damage{
		manifest: w.v.env.Repo.ManifestName(w.image),
		Image:    w.image.ID.String(), Volume: w.image.Volume, Extent: e, At: f.at, Object: f.object, Problem: f.problem(),
	}
	w.end = next
}

func (w *mapping) flush() {
	if w.last.Extent.Length > 0 {
		w.v.damage(w.last)
	}
	w.last = Damage{}
}
