package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// marks are the segments that images need. Each distinct page is walked once.
type marks struct {
	env       *Env
	reader    *reader.Reader
	there     map[image.SegmentID]int64 // segments as listed
	condemned map[image.SegmentID]bool
	damaged   map[image.Location]bool
	used      map[image.SegmentID]bool
	walked    map[image.ID]bool // pages
	done      map[string]bool   // manifests
	seen      map[string]uint64 // highest number seen of each volume's images, by tag
	newest    time.Time         // latest date of an image
	lost      map[image.ID]bool // found neither by hint nor by the catalog
}

func newMarks(env *Env) *marks {
	return &marks{env: env, reader: env.reader()}
}

// reset begins again. A block that is stored twice is marked where it is
// neither damaged nor condemned, if there is such a place.
func (m *marks) reset(ctx context.Context, there map[image.SegmentID]int64, condemned map[image.SegmentID]bool) error {
	m.there, m.condemned = there, condemned
	m.used, m.walked, m.done = map[image.SegmentID]bool{}, map[image.ID]bool{}, map[string]bool{}
	m.seen, m.newest, m.lost = map[string]uint64{}, time.Time{}, map[image.ID]bool{}
	m.damaged = map[image.Location]bool{}
	return m.env.Repo.Damaged(ctx, func(_ image.ID, at image.Location) error {
		m.damaged[at] = true
		return nil
	})
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
			return nil // pruned meanwhile
		}
		if errors.Is(err, keys.ErrForged) {
			return nil // no image: nobody needs what it names
		}
		if err != nil {
			return fmt.Errorf("collect: %w: nothing is deleted while an image cannot be read", err)
		}
		if err := m.image(ctx, manifest); err != nil {
			return fmt.Errorf("collect: image %s of %s: %w", manifest.ID, manifest.Volume, err)
		}
		m.done[name] = true
		tag, seq, _ := repo.ParseManifestName(name)
		m.seen[tag] = max(m.seen[tag], seq)
		if manifest.Done.After(m.newest) {
			m.newest = manifest.Done
		}
		return nil
	})
	if err != nil {
		return err
	}
	return m.search(ctx)
}

// search marks every segment that holds what neither a hint nor the catalog
// led to: the catalog passes over segments of which a part cannot be read, and
// does not know those that came after it was brought up to date.
func (m *marks) search(ctx context.Context) error {
	if len(m.lost) == 0 {
		return nil
	}
	for id := range m.there {
		f, err := m.footer(ctx, id)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		for i := range f.Records {
			m.used[id] = m.used[id] || m.lost[f.Records[i].ID]
		}
	}
	return nil
}

// A node is a page that is still to be walked.
type node struct {
	id    image.ID
	at    image.Location
	level int
}

func (m *marks) image(ctx context.Context, manifest *image.Manifest) error {
	todo := []node{{manifest.Root, manifest.RootAt, image.Levels(manifest.Blocks()) - 1}}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if n.id.IsZero() || m.walked[n.id] {
			continue
		}
		if err := m.mark(ctx, n.id, n.at); err != nil {
			return err
		}
		p, err := m.reader.Page(ctx, n.id, n.at)
		if err != nil {
			return fmt.Errorf("%w: nothing is deleted while an image cannot be read", err)
		}
		for i, id := range p.Entries {
			switch {
			case id.IsZero():
			case n.level > 0:
				todo = append(todo, node{id, p.Hints[i], n.level - 1})
			default:
				if err := m.mark(ctx, id, p.Hints[i]); err != nil {
					return err
				}
			}
		}
		m.walked[n.id] = true
	}
	return nil
}

// mark marks one segment that holds a block or page, or has search look for it.
// One that is nowhere is damage for verify to report; it keeps nothing else
// from being collected.
func (m *marks) mark(ctx context.Context, id image.ID, hint image.Location) error {
	if m.good(hint) {
		if ok, err := m.holds(ctx, id, hint); err != nil || ok {
			m.used[hint.Segment] = m.used[hint.Segment] || ok
			return err
		}
	}
	places, err := m.env.Catalog.Locate(ctx, id)
	if err != nil {
		return err
	}
	// Where nothing good is left, what is there counts.
	var spare image.SegmentID
	for _, at := range append(places, hint) {
		ok, err := m.holds(ctx, id, at)
		if err != nil {
			return err
		}
		if ok && m.good(at) {
			m.used[at.Segment] = true
			return nil
		}
		if ok {
			spare = at.Segment
		}
	}
	if spare == (image.SegmentID{}) {
		m.lost[id] = true
		return nil
	}
	m.used[spare] = true
	return nil
}

func (m *marks) good(at image.Location) bool { return !m.condemned[at.Segment] && !m.damaged[at] }

// holds reports whether a segment that was listed holds id there: hints and
// the catalog are believed only when the footer agrees.
func (m *marks) holds(ctx context.Context, id image.ID, at image.Location) (bool, error) {
	if _, ok := m.there[at.Segment]; !ok {
		return false, nil
	}
	f, err := m.footer(ctx, at.Segment)
	return f != nil && int(at.Record) < len(f.Records) && f.Records[at.Record].ID == id, err
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
