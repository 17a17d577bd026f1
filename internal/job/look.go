package job

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"platter/image"
	"platter/image/reader"
	"platter/image/store"
)

// Images returns the images of a volume, or of all with volume "", oldest
// first. A manifest that cannot be read is warned about and left out; leftOut
// counts those, whose volumes nobody knows.
//
// What images there are, the repository says; the catalog only saves reading
// manifests that it knows.
func Images(ctx context.Context, env *Env, volume string) (list []*image.Manifest, leftOut int, err error) {
	all, leftOut, err := manifests(ctx, env)
	if err != nil || volume == "" {
		return all, leftOut, err
	}
	name, err := findVolume(all, env.Host, volume)
	if err != nil {
		return nil, leftOut, err
	}
	if name == "" {
		return nil, leftOut, fmt.Errorf("no images of a volume %q: %s", volume, volumesThere(all))
	}
	return slices.DeleteFunc(all, func(m *image.Manifest) bool { return m.Volume != name }), leftOut, nil
}

func manifests(ctx context.Context, env *Env) (all []*image.Manifest, leftOut int, err error) {
	var names []string
	err = env.Repo.Manifests(ctx, func(name string) error {
		names = append(names, name)
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list images: %w", err)
	}
	found, leftOut, err := readManifests(ctx, env, names, knownManifests(ctx, env))
	if err != nil {
		return nil, 0, err
	}
	all = slices.Collect(maps.Values(found))
	sortManifests(all)
	return all, leftOut, nil
}

// Diff tells where two images differ. What only the larger one has counts as
// different. Images of different volumes may be compared.
func Diff(ctx context.Context, env *Env, a, b string) (*DiffReport, error) {
	x, err := Find(ctx, env, a)
	if err != nil {
		return nil, err
	}
	y, err := Find(ctx, env, b)
	if err != nil {
		return nil, err
	}
	return diff(ctx, env.reader(), x, y)
}

func diff(ctx context.Context, rd *reader.Reader, x, y *image.Manifest) (*DiffReport, error) {
	report := &DiffReport{A: x.ID.String(), B: y.ID.String()}
	bs, size := int64(x.BlockSize), max(x.Size, y.Size)
	err := rd.Diff(ctx, reader.MapOf(x), reader.MapOf(y), func(first, count int64) error {
		report.add(first*bs, min((first+count)*bs, size))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare images %.8s and %.8s: %w", x.ID, y.ID, damaged(x, err))
	}
	report.add(min(x.Size, y.Size), size)
	for _, e := range report.Extents {
		report.Bytes += e.Length
	}
	return report, nil
}

// add appends the bytes from start to before end, which begin nowhere before
// those added last, except that they may overlap the tail of them.
func (d *DiffReport) add(start, end int64) {
	for n := len(d.Extents); n > 0; n-- {
		last := &d.Extents[n-1]
		if start > last.End() {
			break
		}
		start, end = min(start, last.Offset), max(end, last.End())
		d.Extents = d.Extents[:n-1]
	}
	if end > start {
		d.Extents = append(d.Extents, extentOf(start, end))
	}
}

// Stats sums up a repository: from the catalog if there is one, else from the
// footers of all segments.
func Stats(ctx context.Context, env *Env) (*StatsReport, error) {
	s := &StatsReport{Repository: env.Repo.Config.Repository}
	images, _, err := manifests(ctx, env)
	if err != nil {
		return nil, err
	}
	volumes := map[string]bool{}
	for _, m := range images {
		volumes[m.Volume] = true
		s.Logical += m.Size
	}
	s.Images, s.Volumes = len(images), len(volumes)
	condemned, err := env.Repo.NewestCondemned(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range condemned.Segments {
		s.Condemned += c.Size
	}
	if err := env.Repo.Store.List(ctx, "", func(o store.Info) error {
		s.Stored += o.Size
		if strings.HasPrefix(o.Name, "segments/") {
			s.Segments++
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("sum up the repository: %w", err)
	}
	return s, s.count(ctx, env)
}
