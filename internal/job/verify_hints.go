package job

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

// noLoss is what damage of an object means that only saves others work.
const noLoss = "no image needs it, and platter gc puts another in its place"

// hints looks at what spares newcomers reading: the indexes of segments, and
// where records were moved to. Nothing is believed in it, and nothing is lost
// with it.
func (v *verifier) hints(ctx context.Context) error {
	if len(v.opts.Images) > 0 {
		return nil
	}
	there := map[image.SegmentID]bool{}
	err := v.env.Repo.Segments(ctx, func(id image.SegmentID, _ int64, _ time.Time) error {
		there[id] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("list segments: %w", err)
	}
	if c, err := v.env.Repo.NewestCondemned(ctx); err == nil {
		for id := range c.IDs() {
			if there[id] {
				v.report.Condemned++
			}
		}
	} else if !errors.Is(err, image.ErrCorrupt) { // which strangers has told
		return err
	}
	err = v.env.Repo.Indexes(ctx, func(name string, _ int64) error { return v.indexed(ctx, name, there) })
	if err == nil {
		err = v.env.Repo.MovesNames(ctx, func(name string, _ int64) error {
			_, err := v.env.Repo.Moves(ctx, name)
			return v.hint(ctx, name, err)
		})
	}
	if err != nil {
		return fmt.Errorf("look at indexes: %w", err)
	}
	return nil
}

// indexed proves every segment's end that an index holds.
func (v *verifier) indexed(ctx context.Context, name string, there map[image.SegmentID]bool) error {
	list, err := v.env.Repo.Index(ctx, name)
	if err != nil {
		return v.hint(ctx, name, err)
	}
	v.report.Indexes++
	for i := range list {
		s := &list[i]
		if !there[s.ID] {
			v.report.IndexedGone++
			continue
		}
		v.report.Indexed++
		if _, err := s.Open(v.env.Repo.Keys, s.Object); err != nil {
			return v.hint(ctx, name, fmt.Errorf("the end of segment %s: %w", s.ID, err))
		}
	}
	return ctx.Err()
}

// hint reports an object that cannot be used. What the catalog knows of it is
// forgotten, so that the next collection here looks at it.
func (v *verifier) hint(ctx context.Context, name string, err error) error {
	switch {
	case err == nil, errors.Is(err, store.ErrNotFound):
		return nil
	case errors.Is(err, keys.ErrForged):
		v.forgery(name, err)
	case errors.Is(err, image.ErrCorrupt):
		v.damage(Damage{Object: name, Problem: strings.TrimLeft(strings.TrimPrefix(err.Error(), name), " :") + " (" + noLoss + ")"})
	default:
		return err
	}
	if v.env.Catalog == nil {
		return nil
	}
	return v.env.Catalog.Delete(ctx, indexSpace, name)
}
