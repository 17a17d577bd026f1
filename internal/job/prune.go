package job

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store"
	"platter/retention"
)

// ErrTooMany means that a prune would have forgotten more than it may.
var ErrTooMany = errors.New("more than one prune may forget")

// Prune forgets the images that no rule keeps, volume by volume. The space
// they took is given back by Collect.
//
// It takes a lease before it reads pins, so that who pins an image knows of
// prunes that may not have seen that. Where more would go than may, nothing
// does, and the report comes with ErrTooMany.
func Prune(ctx context.Context, env *Env, opts PruneOptions) (*PruneReport, error) {
	if !env.Repo.Keys.Writer().MayCollect() {
		return nil, fmt.Errorf("prune: %w", keys.ErrRights)
	}
	var holder *repo.Holder
	if !opts.DryRun {
		var run [16]byte
		rand.Read(run[:])
		var err error
		if holder, err = env.Repo.Acquire(ctx, repo.LeasePrune, run); err != nil {
			return nil, fmt.Errorf("prune: %w", err)
		}
		defer holder.Release(ctx)
	}
	if err := env.sync(ctx); err != nil {
		return nil, err
	}
	report, err := opts.judge(ctx, env)
	if err != nil {
		return nil, err
	}
	if err := opts.bound(report); err != nil || opts.DryRun {
		report.Refused = err != nil
		return report, err
	}
	for _, v := range report.Verdicts {
		if v.Keep {
			continue
		}
		if !holder.Valid() {
			return report, errors.New("prune: the lease ran out: run it again")
		}
		err := env.Repo.Forget(ctx, v.name, v.Reason)
		if errors.Is(err, store.ErrNotFound) {
			if _, other := env.Repo.Tombstone(ctx, v.name); other == nil {
				err = nil // another prune was quicker, or its run withdrew it
			}
		}
		if err != nil {
			return report, err
		}
		if err := env.Catalog.DropManifest(ctx, v.name); err != nil {
			return report, err
		}
	}
	return report, nil
}

// judge gives a verdict on every image, those of each line by themselves: what
// one writer calls another's volume must not push out that one's images.
func (o *PruneOptions) judge(ctx context.Context, env *Env) (*PruneReport, error) {
	lines, names, err := o.lines(ctx, env)
	if err != nil {
		return nil, err
	}
	notes, err := ReadNotes(ctx, env)
	if err != nil {
		return nil, fmt.Errorf("prune: %w: nothing is forgotten while nobody knows what is to be kept", err)
	}
	now, err := env.Repo.Store.Now(ctx)
	if err != nil {
		return nil, err
	}
	// Images are dated by the clocks of those who made them, here most often.
	if here := env.Repo.Machine.Now(); here.After(now) {
		now = here
	}
	rules, zone := o.Rules, o.Zone
	if len(rules) == 0 {
		rules = []retention.Rule{{Policy: o.Policy}}
	}
	if zone == nil {
		zone = time.Local
	}
	report := &PruneReport{DryRun: o.DryRun}
	for _, line := range sortedKeys(lines) {
		volume, _, _ := strings.Cut(line, " ")
		verdicts, err := retention.ApplyRules(rules, volume, items(lines[line], notes), now, zone)
		if err != nil {
			return nil, fmt.Errorf("prune %s: %w: %w", volume, err, ErrUsage)
		}
		for _, v := range verdicts {
			if why := o.suspended(volume); why != "" && !v.Keep {
				v.Keep, v.Reasons = true, []string{why}
			}
			report.add(line, names[line+v.ID], v)
		}
	}
	return report, nil
}

func (o *PruneOptions) suspended(volume string) string {
	if o.Suspended == nil {
		return ""
	}
	return o.Suspended(volume)
}

// bound refuses to forget more than may be. It counts each line by itself, or
// the images that an agent says are of a volume would raise what may be taken
// from that volume's own.
func (o *PruneOptions) bound(r *PruneReport) error {
	all, dropped := map[string]int{}, map[string]int{}
	for _, v := range r.Verdicts {
		all[v.line]++
		if !v.Keep {
			dropped[v.line]++
		}
	}
	var over []string
	for _, line := range sortedKeys(dropped) {
		if o.MaxDelete > 0 && float64(dropped[line]) > o.MaxDelete*float64(all[line]) {
			over = append(over, fmt.Sprintf("%d of the %d images of %s", dropped[line], all[line], lineName(line)))
		}
	}
	switch {
	case o.MaxCount > 0 && r.Dropped > o.MaxCount:
		over = []string{fmt.Sprintf("%d images", r.Dropped)}
	case len(over) == 0:
		return nil
	case len(over) > 5:
		over = append(over[:5], fmt.Sprintf("and of %d more", len(over)-5))
	}
	return fmt.Errorf("prune: the rules would forget %s: %w at once, so none is forgotten", strings.Join(over, ", "), ErrTooMany)
}

// lines returns the images to judge by volume and line, and the manifest name
// of each by its line and ID: an ID alone may be another's too.
func (o *PruneOptions) lines(ctx context.Context, env *Env) (map[string][]*image.Manifest, map[string]string, error) {
	lines, names := map[string][]*image.Manifest{}, map[string]string{}
	all, chosen := map[string]bool{}, map[string]bool{}
	err := env.Catalog.Manifests(ctx, func(name string, m *image.Manifest) error {
		all[m.Volume] = true
		if len(o.Volumes) == 0 || slices.ContainsFunc(o.Volumes, func(v string) bool { return m.Volume == v || m.Volume == env.Host+"/"+v }) {
			line := m.Volume + " " + m.Line()
			lines[line] = append(lines[line], m)
			names[line+m.ID.String()] = name
			chosen[m.Volume] = true
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for _, v := range o.Volumes {
		if !chosen[v] && !chosen[env.Host+"/"+v] {
			return nil, nil, fmt.Errorf("prune: no volume %q; there are: %s: %w", v, strings.Join(sortedKeys(all), ", "), ErrUsage)
		}
	}
	return lines, names, nil
}

// lineName is how a line of "volume writer" is told, and can be asked for.
func lineName(line string) string {
	volume, writer, _ := strings.Cut(line, " ")
	if writer == "" {
		return volume
	}
	return fmt.Sprintf("%s%%%.16s", volume, writer)
}

func items(images []*image.Manifest, notes *Notes) []retention.Item {
	list := make([]retention.Item, len(images))
	for i, m := range images {
		n := notes.Of(m)
		list[i] = retention.Item{
			ID: m.ID.String(), Seq: m.Seq, Time: m.Time, Tags: m.Tags, Complete: !m.Incomplete(),
			Verified: n.verified(), Pinned: n.pinned(),
		}
	}
	return list
}

func (r *PruneReport) add(line, name string, v retention.Verdict) {
	volume, _, _ := strings.Cut(line, " ")
	r.Verdicts = append(r.Verdicts, PruneVerdict{
		name: name, line: line, Image: v.ID, Volume: volume, Time: v.Time, Keep: v.Keep, Reason: strings.Join(v.Reasons, "; "),
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
