package repo

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

// manifestName returns the object name of image seq of a volume with this tag.
func manifestName(tag string, seq uint64) string { return fmt.Sprintf("images/%s/%016x", tag, seq) }

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
	m, _, err := r.manifest(ctx, name)
	return m, err
}

func (r *Repo) manifest(ctx context.Context, name string) (*image.Manifest, image.Digest, error) {
	object, err := r.Store.Get(ctx, name, keys.MaxObject)
	if err != nil {
		return nil, image.Digest{}, err
	}
	m := new(image.Manifest)
	digest, err := r.Keys.Open(keys.KindManifest, name, object, m)
	if err != nil {
		return nil, digest, err
	}
	return m, digest, r.checkManifest(name, m)
}

// checkManifest refuses a manifest whose fields no writer of ours makes:
// authentic or not, what it says is used as sizes and offsets.
func (r *Repo) checkManifest(name string, m *image.Manifest) error {
	tag, seq, _ := ParseManifestName(name)
	var problem string
	switch {
	case len(m.Features) > 0:
		return fmt.Errorf("%s: features %q: %w", name, m.Features, keys.ErrNewer)
	case m.Seq != seq || r.Keys.VolumeTag(m.Volume) != tag:
		problem = fmt.Sprintf("says it is image %d of %q", m.Seq, m.Volume)
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
// sets its Seq and Predecessor. The image exists once Commit returns.
func (r *Repo) Commit(ctx context.Context, m *image.Manifest) (name string, err error) {
	tag := r.Keys.VolumeTag(m.Volume)
	for {
		last, digest, err := r.head(ctx, tag)
		if err != nil {
			return "", fmt.Errorf("commit image of %s: %w", m.Volume, err)
		}
		m.Seq, m.Predecessor = last+1, digest
		name := manifestName(tag, m.Seq)
		object, _, err := r.Keys.Seal(keys.KindManifest, name, m)
		if err != nil {
			return "", err
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
	_, err := r.Store.Head(ctx, tombstones+tag+"/"+fmt.Sprintf("%016x", seq))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// head returns the highest number that an image of the volume ever had, and
// the digest of that image's manifest.
func (r *Repo) head(ctx context.Context, tag string) (seq uint64, digest image.Digest, err error) {
	for _, prefix := range []string{"images/", tombstones} {
		err := r.Store.List(ctx, prefix+tag+"/", func(o store.Info) error {
			_, n, ok := ParseManifestName("images/" + o.Name[len(prefix):])
			if ok && n > seq {
				seq = n
			}
			return nil
		})
		if err != nil {
			return 0, digest, err
		}
	}
	if seq == 0 {
		return 0, digest, nil
	}
	for range 3 {
		digest, err = r.end(ctx, tag, seq)
		if !errors.Is(err, store.ErrNotFound) {
			break // else it was forgotten between the two looks
		}
	}
	// A damaged end of the chain must not stop new images: it is named by no
	// digest, which verify reports.
	if errors.Is(err, image.ErrCorrupt) {
		return seq, image.Digest{}, nil
	}
	return seq, digest, err
}

// end returns the digest of the manifest of an image that may be forgotten.
func (r *Repo) end(ctx context.Context, tag string, seq uint64) (image.Digest, error) {
	// The tombstone first: while there is one, a manifest beside it may be that
	// of a run which is about to find its number used.
	t, err := r.tombstone(ctx, tombstones+tag+"/"+fmt.Sprintf("%016x", seq))
	if err == nil {
		return t.Digest, nil
	}
	if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, image.ErrCorrupt) {
		return image.Digest{}, err
	}
	_, digest, other := r.manifest(ctx, manifestName(tag, seq))
	if errors.Is(other, store.ErrNotFound) {
		return image.Digest{}, err
	}
	return digest, other
}

const tombstones = "trash/images/"

// A Tombstone says that an image was pruned, and keeps its manifest.
type Tombstone struct {
	Image  image.Manifest `json:"image"`
	Digest image.Digest   `json:"digest"` // of the manifest's object
	Reason string         `json:"reason"`
	Time   time.Time      `json:"time"` // by the store's clock
}

// Forget removes an image: its tombstone first, durably, then its manifest.
func (r *Repo) Forget(ctx context.Context, name, reason string) error {
	tag, seq, ok := ParseManifestName(name)
	if !ok {
		return fmt.Errorf("forget %s: not a manifest", name)
	}
	m, digest, err := r.manifest(ctx, name)
	if err != nil {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	now, err := r.Store.Now(ctx)
	if err != nil {
		return err
	}
	grave := tombstones + tag + "/" + fmt.Sprintf("%016x", seq)
	object, _, err := r.Keys.Seal(keys.KindTombstone, grave, Tombstone{Image: *m, Digest: digest, Reason: reason, Time: now.UTC()})
	if err != nil {
		return err
	}
	// A tombstone of a prune that died before the next step is as good.
	if err := r.Store.Put(ctx, grave, object); err != nil && !errors.Is(err, store.ErrExists) {
		return fmt.Errorf("forget %s: write tombstone: %w", name, err)
	}
	if err := r.Store.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	return nil
}

func (r *Repo) tombstone(ctx context.Context, name string) (*Tombstone, error) {
	object, err := r.Store.Get(ctx, name, keys.MaxObject)
	if err != nil {
		return nil, err
	}
	t := new(Tombstone)
	_, err = r.Keys.Open(keys.KindTombstone, name, object, t)
	return t, err
}

// Gaps returns, for a volume's manifests as listed, the numbers of images that
// are gone without a tombstone.
func (r *Repo) Gaps(ctx context.Context, volume string) ([]uint64, error) {
	tag := r.Keys.VolumeTag(volume)
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
