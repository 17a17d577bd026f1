package job

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"platter/image"
)

// FindSet returns the images that one run made of several devices, by volume.
// spec is 8 or more hex digits that begin the set's ID, or names one of its
// images as Find takes it.
func FindSet(ctx context.Context, env *Env, spec string) ([]*image.Manifest, error) {
	all, _, err := Images(ctx, env, "")
	if err != nil {
		return nil, err
	}
	id := ""
	for _, m := range all {
		if len(spec) < minPrefix || m.Set == "" || !strings.HasPrefix(m.Set, strings.ToLower(spec)) {
			continue
		}
		if id != "" && id != m.Set {
			return nil, fmt.Errorf("find set %q: ambiguous: %s; %s", spec, id, m.Set)
		}
		id = m.Set
	}
	if id == "" {
		m, err := env.find(all, spec)
		if err != nil {
			return nil, err
		}
		if id = m.Set; id == "" {
			return []*image.Manifest{m}, nil
		}
	}
	return ofSet(all, id), nil
}

// ofSet returns the images of a set, by volume.
func ofSet(all []*image.Manifest, id string) (set []*image.Manifest) {
	for _, m := range all {
		if m.Set == id {
			set = append(set, m)
		}
	}
	slices.SortFunc(set, func(a, b *image.Manifest) int { return strings.Compare(a.Volume, b.Volume) })
	return set
}

// A Target is where one image of a set goes.
type Target struct {
	Image  *image.Manifest
	Target string
}

// Assign tells which image of a set goes where. Each target is VOLUME=TARGET,
// where the end of a volume's name is enough if it is the only one: with several
// disks nothing is left to their order. Images that no target is named for are
// left out.
func Assign(set []*image.Manifest, targets []string) ([]Target, error) {
	var list []Target
	for _, t := range targets {
		name, path, ok := strings.Cut(t, "=")
		if !ok || path == "" {
			return nil, fmt.Errorf("restore: %w: %q: of a set, say which image goes where: VOLUME=TARGET; it has %s", ErrUsage, t, volumesThere(set))
		}
		named := slices.DeleteFunc(slices.Clone(set), func(m *image.Manifest) bool { return !strings.HasSuffix("/"+m.Volume, "/"+name) })
		switch {
		case len(named) == 0:
			return nil, fmt.Errorf("restore: %w: the set has no volume %q: %s", ErrUsage, name, volumesThere(set))
		case len(named) > 1:
			return nil, fmt.Errorf("restore: %w: volume %q is ambiguous: %s", ErrUsage, name, volumesThere(named))
		case slices.ContainsFunc(list, func(o Target) bool { return o.Image == named[0] || o.Target == path }):
			return nil, fmt.Errorf("restore: %w: %q: volume or target is named twice", ErrUsage, t)
		}
		list = append(list, Target{named[0], path})
	}
	return list, nil
}
