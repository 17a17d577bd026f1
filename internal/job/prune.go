package job

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/image"
	"platter/retention"
)

// Prune forgets the images that a policy does not keep, volume by volume. The
// space they took is given back by Collect.
func Prune(ctx context.Context, env *Env, opts PruneOptions) (*PruneReport, error) {
	if err := env.sync(ctx); err != nil {
		return nil, err
	}
	volumes, names, err := opts.volumes(ctx, env)
	if err != nil {
		return nil, err
	}
	now, err := env.Repo.Store.Now(ctx)
	if err != nil {
		return nil, err
	}
	// Images are dated by the clocks of those who made them, here most often.
	if here := env.Repo.Machine.Now(); here.After(now) {
		now = here
	}
	report := &PruneReport{DryRun: opts.DryRun}
	zone := opts.Zone
	if zone == nil {
		zone = time.Local
	}
	for _, volume := range sortedKeys(volumes) {
		verdicts, err := retention.Apply(opts.Policy, items(volumes[volume]), now, zone)
		if err != nil {
			return nil, fmt.Errorf("prune %s: %w: %w", volume, err, ErrUsage)
		}
		for _, v := range verdicts {
			report.add(volume, v)
		}
	}
	if opts.DryRun {
		return report, nil
	}
	for _, v := range report.Verdicts {
		if v.Keep {
			continue
		}
		name := names[v.Image]
		if err := env.Repo.Forget(ctx, name, v.Reason); err != nil {
			return report, err
		}
		if err := env.Catalog.DropManifest(ctx, name); err != nil {
			return report, err
		}
	}
	return report, nil
}

// volumes returns the images to judge by volume, and the manifest name of each
// by image ID.
func (o *PruneOptions) volumes(ctx context.Context, env *Env) (map[string][]*image.Manifest, map[string]string, error) {
	volumes, names := map[string][]*image.Manifest{}, map[string]string{}
	all := map[string]bool{}
	err := env.Catalog.Manifests(ctx, func(name string, m *image.Manifest) error {
		all[m.Volume] = true
		if len(o.Volumes) == 0 || slices.ContainsFunc(o.Volumes, func(v string) bool { return m.Volume == v || m.Volume == env.Host+"/"+v }) {
			volumes[m.Volume] = append(volumes[m.Volume], m)
			names[m.ID.String()] = name
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for _, v := range o.Volumes {
		if volumes[v] == nil && volumes[env.Host+"/"+v] == nil {
			return nil, nil, fmt.Errorf("prune: no volume %q; there are: %s: %w", v, strings.Join(sortedKeys(all), ", "), ErrUsage)
		}
	}
	return volumes, names, nil
}

func items(images []*image.Manifest) []retention.Item {
	list := make([]retention.Item, len(images))
	for i, m := range images {
		list[i] = retention.Item{ID: m.ID.String(), Seq: m.Seq, Time: m.Time, Complete: !m.Incomplete()}
	}
	return list
}

func (r *PruneReport) add(volume string, v retention.Verdict) {
	r.Verdicts = append(r.Verdicts, PruneVerdict{
		Image: v.ID, Volume: volume, Time: v.Time, Keep: v.Keep, Reason: strings.Join(v.Reasons, "; "),
	})
	if v.Keep {
		r.Kept++
	} else {
		r.Dropped++
	}
}

func sortedKeys[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}
