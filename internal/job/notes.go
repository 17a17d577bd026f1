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
	Pins   map[image.ImageID][]repo.Pin // that have not ended, oldest first
	Ended  map[image.ImageID][]repo.Pin
	Checks map[image.ImageID]repo.Check
}

// ReadNotes reads the notes on all images. With an error it returns those that
// could be read: enough to show, not to decide by.
func ReadNotes(ctx context.Context, env *Env) (*Notes, error) {
	n := &Notes{Pins: map[image.ImageID][]repo.Pin{}, Ended: map[image.ImageID][]repo.Pin{}}
	now, err := env.Repo.Store.Now(ctx)
	pins, problem := env.Repo.Pins(ctx)
	slices.SortStableFunc(pins, func(a, b repo.Pin) int { return a.Time.Compare(b.Time) })
	for _, p := range pins {
		if p.Ended(now) {
			n.Ended[p.Image] = append(n.Ended[p.Image], p)
		} else {
			n.Pins[p.Image] = append(n.Pins[p.Image], p)
		}
	}
	var other error
	n.Checks, other = env.Repo.Checks(ctx)
	return n, errors.Join(err, problem, other)
}

// Verified returns when every byte of an image was last read and found right;
// zero if never, or if damage was found since.
func (n *Notes) Verified(id image.ImageID) time.Time {
	if c := n.Checks[id]; c.Verified() {
		return c.Data
	}
	return time.Time{}
}

// pinned says why an image is pinned, or nothing.
func (n *Notes) pinned(id image.ImageID) (text string) {
	for i := range n.Pins[id] {
		if i > 0 {
			text += "; "
		}
		text += n.Pins[id][i].String()
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
		bad[d.Image] = true
	}
	if len(v.report.Damage) > maxFindings || v.bad.more > 0 {
		v.env.warn("there is more damage than can be told by image: no result is recorded")
		return nil
	}
	var results []repo.Check
	there := map[image.ImageID]bool{}
	for _, m := range v.images {
		there[m.ID] = true
		c := repo.Check{Image: m.ID}
		switch {
		case bad[m.ID.String()]:
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
		return len(v.opts.Images) == 0 && !there[c.Image] && c.Structure.Before(long) && c.Data.Before(long) && c.Damaged.Before(long)
	})
	if err != nil {
		v.env.warn("the result is not recorded: %v", err)
	}
	return ctx.Err()
}
