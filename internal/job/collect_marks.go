package job

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"platter/catalog"
	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// marks are the records that images need, a bit for each, and so the segments.
//
// Each distinct page is walked once. Beside a page the walk has the one that
// the volume's image before has in the same place: what both name at one place
// was dealt with then, so that a page in which little changed costs little.
//
// Which record holds which ID, and what pages hold, the catalog says, for it
// has read every footer and page once; pages are checked against their IDs all
// the same, and before anything is deleted footers are read (see prove).
type marks struct {
	env          *Env
	reader       *reader.Reader
	hasher       *image.Hasher
	segments     map[image.SegmentID]*live // as listed
	condemned    map[image.SegmentID]bool
	ruined       map[image.SegmentID]bool
	damaged      map[image.Location]bool
	trust        *trust
	moves        []*repo.Moves
	uselessMoves []string                   // names of those that are damaged
	referred     map[image.SegmentID]bool   // segments that hints name, and that what they mean is not in
	walked       map[image.ID]bool          // pages in segments without bits
	done         map[string]bool            // manifests
	last         map[string]*image.Manifest // of each volume, by tag
	seen         map[string]uint64          // highest number seen of each volume's images, by tag
	newest       time.Time                  // latest date of an image
	newestName   string                     // of its manifest
	lost         map[image.ID]bool          // found neither by hint nor by the catalog
	content      []byte
	pages        int64 // walked
}

// live is what images need of one segment.
type live struct {
	catalog.SegmentInfo
	known   bool // to the catalog
	vouched bool // everybody may rely on it
	size    int64
	used    bool
	bits    []uint64 // one for each record; nil where memory does not suffice
	count   int      // bits set
}

func newMarks(env *Env) *marks {
	return &marks{env: env, reader: env.reader(), hasher: env.Repo.Hasher()}
}

// reset begins again. A block that is stored twice is marked where it is
// vouched for and neither damaged nor condemned, if there is such a place. Else
// all that seem to be the block are: a writer that cannot read may have stored
// junk under its ID, and that must not be all that is kept.
func (m *marks) reset(ctx context.Context, there map[image.SegmentID]int64, condemned map[image.SegmentID]bool) error {
	m.condemned = condemned
	m.referred, m.walked, m.done = map[image.SegmentID]bool{}, map[image.ID]bool{}, map[string]bool{}
	m.last = map[string]*image.Manifest{}
	m.seen, m.newest, m.lost = map[string]uint64{}, time.Time{}, map[image.ID]bool{}
	m.damaged, m.ruined = map[image.Location]bool{}, map[image.SegmentID]bool{}
	err := m.env.Repo.Damaged(ctx, func(_ image.ID, at image.Location) error {
		m.damaged[at] = true
		m.ruined[at.Segment] = m.ruined[at.Segment] || at.Record == repo.WholeSegment
		return nil
	})
	if err != nil {
		return fmt.Errorf("read notes of damage: %w", err)
	}
	if m.trust, err = m.env.trust(ctx); err != nil {
		return err
	}
	if err := m.loadMoves(ctx); err != nil {
		return err
	}
	if err := m.prepare(ctx, there); err != nil {
		return err
	}
	m.distrust(nil)
	return nil
}

// distrust has the catalog look up blocks only where they can be relied on, and
// not in some segments besides.
func (m *marks) distrust(besides map[image.SegmentID]bool) {
	var list []image.SegmentID
	for _, set := range []map[image.SegmentID]bool{m.condemned, m.ruined, besides} {
		for id, in := range set {
			if in {
				list = append(list, id)
			}
		}
	}
	for id, l := range m.segments {
		if !l.vouched {
			list = append(list, id)
		}
	}
	m.env.Catalog.SetCondemned(list)
}

// loadMoves reads where earlier collections moved records to, as far as memory
// goes. What cannot be read is looked for in the catalog.
func (m *marks) loadMoves(ctx context.Context) error {
	m.moves, m.uselessMoves = nil, nil
	left := m.env.Memory / 8
	var names []string
	err := m.env.Repo.MovesNames(ctx, func(name string, size int64) error {
		if size <= left {
			left -= size
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list moves: %w", err)
	}
	for _, name := range names {
		moves, err := m.env.Repo.Moves(ctx, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			m.moves = append(m.moves, moves)
		} else if errors.Is(err, image.ErrCorrupt) {
			m.uselessMoves = append(m.uselessMoves, name)
		}
	}
	return nil
}

// prepare gives the segments that the catalog knows their bits: those of pages
// first, then others from a random one on, while memory lasts.
func (m *marks) prepare(ctx context.Context, there map[image.SegmentID]int64) error {
	m.segments = make(map[image.SegmentID]*live, len(there))
	for id, size := range there {
		m.segments[id] = &live{size: size}
	}
	var data []*live
	left := m.env.Memory / 8
	give := func(l *live) {
		words := (l.Records + 63) / 64
		if left -= int64(words) * 8; left >= 0 {
			l.bits = make([]uint64, words)
		}
	}
	err := m.env.Catalog.Segments(ctx, func(s catalog.SegmentInfo) error {
		l := m.segments[s.ID]
		if l == nil {
			return nil
		}
		l.SegmentInfo, l.known = s, true
		l.vouched = m.trust.vouched(s.Writer, s.Moved, s.ID, s.Digest)
		if s.Kind == segment.Pages {
			give(l)
		} else {
			data = append(data, l)
		}
		return nil
	})
	if err != nil || len(data) == 0 {
		return err
	}
	first := rand.IntN(len(data))
	for _, l := range append(data[first:len(data):len(data)], data[:first]...) {
		give(l)
	}
	return nil
}

func (m *marks) used(id image.SegmentID) bool {
	l := m.segments[id]
	return l != nil && l.used
}

// images marks what every image needs that the store lists now. A manifest or
// page that cannot be read is an error: nobody knows what it needs.
func (m *marks) images(ctx context.Context) error {
	err := m.env.Repo.Manifests(ctx, func(name string) error {
		if m.done[name] {
			return nil
		}
		manifest, err := m.env.Repo.Manifest(ctx, name)
		if errors.Is(err, store.ErrNotFound) {
			return m.pruned(ctx, name)
		}
		if errors.Is(err, keys.ErrForged) {
			return nil // no image: nobody needs what it names
		}
		if err != nil {
			return fmt.Errorf("collect: %w: nothing is deleted while an image cannot be read", err)
		}
		tag, seq, _ := repo.ParseManifestName(name)
		if err := m.image(ctx, manifest, m.last[tag]); err != nil {
			return fmt.Errorf("collect: image %s of %s (%s): %w", manifest.ID, manifest.Volume, name, err)
		}
		m.done[name], m.last[tag] = true, manifest
		m.seen[tag] = max(m.seen[tag], seq)
		if manifest.Done.After(m.newest) {
			m.newest, m.newestName = manifest.Done, name
		}
		return nil
	})
	if err != nil {
		return err
	}
	return m.search(ctx)
}

// pruned returns an error unless an image that was listed and is not there has
// a tombstone. Nothing but a prune takes images away, and it leaves one first:
// so a store that for a moment does not find what it holds is found out.
func (m *marks) pruned(ctx context.Context, name string) error {
	if _, err := m.env.Repo.Tombstone(ctx, name); err != nil {
		return fmt.Errorf("collect: %s was listed, is not there, and nobody is known to have pruned it: %w: nothing is deleted while an image cannot be read", name, err)
	}
	return nil
}

// search marks every segment that holds what neither a hint nor the catalog
// led to: the catalog passes over segments of which a part cannot be read, and
// does not know those that came after it was brought up to date.
func (m *marks) search(ctx context.Context) error {
	if len(m.lost) == 0 {
		return nil
	}
	for id, l := range m.segments {
		f, err := m.footer(ctx, id)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		for i := range f.Records {
			if m.lost[f.Records[i].ID] {
				l.mark(uint32(i))
			}
		}
	}
	return nil
}

// mark marks a record and reports whether it was not marked before; of a
// segment without bits it does not know, and says that it was not.
func (l *live) mark(record uint32) (fresh bool) {
	l.used = true
	word, bit := int(record/64), uint64(1)<<(record%64)
	if word >= len(l.bits) {
		return true
	}
	fresh = l.bits[word]&bit == 0
	if fresh {
		l.bits[word] |= bit
		l.count++
	}
	return fresh
}

func (l *live) has(record uint32) bool { return l.bits[record/64]&(1<<(record%64)) != 0 }

// A node is a page of a map, or what another map has in its place.
type node struct {
	id    image.ID
	at    image.Location
	level int
}

// image marks what an image needs. before is an image of the volume that is
// marked already, or nil.
func (m *marks) image(ctx context.Context, manifest, before *image.Manifest) error {
	top := func(m *image.Manifest) node { return node{m.Root, m.RootAt, image.Levels(m.Blocks()) - 1} }
	var old node
	if before != nil {
		old = top(before)
	}
	return m.page(ctx, top(manifest), old)
}

// page marks a page and all below it.
func (m *marks) page(ctx context.Context, n, before node) error {
	if n.id.IsZero() || n.id == before.id {
		return ctx.Err()
	}
	at, fresh, err := m.claim(ctx, n)
	if err != nil || !fresh {
		return err
	}
	m.pages++
	p, err := m.fetch(ctx, n.id, at)
	if err != nil {
		return fmt.Errorf("%w: nothing is deleted while an image cannot be read", err)
	}
	old := new(image.Page)
	if before.level == n.level && !before.id.IsZero() {
		// One that cannot be read by now only saves no work.
		if q, err := m.fetch(ctx, before.id, before.at); err == nil {
			old = q
		}
	}
	if n.level == 0 {
		return m.blocks(ctx, p, old)
	}
	for i, id := range p.Entries {
		err := m.page(ctx, node{id, p.Hints[i], n.level - 1}, node{old.Entries[i], old.Hints[i], n.level - 1})
		if err != nil {
			return err
		}
	}
	return nil
}

// claim marks the record that holds a page. fresh is false when the page was
// walked before.
func (m *marks) claim(ctx context.Context, n node) (at image.Location, fresh bool, err error) {
	at, ok, err := m.direct(ctx, &n.id, n.at)
	places := []image.Location{at}
	if err == nil && !ok {
		places, err = m.places(ctx, n.id, n.at)
	}
	if err != nil {
		return at, false, err
	}
	// Of several copies each is marked, and any that was not before tells that
	// the page was not walked.
	whole := false // whether bits tell
	for _, at = range places {
		l := m.segments[at.Segment]
		switch {
		case l == nil:
		case l.bits != nil:
			whole, fresh = true, l.mark(at.Record) || fresh
		default:
			l.used = true
		}
	}
	if !whole {
		fresh = !m.walked[n.id]
		m.walked[n.id] = true
	}
	return at, fresh, nil
}

// fetch returns a page, checked against its ID: the catalog's copy if it has
// one.
func (m *marks) fetch(ctx context.Context, id image.ID, at image.Location) (*image.Page, error) {
	if l := m.segments[at.Segment]; l != nil && l.known && l.Kind == segment.Pages {
		p, err := m.env.Catalog.PageAt(ctx, &l.SegmentInfo, at.Record)
		if err == nil {
			m.content = p.Content(m.content[:0])
			if m.hasher.Page(m.content) == id {
				return p, nil
			}
		}
	}
	return m.reader.Page(ctx, id, at)
}

// blocks marks the blocks that a leaf names, but for those that old, a leaf
// whose blocks are marked, has in the same entry with the same hint.
func (m *marks) blocks(ctx context.Context, p, old *image.Page) error {
	var ids []image.ID
	var hints []image.Location
	for i := range p.Entries {
		id := &p.Entries[i]
		if id.IsZero() || *id == old.Entries[i] && p.Hints[i] == old.Hints[i] {
			continue
		}
		at, ok, err := m.direct(ctx, id, p.Hints[i])
		if err != nil {
			return err
		}
		if ok {
			m.segments[at.Segment].mark(at.Record)
			continue
		}
		ids, hints = append(ids, *id), append(hints, p.Hints[i])
	}
	if len(ids) == 0 {
		return ctx.Err()
	}
	found := make([]image.Location, len(ids))
	if err := m.env.Catalog.Lookup(ctx, ids, found); err != nil {
		return err
	}
	for i := range ids {
		places := found[i : i+1]
		if !m.vouched(found[i]) {
			var err error
			if places, err = m.places(ctx, ids[i], hints[i]); err != nil {
				return err
			}
		}
		for _, at := range places {
			m.segments[at.Segment].mark(at.Record)
		}
	}
	return nil
}

// maxMoves bounds how often one record is followed.
const maxMoves = 64

// direct follows a hint, and where records were moved to since, to a good
// place that holds id.
func (m *marks) direct(ctx context.Context, id *image.ID, at image.Location) (image.Location, bool, error) {
	for range maxMoves {
		if m.vouched(at) {
			if ok, err := m.holds(ctx, id, at); ok || err != nil {
				return at, ok, err
			}
		}
		m.referred[at.Segment] = true
		to, ok := m.moved(at)
		if !ok {
			break
		}
		at = to
	}
	return image.Location{}, false, nil
}

func (m *marks) moved(at image.Location) (image.Location, bool) {
	for _, moves := range m.moves {
		if to, ok := moves.Find(at); ok {
			return to, true
		}
	}
	return at, false
}

// places returns where to mark a block or page that its hint does not lead to;
// nowhere, if search has to look for it. One that is nowhere at all is damage
// for verify to report; it keeps nothing else from being collected.
func (m *marks) places(ctx context.Context, id image.ID, hint image.Location) ([]image.Location, error) {
	known, err := m.env.Catalog.Locate(ctx, id)
	if err != nil {
		return nil, err
	}
	// Where nothing to rely on is left, what is there counts.
	var whole, damaged []image.Location
	if !slices.Contains(known, hint) {
		known = append(known, hint)
	}
	for _, at := range known {
		ok, err := m.holds(ctx, &id, at)
		switch {
		case err != nil:
			return nil, err
		case !ok:
		case m.vouched(at):
			return []image.Location{at}, nil
		case m.damaged[at]:
			damaged = append(damaged, at)
		default:
			whole = append(whole, at)
		}
	}
	if len(whole) == 0 {
		whole = damaged
	}
	if len(whole) == 0 {
		m.lost[id] = true
	}
	return whole, nil
}

// vouched reports whether everybody may rely on what is stored at a place.
func (m *marks) vouched(at image.Location) bool {
	l := m.segments[at.Segment]
	return l != nil && l.vouched && m.good(at)
}

func (m *marks) good(at image.Location) bool {
	return !m.condemned[at.Segment] && !m.ruined[at.Segment] && !m.damaged[at]
}

// holds reports whether a segment that was listed holds id there: hints are
// believed only when the catalog agrees, or the footer.
func (m *marks) holds(ctx context.Context, id *image.ID, at image.Location) (bool, error) {
	l := m.segments[at.Segment]
	if l == nil {
		return false, nil
	}
	if l.known {
		return m.env.Catalog.Holds(&l.SegmentInfo, at.Record, id)
	}
	f, err := m.footer(ctx, at.Segment)
	if f == nil || err != nil {
		return false, err
	}
	l.vouched = m.trust.vouched(f.Writer, f.Moved, f.ID, f.Digest)
	return int64(at.Record) < int64(len(f.Records)) && f.Records[at.Record].ID == *id, nil
}

// footer returns the footer of a segment, nil for one that is damaged or gone
// and so holds nothing. One that cannot be read now is an error.
func (m *marks) footer(ctx context.Context, id image.SegmentID) (*segment.Footer, error) {
	f, err := m.reader.Footer(ctx, id)
	if errors.Is(err, image.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: nothing is deleted while an image cannot be read", err)
	}
	return f, nil
}
