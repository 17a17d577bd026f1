package job

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"platter/image"
	"platter/image/reader"
	"platter/image/segment"
	"platter/image/store"
)

// commit makes the image exist, then proves that nobody took away what it
// stands on while it was being made.
func (r *run) commit(ctx context.Context, m *image.Manifest) error {
	// From here on an interrupt comes too late: the last steps are short.
	ctx = context.WithoutCancel(ctx)
	name, err := r.env.Repo.Commit(ctx, m)
	if errors.Is(err, store.ErrNotDurable) {
		// The manifest may or may not be there: the image is made again under
		// the next number, and a new ID tells the two apart.
		rand.Read(m.ID[:])
		name, err = r.env.Repo.Commit(ctx, m)
	}
	if err != nil {
		return err
	}
	if err := r.secure(ctx, m); err != nil {
		err = fmt.Errorf("%w: the image is withdrawn, run the backup again", err)
		return errors.Join(err, r.env.Repo.Forget(ctx, name, "withdrawn: "+err.Error()))
	}
	return r.env.Catalog.PutManifest(ctx, name, m)
}

// secure reads what was condemned since the lease began and stores again
// whatever of it the image uses.
//
// A collector deletes nothing past a live lease that is older than its list,
// and lists manifests afresh before it deletes. So this finds work only where
// a lease ran out, as on a machine that slept.
func (r *run) secure(ctx context.Context, m *image.Manifest) error {
	condemned, whole, err := r.env.Repo.CondemnedSince(ctx, m.Epoch)
	if err != nil {
		return err
	}
	if !whole || !r.holder.Valid() {
		// Lists may have come and gone: look at what is there.
		if err := r.missing(ctx, condemned); err != nil {
			return err
		}
	}
	if len(condemned) == 0 {
		return nil
	}
	return r.rescue(ctx, m, condemned)
}

// missing adds to the set every segment that was there when the run began and is
// gone now.
func (r *run) missing(ctx context.Context, set map[image.SegmentID]bool) error {
	for id := range r.usable {
		_, err := r.env.Repo.Store.Head(ctx, segment.Name(id))
		if errors.Is(err, store.ErrNotFound) {
			set[id] = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

// rescue stores again every block and page of an image that lies in a
// condemned segment.
func (r *run) rescue(ctx context.Context, m *image.Manifest, condemned map[image.SegmentID]bool) error {
	rd := r.env.reader()
	todo := []node{{m.Root, m.RootAt, image.Levels(m.Blocks()) - 1}}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if n.id.IsZero() {
			continue
		}
		p, err := rd.Page(ctx, n.id, n.at)
		if err != nil {
			return err
		}
		if condemned[n.at.Segment] {
			if err := r.copy(ctx, rd, r.pages, n.id, n.at, p); err != nil {
				return err
			}
		}
		for i, id := range p.Entries {
			at := p.Hints[i]
			switch {
			case id.IsZero():
			case n.level > 0:
				todo = append(todo, node{id, at, n.level - 1})
			case condemned[at.Segment]:
				if err := r.copy(ctx, rd, r.data, id, at, nil); err != nil {
					return err
				}
			}
		}
	}
	return r.flush()
}

// copy stores a record again as it is, checked as far as the footer goes.
func (r *run) copy(ctx context.Context, rd *reader.Reader, w *segmentWriter, id image.ID, at image.Location, p *image.Page) error {
	f, err := rd.Footer(ctx, at.Segment)
	if err != nil {
		return err
	}
	if int(at.Record) >= len(f.Records) || f.Records[at.Record].ID != id {
		return fmt.Errorf("block %s is not at %s: %w", id, at, image.ErrCorrupt)
	}
	rec := f.Records[at.Record]
	payload := make([]byte, rec.Stored)
	if err := r.env.Repo.Store.ReadAt(ctx, segment.Name(at.Segment), payload, rec.Offset); err != nil {
		return err
	}
	if err := f.Decode(r.env.Repo.Codec(), make([]byte, rec.Plain), payload, int(at.Record)); err != nil {
		return err
	}
	s, mine := w.claim(id)
	if !mine {
		return nil
	}
	return w.add(s, segment.Record{ID: id, Plain: rec.Plain, Flags: rec.Flags}, payload, p)
}
