package repo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

// manifestName returns the object name of image seq of a volume with this tag.
func manifestName(tag string, seq uint64) string { return fmt.Sprintf("images/%s/%016x", tag, seq) }

// ManifestNameOf returns the object name of image seq of the line of this tag.
func ManifestNameOf(tag string, seq uint64) string { return manifestName(tag, seq) }

// ParseManifestName splits the name of a manifest object.
func ParseManifestName(name string) (tag string, seq uint64, ok bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 || parts[0] != "images" || len(parts[1]) != 32 || len(parts[2]) != 16 {
		return "", 0, false
	}
	seq, err := strconv.ParseUint(parts[2], 16, 64)
	return parts[1], seq, err == nil && seq > 0 && name == manifestName(parts[1], seq)
}

// Manifests calls f for the name of every manifest, in order of name.
func (r *Repo) Manifests(ctx context.Context, f func(name string) error) error {
	return r.Store.List(ctx, "images/", func(o store.Info) error {
		if _, _, ok := ParseManifestName(o.Name); !ok {
			return nil
		}
		return f(o.Name)
	})
}

// Manifest reads and checks a manifest.
func (r *Repo) Manifest(ctx context.Context, name string) (*image.Manifest, error) {
	m, _, err := r.ManifestDigest(ctx, name)
	return m, err
}

// ManifestDigest reads and checks a manifest, and returns its digest too. It
// returns keys.ErrForged for one that its writer had no right to put there: it
// is no image.
func (r *Repo) ManifestDigest(ctx context.Context, name string) (*image.Manifest, image.Digest, error) {
	object, err := Object(ctx, r.Store, keys.KindManifest, name)
	if err != nil {
		return nil, image.Digest{}, err
	}
	m := new(image.Manifest)
	s, err := r.Keys.Open(keys.KindManifest, name, object, m)
	if err != nil {
		return nil, s.Digest, err
	}
	if err := r.checkLine(name, m, s.Writer); err != nil {
		return nil, s.Digest, err
	}
	return m, s.Digest, r.checkManifest(name, m)
}

// checkLine refuses a manifest that its writer put among another's images: it
// is nobody's.
func (r *Repo) checkLine(name string, m *image.Manifest, w keys.Writer) error {
	tag, seq, _ := ParseManifestName(name)
	switch {
	case m.Writer != w.String() || m.WriteOnly == w.Vouches():
		return fmt.Errorf("%s: says it is of writer %.16s, and %.16s signed it: %w", name, m.Writer, w, keys.ErrForged)
	case m.Seq != seq || r.tag(m) != tag:
		return fmt.Errorf("%s: writer %.16s made it as image %d of its own %q: %w", name, w, m.Seq, m.Volume, keys.ErrForged)
	}
	return nil
}

// tag returns the name of the line that an image belongs to.
func (r *Repo) tag(m *image.Manifest) string { return r.Keys.VolumeTag(m.Volume, m.Line()) }

// LineTag returns the name of the line that an image of a volume would belong
// to, if it were made with these keys.
func (r *Repo) LineTag(volume string) string {
	m := image.Manifest{Volume: volume}
	r.own(&m)
	return r.tag(&m)
}

// ManifestName returns the name of an image's manifest.
func (r *Repo) ManifestName(m *image.Manifest) string { return manifestName(r.tag(m), m.Seq) }

// own makes m an image of who writes with these keys.
func (r *Repo) own(m *image.Manifest) {
	w := r.Keys.Writer()
	m.Writer, m.WriteOnly = w.String(), !w.Vouches()
}

// checkManifest refuses a manifest whose fields no writer of ours makes:
// authentic or not, what it says is used as sizes and offsets.
func (r *Repo) checkManifest(name string, m *image.Manifest) error {
	var problem string
	switch {
	case len(m.Features) > 0:
		return fmt.Errorf("%s: features %q: %w", name, m.Features, keys.ErrNewer)
	case m.BlockSize != r.Config.BlockSize:
		problem = fmt.Sprintf("block size %d in a repository of %d", m.BlockSize, r.Config.BlockSize)
	case m.Size < 0 || m.Size > image.MaxSize:
		problem = fmt.Sprintf("device of %d bytes", m.Size)
	case m.ID == image.ImageID{}:
		problem = "has no ID"
	}
	for _, e := range m.Unreadable {
		if e.Offset < 0 || e.Length < 0 || e.Length > m.Size || e.Offset > m.Size-e.Length {
			problem = fmt.Sprintf("unreadable range %s outside a device of %d bytes", e, m.Size)
		}
	}
	if problem != "" {
		return fmt.Errorf("%s: %s: %w", name, problem, image.ErrCorrupt)
	}
	return nil
}

// Commit writes the manifest of a new image, whose blocks are all durable, and
// sets its Seq, Predecessor and Writer. The image exists once Commit returns.
func (r *Repo) Commit(ctx context.Context, m *image.Manifest) (name string, err error) {
	return r.CommitAfter(ctx, m, 0, image.Digest{})
}

// CommitAfter commits an image of a line of which image last was there once,
// with a manifest of this digest. If the store does not show that any more, its
// number is not given to another: the gap tells everybody.
func (r *Repo) CommitAfter(ctx context.Context, m *image.Manifest, last uint64, digest image.Digest) (name string, err error) {
	r.own(m)
	tag := r.tag(m)
	for {
		next, before, err := r.next(ctx, tag, last, digest)
		if err != nil {
			return "", fmt.Errorf("commit image of %s: %w", m.Volume, err)
		}
		m.Seq, m.Predecessor = next, before
		name := manifestName(tag, m.Seq)
		object, _, err := r.Keys.Seal(keys.KindManifest, name, m)
		if err != nil {
			return "", err
		}
		if len(object) > maxManifest {
			return "", fmt.Errorf("commit image of %s: a manifest of %d bytes, at most %d fit into its tombstone one day", m.Volume, len(object), maxManifest)
		}
		err = r.Store.Put(ctx, name, object)
		if errors.Is(err, store.ErrExists) {
			continue // another run of this volume took the number
		}
		if err != nil {
			return "", fmt.Errorf("commit image of %s: write manifest: %w", m.Volume, err)
		}
		used, err := r.used(ctx, tag, m.Seq)
		if err != nil {
			return "", fmt.Errorf("commit image of %s: %w", m.Volume, err)
		}
		if !used {
			return name, nil
		}
		if err := r.Store.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return "", fmt.Errorf("commit image of %s: give back number %d: %w", m.Volume, m.Seq, err)
		}
	}
}

// used reports whether a number that could be claimed was another image's: one
// that was made and forgotten since head looked has freed its manifest's name,
// and has left a tombstone before that.
func (r *Repo) used(ctx context.Context, tag string, seq uint64) (bool, error) {
	_, err := r.tombstone(ctx, graveName(tag, seq))
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, keys.ErrForged):
		return false, nil
	case errors.Is(err, image.ErrCorrupt):
		return true, nil
	}
	return err == nil, err
}

// next returns the number of the next image of a line, and the digest of the
// manifest before it, which is image least or a later one. Numbers that others have put something under, which is
// no image of the line, are passed over.
func (r *Repo) next(ctx context.Context, tag string, least uint64, its image.Digest) (seq uint64, digest image.Digest, err error) {
	taken := map[uint64]bool{}
	for _, prefix := range []string{"images/", tombstones} {
		err := r.Store.List(ctx, prefix+tag+"/", func(o store.Info) error {
			if _, n, ok := ParseManifestName("images/" + o.Name[len(prefix):]); ok {
				taken[n] = true
			}
			return nil
		})
		if err != nil {
			return 0, digest, err
		}
	}
	last, digest, err := r.head(ctx, tag, slices.Sorted(maps.Keys(taken)))
	if err != nil {
		return 0, digest, err
	}
	if last < least {
		last, digest = least, its
	}
	for seq = last + 1; taken[seq]; seq++ {
		// What is damaged may be an image all the same: it must not stop new
		// ones. It is named by no digest, which verify reports.
		if _, err := r.end(ctx, tag, seq); !errors.Is(err, keys.ErrForged) {
			digest = image.Digest{}
		}
	}
	return seq, digest, nil
}

// head returns the highest of these numbers that is an image's or was, and the
// digest of that image's manifest; 0 for none.
func (r *Repo) head(ctx context.Context, tag string, numbers []uint64) (seq uint64, digest image.Digest, err error) {
	for _, seq := range slices.Backward(numbers) {
		for range 3 {
			digest, err = r.end(ctx, tag, seq)
			if !errors.Is(err, store.ErrNotFound) {
				break // else it was forgotten between the two looks
			}
		}
		if !errors.Is(err, image.ErrCorrupt) {
			return seq, digest, err
		}
	}
	return 0, image.Digest{}, nil
}

// end returns the digest of the manifest of an image that may be forgotten.
func (r *Repo) end(ctx context.Context, tag string, seq uint64) (image.Digest, error) {
	// The tombstone first: while there is one, a manifest beside it may be that
	// of a run which is about to find its number used.
	t, err := r.tombstone(ctx, graveName(tag, seq))
	if err == nil {
		return t.Digest, nil
	}
	if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, image.ErrCorrupt) {
		return image.Digest{}, err
	}
	_, digest, other := r.ManifestDigest(ctx, manifestName(tag, seq))
	if errors.Is(other, store.ErrNotFound) {
		return image.Digest{}, err
	}
	return digest, other
}

func graveName(tag string, seq uint64) string {
	return tombstones + tag + "/" + fmt.Sprintf("%016x", seq)
}

const tombstones = "trash/images/"

// A Tombstone says that an image was pruned, and keeps its manifest.
type Tombstone struct {
	Image  image.Manifest `json:"image"`
	Object []byte         `json:"object,omitempty"` // the manifest's object as it was, for Revive
	Digest image.Digest   `json:"digest"`           // of the manifest's object
	Reason string         `json:"reason"`
	Time   time.Time      `json:"time"` // by the store's clock
}

// Lost reports whether the tombstone is that of an image of which nothing but
// its number is known.
func (t *Tombstone) Lost() bool { return t.Image.ID == image.ImageID{} }

// BuryLost says that an image of the line of m is gone for good, so that its
// number is missed no more.
func (r *Repo) BuryLost(ctx context.Context, m *image.Manifest, seq uint64, reason string) error {
	lost := image.Manifest{Volume: m.Volume, Writer: m.Writer, WriteOnly: m.WriteOnly, Seq: seq}
	name := r.ManifestName(&lost)
	if !r.Keys.Writer().MayCollect() {
		return fmt.Errorf("bury %s: %w", name, keys.ErrRights)
	}
	if _, err := r.Store.Head(ctx, name); !errors.Is(err, store.ErrNotFound) {
		if err == nil {
			err = errors.New("it is there")
		}
		return fmt.Errorf("bury %s: %w", name, err)
	}
	now, err := r.Store.Now(ctx)
	if err != nil {
		return err
	}
	grave := graveName(r.tag(&lost), seq)
	object, _, err := r.Keys.Seal(keys.KindTombstone, grave, Tombstone{Image: lost, Reason: reason, Time: now.UTC()})
	if err == nil {
		err = r.bury(ctx, grave, object)
	}
	if err != nil {
		return fmt.Errorf("bury %s: %w", name, err)
	}
	return nil
}

// Forget removes an image: its tombstone first, durably, then its manifest. It
// returns keys.ErrRights for one that these keys may not bury.
func (r *Repo) Forget(ctx context.Context, name, reason string) error {
	tag, seq, ok := ParseManifestName(name)
	if !ok {
		return fmt.Errorf("forget %s: not a manifest", name)
	}
	m, digest, err := r.ManifestDigest(ctx, name)
	if err != nil {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	if !r.buries(r.Keys.Writer(), m) {
		return fmt.Errorf("forget %s, of writer %.16s: %w", name, m.Writer, keys.ErrRights)
	}
	whole, err := Object(ctx, r.Store, keys.KindManifest, name)
	if err != nil {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	now, err := r.Store.Now(ctx)
	if err != nil {
		return err
	}
	grave := graveName(tag, seq)
	object, _, err := r.Keys.Seal(keys.KindTombstone, grave, Tombstone{Image: *m, Object: whole, Digest: digest, Reason: reason, Time: now.UTC()})
	if err != nil {
		return err
	}
	if err := r.bury(ctx, grave, object); err != nil {
		return fmt.Errorf("forget %s: write tombstone: %w", name, err)
	}
	if err := r.Store.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	return nil
}

// bury writes a tombstone. One of a prune that died before the next step is as
// good; what is there and is none gives way.
func (r *Repo) bury(ctx context.Context, grave string, object []byte) error {
	err := r.Store.Put(ctx, grave, object)
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	if _, err := r.tombstone(ctx, grave); !errors.Is(err, image.ErrCorrupt) {
		return err
	}
	if err := r.Store.Delete(ctx, grave); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return r.Store.Put(ctx, grave, object)
}

// buries reports whether a writer's tombstone of an image counts: that of a
// collector, or of who made it.
func (r *Repo) buries(w keys.Writer, m *image.Manifest) bool {
	return w.MayCollect() || m.WriteOnly && w.String() == m.Writer
}

// Tombstone reads and checks the tombstone of an image, by the name of its
// manifest.
func (r *Repo) Tombstone(ctx context.Context, manifest string) (*Tombstone, error) {
	tag, seq, ok := ParseManifestName(manifest)
	if !ok {
		return nil, fmt.Errorf("tombstone of %s: not a manifest", manifest)
	}
	return r.tombstone(ctx, graveName(tag, seq))
}

func (r *Repo) tombstone(ctx context.Context, name string) (*Tombstone, error) {
	object, err := Object(ctx, r.Store, keys.KindTombstone, name)
	if err != nil {
		return nil, err
	}
	t := new(Tombstone)
	s, err := r.Keys.Open(keys.KindTombstone, name, object, t)
	if err != nil {
		return nil, err
	}
	if !r.buries(s.Writer, &t.Image) || manifestName(r.tag(&t.Image), t.Image.Seq) != strings.TrimPrefix(name, "trash/") {
		return nil, fmt.Errorf("%s: writer %.16s buries image %d of %q of writer %.16s: %w", name, s.Writer, t.Image.Seq, t.Image.Volume, t.Image.Writer, keys.ErrForged)
	}
	return t, nil
}

// Gaps returns, for the images of a volume that are counted with those of these
// keys, the numbers of those that are gone without a tombstone.
func (r *Repo) Gaps(ctx context.Context, volume string) ([]uint64, error) {
	tag := r.LineTag(volume)
	seen := map[uint64]bool{}
	var last uint64
	for _, prefix := range []string{"images/", tombstones} {
		err := r.Store.List(ctx, prefix+tag+"/", func(o store.Info) error {
			if _, n, ok := ParseManifestName("images/" + o.Name[len(prefix):]); ok {
				seen[n], last = true, max(last, n)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var gaps []uint64
	for n := uint64(1); n < last && len(gaps) < 1000; n++ {
		if !seen[n] {
			gaps = append(gaps, n)
		}
	}
	return gaps, nil
}
