package job

import (
	"context"
	"errors"
	"slices"
	"time"

	"platter/image"
	"platter/image/repo"
)

// Notes are what the repository knows of images beside their manifests.
type Notes struct {
	repo   *repo.Repo
	images map[string]*ImageNotes // by the name of the manifest
}

// ImageNotes are the notes on one image.
type ImageNotes struct {
	Pins  []repo.Pin // that have not ended, oldest first
	Ended []repo.Pin
	Check *repo.Check // nil if it was never verified
}

// ReadNotes reads the notes on all images. With an error it returns those that
// could be read: enough to show, not to decide by.
func ReadNotes(ctx context.Context, env *Env) (*Notes, error) {
	n := &Notes{env.Repo, map[string]*ImageNotes{}}
	now, err := env.Repo.Store.Now(ctx)
	pins, problem := env.Repo.Pins(ctx)
	slices.SortStableFunc(pins, func(a, b repo.Pin) int { return a.Time.Compare(b.Time) })
	for _, p := range pins {
		if on := n.on(p.Manifest); p.Ended(now) {
			on.Ended = append(on.Ended, p)
		} else {
			on.Pins = append(on.Pins, p)
		}
	}
	checks, other := env.Repo.Checks(ctx)
	for name, c := range checks {
		n.on(name).Check = &c
	}
	return n, errors.Join(err, problem, other)
}

func (n *Notes) on(manifest string) *ImageNotes {
	if n.images[manifest] == nil {
		n.images[manifest] = new(ImageNotes)
	}
	return n.images[manifest]
}

// Of returns the notes on an image.
func (n *Notes) Of(m *image.Manifest) *ImageNotes { return n.on(n.repo.ManifestName(m)) }

// verified reports whether every byte of an image was read and found right, and
// no damage since.
func (n *ImageNotes) verified() bool { return n.Check != nil && n.Check.Verified() }

// pinned says why an image is pinned, or nothing.
func (n *ImageNotes) pinned() (text string) {
	for i := range n.Pins {
		if i > 0 {
			text += "; "
		}
		text += n.Pins[i].String()
	}
	return text
}

// record keeps what the verification found of each image where every machine
// sees it. A repository that cannot be written to is verified all the same.
func (v *verifier) record(ctx context.Context) error {
	if !v.env.Repo.Keys.Writer().MayCollect() {
		return nil // nobody would believe it
	}
	bad := map[string]bool{}
	for _, d := range v.report.Damage {
		bad[d.manifest] = true
	}
	if len(v.report.Damage) > maxFindings || v.bad.more > 0 {
		v.env.warn("there is more damage than can be told by image: no result is recorded")
		return nil
	}
	var results []repo.Check
	there := map[string]bool{}
	for _, m := range v.images {
		name := v.env.Repo.ManifestName(m)
		there[name] = true
		c := repo.Check{Manifest: name}
		switch {
		case bad[name]:
			c.Damaged = v.began
		default:
			c.Structure = v.began
			if v.opts.ReadData || v.opts.Subset == 1 {
				c.Data = v.began
			}
		}
		results = append(results, c)
	}
	// Results of images that are gone go with them, unless another verification
	// may have found an image that was made while this one was at work.
	long := v.began.Add(-24 * time.Hour)
	err := v.env.Repo.NoteChecks(ctx, results, func(c repo.Check) bool {
		return len(v.opts.Images) == 0 && !there[c.Manifest] && c.Structure.Before(long) && c.Data.Before(long) && c.Damaged.Before(long)
	})
	if err != nil {
		v.env.warn("the result is not recorded: %v", err)
	}
	return ctx.Err()
}
