package job

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"platter/image"
	"platter/image/store"
)

// gone looks once more at what is missing. An image may have been forgotten
// and its blocks collected while it was being verified: that is no damage.
// What the images that are still there miss is.
func (v *verifier) gone(ctx context.Context) error {
	read := v.bad.list[v.mapped:]
	whole := slices.DeleteFunc(slices.Clone(read), missing)
	again := v.vanished || len(whole) < len(read)
	for again || slices.ContainsFunc(v.bad.list, missing) {
		forgotten, err := v.forgotten(ctx)
		if err != nil {
			return err
		}
		if !forgotten && !again {
			return nil
		}
		again = false
		segments := v.report.Segments
		v.bad.list, v.reader = nil, v.newReader()
		if err := v.maps(ctx); err != nil {
			return err
		}
		v.bad.list = append(v.bad.list, whole...)
		v.report.Segments = segments
	}
	return nil
}

func missing(f finding) bool { return errors.Is(f.err, store.ErrNotFound) }

// forgotten leaves out the images that are not there any more, and reports
// whether there are such.
func (v *verifier) forgotten(ctx context.Context) (bool, error) {
	var there []*image.Manifest
	for _, m := range v.images {
		_, err := v.env.Repo.Store.Head(ctx, v.env.Repo.ManifestName(m))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return false, fmt.Errorf("look for image %s: %w", m.ID, err)
		}
		if err == nil {
			there = append(there, m)
		}
	}
	fewer := len(there) < len(v.images)
	v.images = there
	return fewer, nil
}
