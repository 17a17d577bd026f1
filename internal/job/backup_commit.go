package job

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"time"

	"platter/catalog"
	"platter/image"
	"platter/image/reader"
	"platter/image/segment"
	"platter/image/store"
)

// errCollected: what the run stands on was taken away while its lease had run
// out.
var errCollected = errors.New("what the image stands on was collected while this run's lease was not renewed")

// commit makes the image exist, then proves that nobody took away what it
// stands on while it was being made.
func (r *run) commit(ctx context.Context, m *image.Manifest) error {
	// From here on an interrupt comes too late: the last steps are short.
	ctx, done := lingering(ctx)
	defer done()
	if !r.holder.Valid() {
		// The run may have been taken for dead, as when the store was out of
		// reach for long. Nobody is to see an image that is not whole.
		if err := r.secure(ctx, m); err != nil {
			return fmt.Errorf("%w: %w", errCollected, err)
		}
	}
	seen, err := r.env.seenLast(ctx, m.Volume)
	if err != nil {
		return err
	}
	name, err := r.env.Repo.CommitAfter(ctx, m, seen.Seq, seen.Digest)
	if errors.Is(err, store.ErrNotDurable) {
		// The manifest may or may not be there: the image is made again under
		// the next number, and a new ID tells the two apart.
		rand.Read(m.ID[:])
		name, err = r.env.Repo.CommitAfter(ctx, m, seen.Seq, seen.Digest)
	}
	if err != nil {
		return err
	}
	if err := r.secure(ctx, m); err != nil {
		err = fmt.Errorf("%w: %w: the image is withdrawn", errCollected, err)
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
	condemned, whole, err := r.env.Repo.CondemnedSince(ctx, r.holder.Epoch())
	if err != nil {
		return err
	}
	// Lists may have come and gone while the lease was not there.
	if len(condemned) == 0 && whole && r.holder.Valid() {
		return nil
	}
	maps.Copy(condemned, r.holder.Condemned.IDs())
	return r.reclaim(ctx, m, condemned)
}

// reclaim stores again what an image uses of segments that are gone, condemned
// or not to be trusted. An image that is brought back uses what it always did,
// trusted or not: of that only what is condemned has to be stored again.
func (r *run) reclaim(ctx context.Context, m *image.Manifest, condemned map[image.SegmentID]bool) error {
	there, good := map[image.SegmentID]bool{}, map[image.SegmentID]bool{}
	err := r.env.Repo.Segments(ctx, func(id image.SegmentID, _ int64, _ time.Time) error {
		there[id] = !condemned[id] && !r.ruined[id]
		return nil
	})
	if err != nil {
		return err
	}
	err = r.env.Catalog.Segments(ctx, func(s catalog.SegmentInfo) error {
		good[s.ID] = there[s.ID] && r.trust.usable(s.Writer, s.Moved, s.ID, s.Digest)
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.distrust(ctx, good); err != nil {
		return err
	}
	if r.revives {
		good = there
	}
	return r.rescue(ctx, m, good)
}

// distrust has this run and its catalog take for absent what lies in other
// segments than the good ones.
func (r *run) distrust(ctx context.Context, good map[image.SegmentID]bool) error {
	for id := range r.usable {
		if !good[id] {
			delete(r.usable, id)
		}
	}
	var bad []image.SegmentID
	err := r.env.Catalog.Segments(ctx, func(s catalog.SegmentInfo) error {
		if !good[s.ID] {
			bad = append(bad, s.ID)
		}
		return nil
	})
	r.env.Catalog.SetCondemned(bad)
	return err
}

// rescue stores again every block and page of an image that lies in no good
// segment. A hint that leads elsewhere proves nothing of where a block lies:
// such blocks are looked up.
func (r *run) rescue(ctx context.Context, m *image.Manifest, good map[image.SegmentID]bool) error {
	rd := r.env.reader()
	err := rd.WalkAll(ctx, reader.MapOf(m), 0, m.Blocks(), reader.Visitor{Page: func(n reader.Node, p *image.Page) error {
		if !good[n.At.Segment] {
			if err := r.keep(ctx, rd, r.pages, n.ID, n.At, p); err != nil {
				return err
			}
		}
		if n.Level > 0 {
			return nil
		}
		for i, id := range p.Entries {
			if id.IsZero() || good[p.Hints[i].Segment] {
				continue
			}
			if err := r.keep(ctx, rd, r.data, id, p.Hints[i], nil); err != nil {
				return err
			}
		}
		return nil
	}})
	return errors.Join(err, r.flush())
}

// keep stores a block or page again unless the catalog knows a good place.
func (r *run) keep(ctx context.Context, rd *reader.Reader, w *segmentWriter, id image.ID, at image.Location, p *image.Page) error {
	var known [1]image.Location
	if err := r.env.Catalog.Lookup(ctx, []image.ID{id}, known[:]); err != nil || !known[0].IsZero() {
		return err
	}
	err := r.copy(ctx, rd, w, id, at, p)
	if err == nil {
		return nil
	}
	places, _ := r.env.Catalog.Locate(ctx, id)
	for _, at := range places {
		if r.copy(ctx, rd, w, id, at, p) == nil {
			return nil
		}
	}
	return err
}

// copy stores a record again as it is, checked as far as the footer goes: so it
// is taken only from segments whose footers are to be trusted, or of an image
// that is brought back, after its content was proven.
func (r *run) copy(ctx context.Context, rd *reader.Reader, w *segmentWriter, id image.ID, at image.Location, p *image.Page) error {
	f, err := rd.Footer(ctx, at.Segment)
	if err != nil {
		return err
	}
	trusted := r.trust.usable(f.Writer, f.Moved, f.ID, f.Digest)
	if !trusted && !r.revives {
		return fmt.Errorf("block %s at %s: its writer %.16s is not to be trusted: %w", id, at, f.Writer, image.ErrCorrupt)
	}
	if int(at.Record) >= len(f.Records) || f.Records[at.Record].ID != id {
		return fmt.Errorf("block %s is not at %s: %w", id, at, image.ErrCorrupt)
	}
	rec := f.Records[at.Record]
	payload := make([]byte, rec.Stored)
	if err := r.env.Repo.Store.ReadAt(ctx, segment.Name(at.Segment), payload, rec.Offset); err != nil {
		return err
	}
	if !trusted && p == nil {
		if err := r.prove(ctx, f, int(at.Record), payload); err != nil {
			return err
		}
	}
	m, err := f.Move(int(at.Record), payload)
	if err != nil {
		return err
	}
	s, mine := w.claim(id)
	if !mine {
		return nil
	}
	return w.move(s, m, p)
}

// prove makes sure that the payload of a block is what its ID says.
func (r *run) prove(ctx context.Context, f *segment.Footer, n int, payload []byte) error {
	if err := r.env.Repo.Unlock(ctx, f); err != nil {
		return err
	}
	plain := make([]byte, f.Records[n].Plain)
	if err := f.Decode(new(segment.Codec), plain, payload, n); err != nil {
		return err
	}
	if id := f.Records[n].ID; r.env.Repo.Hasher().Block(plain) != id {
		return fmt.Errorf("%s: record %d does not hold block %s: %w", segment.Name(f.ID), n, id, image.ErrCorrupt)
	}
	return nil
}
