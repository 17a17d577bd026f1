package job

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"platter/catalog"
	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store"
)

// headSpace of the catalog remembers the newest image seen of each line, by the
// line's tag. Whoever holds the store can take back what nobody has seen yet,
// and no more than that.
const headSpace = "heads"

// A head is the newest image of a line that this machine has seen.
type head struct {
	Volume    string        `json:"volume"`
	Writer    string        `json:"writer"`
	WriteOnly bool          `json:"write_only,omitempty"`
	Seq       uint64        `json:"seq"`
	Digest    image.Digest  `json:"digest"` // of the manifest's object
	Image     image.ImageID `json:"image"`
	Time      time.Time     `json:"time"`
}

// An Absent image was in the repository once, and is not any more, though
// nobody who may prune pruned it.
type Absent struct {
	Volume  string    `json:"volume"`
	Seq     uint64    `json:"seq"`
	Image   string    `json:"image,omitempty"` // where this machine has seen it
	Time    time.Time `json:"time,omitzero"`   // when it was taken, likewise
	Newest  uint64    `json:"newest_seq"`      // that is there of the line; 0 for none
	Object  string    `json:"object"`
	Problem string    `json:"problem"`

	line image.Manifest // of the same line, to say that it is lost
}

func (a *Absent) String() string {
	text := fmt.Sprintf("%s: image %d", a.Volume, a.Seq)
	if a.Image != "" {
		text += fmt.Sprintf(" (%.8s of %s)", a.Image, a.Time.Local().Format(time.RFC3339))
	}
	return fmt.Sprintf("%s: %s (%s)", text, a.Problem, a.Object)
}

// Withheld compares the newest image of every line with the newest that this
// machine has seen of it, and returns those that are gone or not the same. What
// is newer it remembers. Without a catalog nothing is remembered.
func Withheld(ctx context.Context, env *Env) ([]Absent, error) {
	if env.Catalog == nil {
		return nil, nil
	}
	known, err := env.heads(ctx)
	if err != nil {
		return nil, err
	}
	there := map[string][]uint64{}
	err = env.Repo.Manifests(ctx, func(name string) error {
		tag, seq, _ := repo.ParseManifestName(name)
		if list := there[tag]; len(list) == 0 || seq >= known[tag].Seq {
			there[tag] = append(list, seq)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return env.compareHeads(ctx, known, there)
}

// compareHeads looks at each line by itself. Of one that misses an image nothing
// newer is remembered, so that the image stays missed until it is back, or until
// somebody says that it is lost.
func (env *Env) compareHeads(ctx context.Context, known map[string]head, there map[string][]uint64) (list []Absent, err error) {
	var mu sync.Mutex
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(manifestReaders)
	look := func(tag string, h head) error {
		if h.Seq > 0 {
			a, err := env.compareHead(group, tag, h, there[tag])
			if a != nil {
				mu.Lock()
				defer mu.Unlock()
				list = append(list, *a)
			}
			if a != nil || err != nil {
				return err
			}
		}
		return env.newHead(group, tag, h.Seq, there[tag])
	}
	for tag := range there {
		if known[tag].Seq == 0 {
			known[tag] = head{}
		}
	}
	for tag, h := range known {
		g.Go(func() error { return look(tag, h) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b Absent) int { return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Object, b.Object)) })
	return list, ctx.Err()
}

// heads returns what is remembered, by tag.
func (env *Env) heads(ctx context.Context) (map[string]head, error) {
	known := map[string]head{}
	if env.Catalog == nil {
		return known, nil
	}
	err := env.Catalog.Scan(ctx, headSpace, "", func(tag string, value []byte) error {
		var h head
		if json.Unmarshal(value, &h) == nil {
			known[tag] = h
		}
		return nil
	})
	return known, err
}

// compareHead says what is wrong with a line, by the numbers that are there of
// it; nil if nothing is.
func (env *Env) compareHead(ctx context.Context, tag string, h head, there []uint64) (*Absent, error) {
	newest := uint64(0)
	if len(there) > 0 {
		newest = there[len(there)-1]
	}
	_, digest, err := env.Repo.ManifestDigest(ctx, repo.ManifestNameOf(tag, h.Seq))
	switch {
	case err == nil && digest == h.Digest:
		return nil, nil
	case errors.Is(err, store.ErrNotFound):
		pruned, err := env.buried(ctx, tag, &h)
		if pruned || err != nil {
			return nil, err
		}
		return h.absent(tag, newest, "this machine has seen it, and it is gone; nothing says that it was pruned"), nil
	case err == nil, errors.Is(err, keys.ErrForged):
		return h.absent(tag, newest, "another image has its number than the one that this machine has seen"), nil
	case errors.Is(err, image.ErrCorrupt), errors.Is(err, keys.ErrNewer):
		return nil, nil // there, and damaged: that is told where it is read
	}
	return nil, fmt.Errorf("look for the image seen last of %s: %w", h.Volume, err)
}

// buried reports whether an image was pruned, or may have been: its tombstone
// is damaged.
func (env *Env) buried(ctx context.Context, tag string, h *head) (bool, error) {
	_, err := env.Repo.Tombstone(ctx, repo.ManifestNameOf(tag, h.Seq))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, store.ErrNotFound), errors.Is(err, keys.ErrForged):
		return false, nil
	case errors.Is(err, image.ErrCorrupt), errors.Is(err, keys.ErrNewer):
		return true, nil
	}
	return false, fmt.Errorf("look whether image %d of %s was pruned: %w", h.Seq, h.Volume, err)
}

func (h *head) absent(tag string, newest uint64, problem string) *Absent {
	return &Absent{
		Volume: h.Volume, Seq: h.Seq, Image: h.Image.String(), Time: h.Time, Newest: newest,
		Object: repo.ManifestNameOf(tag, h.Seq), Problem: problem,
	}
}

// headTries bounds how many manifests of a line are looked at for the newest
// that can be read.
const headTries = 4

// newHead remembers the newest of a line, by the numbers that are there of it,
// in order, if it is newer than what is known.
func (env *Env) newHead(ctx context.Context, tag string, known uint64, there []uint64) error {
	for n := len(there) - 1; n >= 0 && n >= len(there)-headTries && there[n] > known; n-- {
		name := repo.ManifestNameOf(tag, there[n])
		m, digest, err := env.Repo.ManifestDigest(ctx, name)
		switch {
		case err == nil:
			return env.rememberHead(ctx, tag, m, digest)
		case !errors.Is(err, store.ErrNotFound) && !errors.Is(err, image.ErrCorrupt) && !errors.Is(err, keys.ErrNewer):
			return fmt.Errorf("read the newest image: %w", err)
		}
	}
	return nil
}

func (env *Env) rememberHead(ctx context.Context, tag string, m *image.Manifest, digest image.Digest) error {
	value, err := json.Marshal(head{Volume: m.Volume, Writer: m.Writer, WriteOnly: m.WriteOnly, Seq: m.Seq, Digest: digest, Image: m.ID, Time: m.Time})
	if err != nil {
		return err
	}
	return env.Catalog.Put(ctx, headSpace, tag, value)
}

// seenLast returns the newest image that this machine has seen of the line that
// an image of a volume would belong to.
func (env *Env) seenLast(ctx context.Context, volume string) (h head, err error) {
	value, err := env.Catalog.Get(ctx, headSpace, env.Repo.LineTag(volume))
	if errors.Is(err, catalog.ErrNotFound) {
		return h, nil
	}
	if err == nil && json.Unmarshal(value, &h) != nil {
		h = head{}
	}
	return h, err
}

// BuryLost says of every image that is gone, and that nobody pruned, that it is
// lost: from then on nobody misses it, on any machine. It returns those images;
// a dry run does no more. What is there of a damaged image must be deleted from
// the store before.
func BuryLost(ctx context.Context, env *Env, dryRun bool) ([]Absent, error) {
	if !env.Repo.Keys.Writer().MayCollect() {
		return nil, fmt.Errorf("give up lost images: %w", keys.ErrRights)
	}
	v := newVerifier(env, VerifyOptions{})
	if err := v.manifests(ctx); err != nil {
		return nil, fmt.Errorf("give up lost images: %w", err)
	}
	for i := range v.absent {
		a := &v.absent[i]
		if a.Volume == "" {
			return v.absent[:i], fmt.Errorf("give up %s: nothing is left of its line that names the volume", a.Object)
		}
		if dryRun {
			continue
		}
		if err := env.Repo.BuryLost(ctx, &a.line, a.Seq, "lost"); err != nil {
			return v.absent[:i], err
		}
	}
	return v.absent, nil
}
