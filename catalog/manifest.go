package catalog

import (
	"context"
	"encoding/json"

	"platter/image"
)

// PutManifest keeps a copy of a durable manifest under its object name. When
// it returns nil, a crash does not undo it.
func (c *Catalog) PutManifest(ctx context.Context, name string, m *image.Manifest) error {
	return c.putManifest(ctx, name, m, true)
}

func (c *Catalog) putManifest(ctx context.Context, name string, m *image.Manifest, durable bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	value, err := json.Marshal(m)
	if err != nil {
		return c.state.wrap("put manifest "+name+" into", err)
	}
	b := c.db.NewBatch()
	b.Set(manifestKey(name), value, nil)
	return c.apply("put manifest "+name+" into", b, durable)
}

// DropManifest forgets a manifest that is gone from the repository. One that
// is unknown is passed over.
func (c *Catalog) DropManifest(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b := c.db.NewBatch()
	b.Delete(manifestKey(name), nil)
	return c.apply("drop manifest "+name+" from", b, true)
}

// Manifests calls f for every manifest known, in order of object name, until f
// returns an error. The manifest is f's to keep.
func (c *Catalog) Manifests(ctx context.Context, f func(name string, m *image.Manifest) error) error {
	return c.scan(ctx, "list manifests of", bounds(tagManifest), func(key, value []byte) error {
		m := new(image.Manifest)
		if err := json.Unmarshal(value, m); err != nil {
			return corrupt("manifest %q: %v", key[1:], err)
		}
		return own(f(string(key[1:]), m))
	})
}
