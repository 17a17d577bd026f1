package repo

import (
	"context"
	"fmt"
	"strings"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

// maxManifest bounds the object of a manifest in bytes: its tombstone holds it,
// and the manifest once more.
const maxManifest = 4 << 20

// Tombstones calls f for the manifest's name of every image that was ever
// pruned, in order of name. The manifest may be there again.
func (r *Repo) Tombstones(ctx context.Context, f func(manifest string) error) error {
	return r.Store.List(ctx, tombstones, func(o store.Info) error {
		name := strings.TrimPrefix(o.Name, "trash/")
		if _, _, ok := ParseManifestName(name); !ok {
			return nil
		}
		return f(name)
	})
}

// Revive puts the manifest of a pruned image back under its name, the same
// bytes, so that the name never means two things. The tombstone stays: an image
// exists while its manifest does. All that it needs must be durable.
//
// It returns store.ErrExists when a manifest has the name already: that of the
// image, brought back by another, or of a run about to give the number back.
func (r *Repo) Revive(ctx context.Context, manifest string, t *Tombstone) error {
	m := new(image.Manifest)
	if len(t.Object) == 0 {
		return fmt.Errorf("put %s back: its tombstone does not hold it", manifest)
	}
	if _, err := r.Keys.Open(keys.KindManifest, manifest, t.Object, m); err != nil {
		return fmt.Errorf("put %s back: what its tombstone holds: %w", manifest, err)
	}
	if m.ID != t.Image.ID || m.Root != t.Image.Root {
		return fmt.Errorf("put %s back: its tombstone holds the manifest of another image: %w", manifest, image.ErrCorrupt)
	}
	if err := r.Store.Put(ctx, manifest, t.Object); err != nil {
		return fmt.Errorf("put %s back: %w", manifest, err)
	}
	return nil
}
