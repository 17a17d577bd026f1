package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/store"
)

// A Deleted image was pruned, and is not there.
type Deleted struct {
	Image  *image.Manifest `json:"image"`
	Reason string          `json:"reason"`
	Time   time.Time       `json:"deleted"` // by the store's clock
	// Restorable is false when even the root of its map is gone. Otherwise
	// Undelete finds out whether all of it is there.
	Restorable bool `json:"restorable"`

	name string // of the manifest
	tomb *repo.Tombstone
}

// ListDeleted returns the images of a volume, or of all with volume "", that
// were pruned and are not there, by the time they were taken.
func ListDeleted(ctx context.Context, env *Env, volume string) ([]Deleted, error) {
	list, err := deleted(ctx, env)
	if err != nil {
		return nil, err
	}
	if volume != "" {
		name, err := findVolume(manifestsOf(list), env.Host, volume)
		if err != nil {
			return nil, err
		}
		list = slices.DeleteFunc(list, func(d Deleted) bool { return d.Image.Volume != name })
	}
	rd := env.reader()
	for i := range list {
		m := list[i].Image
		if m.Root.IsZero() {
			list[i].Restorable = true
			continue
		}
		_, err := rd.Page(ctx, m.Root, m.RootAt)
		if err != nil && !reader.Damaged(err) {
			return nil, err
		}
		list[i].Restorable = err == nil
	}
	return list, nil
}

func manifestsOf(list []Deleted) []*image.Manifest {
	all := make([]*image.Manifest, len(list))
	for i := range list {
		all[i] = list[i].Image
	}
	return all
}

func deleted(ctx context.Context, env *Env) (list []Deleted, err error) {
	there := map[string]bool{}
	err = env.Repo.Manifests(ctx, func(name string) error {
		there[name] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	err = env.Repo.Tombstones(ctx, func(name string) error {
		if there[name] {
			return nil
		}
		t, err := env.Repo.Tombstone(ctx, name)
		if reader.Damaged(err) {
			env.warn("a deleted image is left out, its tombstone cannot be read: %v", err)
			return nil
		}
		if err == nil && !t.Lost() {
			list = append(list, Deleted{Image: &t.Image, Reason: t.Reason, Time: t.Time, name: name, tomb: t})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list deleted images: %w", err)
	}
	slices.SortFunc(list, func(a, b Deleted) int {
		return cmp.Or(a.Image.Time.Compare(b.Image.Time), cmp.Compare(a.Image.Volume, b.Image.Volume), cmp.Compare(a.Image.Seq, b.Image.Seq))
	})
	return list, nil
}

// UndeleteOptions say which image to bring back. It comes back pinned, or the
// next prune would forget it again.
type UndeleteOptions struct {
	Image  string    // as on the command line, of those that are deleted
	Reason string    // of the pin
	Until  time.Time // of the pin; zero for no end
	By     string
	Wait   time.Duration // for a prune that is at work
}

// An UndeleteReport tells of an image brought back.
type UndeleteReport struct {
	Image  *image.Manifest `json:"image"`
	Pin    *repo.Pin       `json:"pin"`
	Stored int64           `json:"stored_bytes"` // again, as they were condemned
}

// Undelete brings a pruned image back, as long as all it needs is there.
//
// It works as a backup does: under a lease, what is condemned counts as absent
// and is stored again, and only then the manifest is put back, the same bytes
// under the same name; then it reads once more what was condemned meanwhile.
// What is missing is found out before anything is written.
func Undelete(ctx context.Context, env *Env, opts UndeleteOptions) (*UndeleteReport, error) {
	// Pins of others do not count, and what is stored again has to be read.
	if k := env.Repo.Keys; !k.CanRead() || !k.Writer().MayCollect() {
		return nil, fmt.Errorf("undelete: %w", keys.ErrRights)
	}
	r, err := beginRun(ctx, env, new(BackupOptions))
	if err != nil {
		return nil, err
	}
	defer r.end(ctx)
	r.revives = true
	list, err := deleted(ctx, env)
	if err != nil {
		return nil, err
	}
	m, err := env.find(manifestsOf(list), opts.Image)
	if err != nil {
		return nil, fmt.Errorf("undelete: of the deleted images: %w", err)
	}
	d := list[slices.IndexFunc(list, func(d Deleted) bool { return d.Image == m })]
	report, err := r.undelete(ctx, &d, opts)
	if err != nil {
		return nil, fmt.Errorf("undelete image %.8s of %s: %w", m.ID, m.Volume, err)
	}
	return report, outlive(ctx, env, m, opts.Wait)
}

func (r *run) undelete(ctx context.Context, d *Deleted, opts UndeleteOptions) (*UndeleteReport, error) {
	m := d.Image
	if err := r.whole(ctx, m); err != nil {
		return nil, err
	}
	if err := r.reclaim(ctx, m, r.holder.Condemned.IDs()); reader.Damaged(err) {
		return nil, fmt.Errorf("%w: a collection was quicker: %w", err, errGone)
	} else if err != nil {
		return nil, err
	}
	pin, err := putPin(ctx, r.env, m, PinOptions{Reason: opts.Reason, Until: opts.Until, By: opts.By})
	if err != nil {
		return nil, err
	}
	// From here on an interrupt comes too late: the last steps are short.
	ctx = context.WithoutCancel(ctx)
	if err := r.env.Repo.Revive(ctx, d.name, d.tomb); err != nil {
		if errors.Is(err, store.ErrExists) {
			err = errors.New("something else put its manifest back at the same moment: look at it, and try again")
		}
		return nil, errors.Join(err, r.env.Repo.RemovePin(ctx, pin))
	}
	if err := r.secure(ctx, m); err != nil {
		err = fmt.Errorf("%w: it is withdrawn, try again", err)
		return nil, errors.Join(err, r.env.Repo.Forget(ctx, d.name, "withdrawn: "+err.Error()), r.env.Repo.RemovePin(ctx, pin))
	}
	stored := r.stored()
	return &UndeleteReport{Image: m, Pin: pin, Stored: stored.payload + stored.overhead}, r.env.Catalog.PutManifest(ctx, d.name, m)
}

// whole proves that every page of the image can be read, and that every block
// is somewhere.
func (r *run) whole(ctx context.Context, m *image.Manifest) error {
	v := newVerifier(r.env, VerifyOptions{})
	v.images = []*image.Manifest{m}
	if err := v.maps(ctx); err != nil {
		return err
	}
	if n := len(v.bad.list) + v.bad.more; n > 0 {
		return fmt.Errorf("%d of its blocks and pages are gone from the repository, the first: %s: %w", n, v.bad.list[0].problem(), errGone)
	}
	return nil
}

var errGone = errors.New("it cannot come back")
