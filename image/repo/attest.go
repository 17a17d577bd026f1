package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/segment"
	"platter/image/store"
)

const attestPrefix = "attest/"

// attestSize is how many segments one attestation names.
const attestSize = 50_000

// An Attested segment is one of which somebody with the data key has read every
// record, and found each to be what its ID says. Another object under the same
// name, of another digest, is not attested.
type Attested struct {
	Segment image.SegmentID `json:"segment"`
	Digest  image.Digest    `json:"digest"` // Footer.Digest
}

type attestation struct {
	Segments []Attested `json:"segments"`
	Time     time.Time  `json:"time"` // by the store's clock
}

// Attest says that these segments hold what their footers say. It returns
// keys.ErrRights when nobody would heed it.
func (r *Repo) Attest(ctx context.Context, list []Attested) error {
	if !r.Keys.Writer().MayCollect() {
		return fmt.Errorf("attest segments: %w", keys.ErrRights)
	}
	now, err := r.Store.Now(ctx)
	if err != nil {
		return err
	}
	for len(list) > 0 {
		n := min(len(list), attestSize)
		var random [16]byte
		rand.Read(random[:])
		name := attestPrefix + hex.EncodeToString(random[:])
		object, _, err := r.Keys.Seal(keys.KindAttested, name, attestation{list[:n], now.UTC()})
		if err != nil {
			return err
		}
		if err := r.Store.Put(ctx, name, object); err != nil {
			return fmt.Errorf("attest segments: %w", err)
		}
		list = list[n:]
	}
	return nil
}

// Attestations calls f for the name of every attestation, in order of name.
func (r *Repo) Attestations(ctx context.Context, f func(name string) error) error {
	return r.Store.List(ctx, attestPrefix, func(o store.Info) error { return f(o.Name) })
}

// Attestation returns what an attestation says: nothing, if it is damaged or of
// one who may not attest, for then it counts as not there. It returns
// store.ErrNotFound when another took its place.
func (r *Repo) Attestation(ctx context.Context, name string) ([]Attested, error) {
	object, err := Object(ctx, r.Store, keys.KindAttested, name)
	if err != nil {
		return nil, err
	}
	var a attestation
	if _, err := r.Keys.Open(keys.KindAttested, name, object, &a); err != nil && !errors.Is(err, image.ErrCorrupt) {
		return nil, err
	} else if err != nil {
		return nil, nil
	}
	return a.Segments, nil
}

// Vouched reports whether the one who signed a segment answers for all its
// records: whoever can read made them out of disk content, under IDs of its
// own making. A segment into which records were moved needs an attestation.
func Vouched(f *segment.Footer) bool { return f.Writer.Vouches() && !f.Moved }
