package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store"
)

// manifestReaders is how many manifests are read at once: they are small, and a
// store over a network takes its time for each.
const manifestReaders = 16

// readManifests returns the manifests of these names, in no order: those that
// the catalog knows from there. One that is gone by now is left out; one that
// cannot be read is warned about, left out, and counted.
func readManifests(ctx context.Context, env *Env, names []string, known map[string]*image.Manifest) (found map[string]*image.Manifest, leftOut int, err error) {
	found = make(map[string]*image.Manifest, len(names))
	var mu sync.Mutex
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(manifestReaders)
	for _, name := range names {
		if m := known[name]; m != nil {
			mu.Lock()
			found[name] = m
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			m, err := env.Repo.Manifest(group, name)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case group.Err() != nil:
				return group.Err()
			case err == nil:
				found[name] = m
			case errors.Is(err, store.ErrNotFound): // pruned meanwhile
			case errors.Is(err, keys.ErrForged):
				leftOut++
				env.warn("an image is left out, somebody else wrote its manifest: %v", err)
			default:
				leftOut++
				env.warn("an image is left out, its manifest cannot be read: %v", err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, 0, err
	}
	return found, leftOut, ctx.Err()
}

// candidates returns the images among which find looks for what spec names, in
// the order of manifests: the newest of every line, and of the volume that spec
// names all. A repository of many volumes need not be read for one image.
func candidates(ctx context.Context, env *Env, spec string) ([]*image.Manifest, error) {
	lines := map[string][]string{} // names by tag, oldest first
	err := env.Repo.Manifests(ctx, func(name string) error {
		tag, _, _ := repo.ParseManifestName(name)
		lines[tag] = append(lines[tag], name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	known := knownManifests(ctx, env)
	var heads []string
	for _, names := range lines {
		heads = append(heads, names[len(names)-1])
	}
	found, _, err := readManifests(ctx, env, heads, known)
	if err != nil {
		return nil, err
	}
	var volumes []*image.Manifest
	for _, m := range found {
		volumes = append(volumes, m)
	}
	name := spec
	if n := strings.IndexAny(spec, "@%"); n >= 0 {
		name = spec[:n]
	}
	volume, err := findVolume(volumes, env.Host, name)
	var rest []string
	for tag, names := range lines {
		head := found[names[len(names)-1]]
		// Of a line whose newest image cannot be read nobody knows the volume.
		if head == nil || head.Volume == volume || volume == "" && err == nil && spec != "latest" {
			rest = append(rest, lines[tag][:len(names)-1]...)
		}
	}
	more, _, err := readManifests(ctx, env, rest, known)
	if err != nil {
		return nil, err
	}
	for _, m := range more {
		volumes = append(volumes, m)
	}
	sortManifests(volumes)
	return volumes, nil
}

// knownManifests returns what the catalog knows, by name.
func knownManifests(ctx context.Context, env *Env) map[string]*image.Manifest {
	known := map[string]*image.Manifest{}
	if env.Catalog == nil {
		return known
	}
	err := env.Catalog.Manifests(ctx, func(name string, m *image.Manifest) error {
		known[name] = m
		return nil
	})
	if err != nil && ctx.Err() == nil {
		env.warn("%v: reading the images' manifests from the repository", err)
	}
	return known
}

// sortManifests puts images in order of time, volume and number.
func sortManifests(list []*image.Manifest) {
	slices.SortFunc(list, func(a, b *image.Manifest) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Seq, b.Seq))
	})
}
