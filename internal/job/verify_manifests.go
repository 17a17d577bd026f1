package job

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/store"
)

// manifests reads the manifests of the images to verify from the repository.
// For all images it also checks that each volume's form one unbroken chain.
func (v *verifier) manifests(ctx context.Context) error {
	if len(v.opts.Images) > 0 {
		return v.named(ctx)
	}
	chains := map[string]*chain{}
	at := func(tag string) *chain {
		if chains[tag] == nil {
			chains[tag] = &chain{links: map[uint64]link{}, forged: map[uint64]bool{}}
		}
		return chains[tag]
	}
	err := v.env.Repo.Manifests(ctx, func(name string) error {
		tag, seq, _ := repo.ParseManifestName(name)
		m, digest, err := v.env.Repo.ManifestDigest(ctx, name)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil // pruned meanwhile
		case errors.Is(err, keys.ErrForged):
			at(tag).forged[seq] = true
			v.forgery(name, err)
			return nil
		case err != nil && reader.Damaged(err):
			at(tag).links[seq] = link{broken: true}
			v.damage(Damage{Object: name, Problem: "an image cannot be read: " + err.Error()})
			return nil
		case err != nil:
			return err
		}
		v.images = append(v.images, m)
		at(tag).of(m)
		at(tag).links[seq] = link{digest: digest, predecessor: m.Predecessor}
		return nil
	})
	if err != nil {
		return err
	}
	v.report.Images = len(v.images)
	if err := v.graves(ctx, at); err != nil {
		return err
	}
	heads, err := v.env.heads(ctx)
	if err != nil {
		return err
	}
	for tag, h := range heads {
		at(tag).seen(&h)
	}
	for _, tag := range sortedKeys(chains) {
		if err := v.chain(ctx, tag, chains[tag]); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (v *verifier) named(ctx context.Context) error {
	for _, spec := range v.opts.Images {
		m, err := Find(ctx, v.env, spec)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(v.images, func(o *image.Manifest) bool { return v.env.Repo.ManifestName(o) == v.env.Repo.ManifestName(m) }) {
			v.images = append(v.images, m)
		}
	}
	v.report.Images = len(v.images)
	return nil
}

// A chain is the manifests of a volume, those in their graves included.
type chain struct {
	line   image.Manifest // Volume, Writer and WriteOnly are those of the line
	links  map[uint64]link
	forged map[uint64]bool // numbers under which somebody put what is no image
	head   *head           // the newest that this machine has seen; nil for none
}

type link struct {
	digest, predecessor image.Digest
	broken              bool // it cannot be read
}

func (c *chain) of(m *image.Manifest) {
	c.line = image.Manifest{Volume: m.Volume, Writer: m.Writer, WriteOnly: m.WriteOnly}
}

func (c *chain) seen(h *head) {
	c.head = h
	c.of(&image.Manifest{Volume: h.Volume, Writer: h.Writer, WriteOnly: h.WriteOnly})
}

const graveyard = "trash/"

// graves adds the tombstones of pruned images.
func (v *verifier) graves(ctx context.Context, at func(tag string) *chain) error {
	return v.env.Repo.Store.List(ctx, graveyard+"images/", func(o store.Info) error {
		tag, seq, ok := repo.ParseManifestName(o.Name[len(graveyard):])
		if !ok {
			return nil
		}
		t, err := v.env.Repo.Tombstone(ctx, o.Name[len(graveyard):])
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case errors.Is(err, keys.ErrForged):
			at(tag).forged[seq] = true
			v.forgery(o.Name, err)
			return nil
		case err != nil && !reader.Damaged(err):
			return err
		}
		c := at(tag)
		if _, there := c.links[seq]; err != nil {
			v.damage(Damage{Object: o.Name, Problem: "a tombstone cannot be read: " + err.Error()})
			if !there {
				c.links[seq] = link{broken: true}
			}
		} else if !there {
			c.links[seq] = link{digest: t.Digest, predecessor: t.Image.Predecessor, broken: t.Lost()}
			c.of(&t.Image)
		}
		return nil
	})
}

// chain reports images that are gone without a tombstone, those that name
// another predecessor than the one there is, and what is not as this machine
// has seen it.
func (v *verifier) chain(ctx context.Context, tag string, c *chain) error {
	last := uint64(0)
	for seq := range c.links {
		last = max(last, seq)
	}
	if c.head != nil {
		last = max(last, c.head.Seq)
	}
	const most = 1000 // a forged number must not cost a long list
	gaps := 0
	before, sure := image.Digest{}, true // of the image before; none before the first
	for seq := uint64(1); seq <= last && gaps < most; seq++ {
		l, ok := c.links[seq]
		name := fmt.Sprintf("images/%s/%016x", tag, seq)
		seen := c.head != nil && c.head.Seq == seq
		switch {
		case !ok && c.forged[seq] && !seen:
			continue // nobody's: the next image follows the one before
		case !ok:
			missing, err := v.missing(ctx, name)
			if err != nil {
				return err
			}
			if seen && (missing || c.forged[seq]) {
				v.gap(c, *c.head.absent(tag, 0, "the image is gone, and nothing says that it was pruned: this machine has seen it, and it was the newest"))
			} else if missing {
				gaps++
				v.gap(c, Absent{Volume: c.line.Volume, Seq: seq, Object: name, Problem: "the image is gone, and nothing says that it was pruned"})
			}
		case seen && !l.broken && l.digest != c.head.Digest:
			v.damage(Damage{Volume: c.line.Volume, Object: name, Problem: fmt.Sprintf("this machine has seen image %s under this number, and it is another now", c.head.Image)})
		case sure && !l.broken && l.predecessor != before:
			v.damage(Damage{Volume: c.line.Volume, Object: name, Problem: fmt.Sprintf("it follows a manifest of digest %.16s…, and the one before it has %.16s…", l.predecessor, before)})
		}
		before, sure = l.digest, ok && !l.broken
	}
	return nil
}

// missing reports whether there is neither a manifest nor its tombstone. It may
// have been made after the manifests were listed, and a later one been pruned
// before the tombstones were.
func (v *verifier) missing(ctx context.Context, name string) (bool, error) {
	for _, object := range []string{name, graveyard + name} {
		_, err := v.env.Repo.Store.Head(ctx, object)
		if !errors.Is(err, store.ErrNotFound) {
			return false, err
		}
	}
	return true, nil
}

// gap reports an image that is gone.
func (v *verifier) gap(c *chain, a Absent) {
	a.line = c.line
	v.absent = append(v.absent, a)
	v.damage(Damage{Volume: a.Volume, Object: a.Object, Problem: a.Problem})
}
