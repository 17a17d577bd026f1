package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"platter/image"
	"platter/image/reader"
	"platter/image/repo"
)

// assess finds out which stretches of which images are lost by the damaged
// records. Of a block that has another good copy nothing is: that is damage
// until it was said once, and noted.
func (v *verifier) assess(ctx context.Context) error {
	var err error
	if v.fresh, err = v.unnoted(ctx); err != nil {
		v.env.warn("the next backup may take damaged blocks for stored: %v", err)
	}
	if len(v.bad.list) == 0 {
		return ctx.Err()
	}
	lost, err := v.lost(ctx)
	if err != nil {
		return err
	}
	needed, err := v.affected(ctx, lost)
	if err != nil {
		return err
	}
	fresh, known := make(map[*finding]bool, len(v.fresh)), 0
	for _, f := range v.fresh {
		fresh[f] = true
	}
	for i := range v.bad.list {
		f := &v.bad.list[i]
		switch {
		case needed[f.id]: // said with the images
		case !fresh[f]:
			known++
		default:
			v.damage(Damage{At: f.at, Object: f.object, Problem: f.problem() + " (no image looked at has lost data by it)"})
		}
	}
	if known > 0 {
		v.env.warn("damaged records found before and still there: %d; no image looked at has lost data by them", known)
	}
	if v.bad.more > 0 {
		v.damage(Damage{Problem: fmt.Sprintf("%d more records are damaged than were looked into", v.bad.more)})
	}
	return nil
}

// lost tries to read every block found damaged, from wherever it is stored,
// and returns those that cannot be had.
func (v *verifier) lost(ctx context.Context) (map[image.ID]*finding, error) {
	lost := map[image.ID]*finding{}
	var refs []reader.Ref
	var of []*finding
	for i := range v.bad.list {
		if f := &v.bad.list[i]; !f.page {
			refs = append(refs, reader.Ref{Block: int64(i), ID: f.id, At: f.at, Length: f.length})
			of = append(of, f)
		}
	}
	gone, err := v.reader.Salvage(ctx, refs, func(int64, []byte) error { return nil })
	if err != nil {
		return nil, err
	}
	for _, l := range gone {
		if f := of[l.Ref]; lost[f.id] == nil {
			lost[f.id] = f
		}
	}
	return lost, nil
}

// noteSize is how many damaged records one note names.
const noteSize = 10_000

// note keeps what is damaged from being taken for stored by later backups. A
// repository that cannot be written to is verified all the same.
func (v *verifier) note(ctx context.Context) error {
	fresh := v.fresh
	for len(fresh) > 0 {
		n := min(len(fresh), noteSize)
		ids, at := make([]image.ID, n), make([]image.Location, n)
		for i, f := range fresh[:n] {
			ids[i], at[i] = f.id, f.at
			if v.env.Catalog != nil {
				if err := v.env.Catalog.MarkDamaged(ctx, f.id, f.at); err != nil {
					return err
				}
			}
		}
		if err := v.env.Repo.NoteDamage(ctx, ids, at); err != nil {
			v.env.warn("the next backup may take damaged blocks for stored: %v", err)
			return ctx.Err()
		}
		fresh = fresh[n:]
	}
	return nil
}

// unnoted returns the findings that no earlier verification has noted.
func (v *verifier) unnoted(ctx context.Context) ([]*finding, error) {
	want := map[image.Location]*finding{}
	for i := range v.bad.list {
		if f := &v.bad.list[i]; !f.at.IsZero() {
			want[f.at] = f
			if _, err := v.reader.Footer(ctx, f.at.Segment); errors.Is(err, image.ErrCorrupt) {
				v.broken[f.at.Segment] = err
			}
		}
	}
	for id, err := range v.broken {
		at := image.Location{Segment: id, Record: repo.WholeSegment}
		want[at] = &finding{at: at, err: err}
	}
	if len(want) == 0 {
		return nil, nil
	}
	err := v.env.Repo.Damaged(ctx, func(id image.ID, at image.Location) error {
		if f := want[at]; f != nil && f.id == id {
			delete(want, at)
		}
		return nil
	})
	fresh := slices.Collect(maps.Values(want))
	slices.SortFunc(fresh, func(a, b *finding) int {
		return cmp.Or(slices.Compare(a.at.Segment[:], b.at.Segment[:]), cmp.Compare(a.at.Record, b.at.Record))
	})
	return fresh, err
}
