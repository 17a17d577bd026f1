package reader

import (
	"context"
	"fmt"

	"platter/image"
	"platter/image/segment"
)

// Page returns a map page, checked against its ID. hint may be zero. The page
// is shared: do not change it.
func (r *Reader) Page(ctx context.Context, id image.ID, hint image.Location) (*image.Page, error) {
	pages, lost, err := r.getPages(ctx, []Ref{{ID: id, At: hint}})
	if err != nil {
		return nil, err
	}
	if len(lost) > 0 {
		return nil, lost[0]
	}
	return pages[0], nil
}

// getPages returns the pages that refs name, at most image.PageEntries, and
// says which of them could not be had.
func (r *Reader) getPages(ctx context.Context, refs []Ref) ([]*image.Page, []*Lost, error) {
	pages := make([]*image.Page, len(refs))
	var missing []Ref
	var place []int
	for i := range refs {
		if p, ok := r.pages.get(refs[i].ID); ok {
			pages[i] = p
			continue
		}
		missing, place = append(missing, refs[i]), append(place, i)
	}
	if len(missing) == 0 {
		return pages, nil, ctx.Err()
	}
	b := &batch{
		reader: r, kind: segment.Pages, stride: image.MaxPageEncoded, refs: missing, fits: fitsPage,
		// Each ref succeeds once, so no two goroutines set the same element.
		check: func(w *worker, items []item, plain []byte) error {
			if w.hasher.Page(plain[:image.PageSize]) != missing[items[0].ref].ID {
				return errContent
			}
			p, err := image.DecodePage(plain)
			if err != nil {
				return err
			}
			for _, it := range items {
				pages[place[it.ref]] = p
			}
			return nil
		},
	}
	lost, err := b.read(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range lost {
		l.Ref = place[l.Ref]
	}
	for i := range missing {
		if p := pages[place[i]]; p != nil {
			r.pages.put(missing[i].ID, p)
		}
	}
	return pages, lost, nil
}

func fitsPage(_ *Ref, rec *segment.Record) error {
	if rec.Plain < image.PageSize || rec.Plain > image.MaxPageEncoded {
		return fmt.Errorf("record of %d bytes for a map page: %w", rec.Plain, image.ErrCorrupt)
	}
	return nil
}
