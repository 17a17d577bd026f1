package job

import (
	"context"
	"errors"
	"fmt"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store"
)

// trust tells in which segments blocks and pages are what their IDs say.
//
// A writer that cannot read holds the keys that IDs and footers are made with,
// and could put junk under the ID of a block that everybody has. So a segment
// is relied on by its own writer only, until somebody who can read it has: by
// writing it, or by attesting it. Into a segment that was filled with records
// of others, anything may have come along: it is relied on when attested.
type trust struct {
	me       keys.Writer
	all      bool // nothing is signed: there is nobody to tell from another
	attested map[image.SegmentID]image.Digest
}

// trust reads what is attested.
func (env *Env) trust(ctx context.Context) (*trust, error) {
	t := &trust{me: env.Repo.Keys.Writer(), all: !env.Repo.Keys.Encrypted(), attested: map[image.SegmentID]image.Digest{}}
	if t.all {
		return t, nil
	}
	seen := map[string]bool{}
	err := env.Repo.Attestations(ctx, func(name string) error {
		seen[name] = true
		list, err := env.attestation(ctx, name)
		for _, a := range list {
			t.attested[a.Segment] = a.Digest
		}
		return err
	})
	if err == nil && env.Catalog != nil {
		err = env.forgetAttestations(ctx, seen)
	}
	if err != nil {
		return nil, fmt.Errorf("read attestations: %w", err)
	}
	return t, nil
}

// attestSpace is where the catalog keeps what attestations say.
const attestSpace = "attestations"

const attestedSize = 16 + 32

// attestation returns what one says, from the catalog if it was read before:
// it never changes.
func (env *Env) attestation(ctx context.Context, name string) ([]repo.Attested, error) {
	if env.Catalog != nil {
		if b, err := env.Catalog.Get(ctx, attestSpace, name); err == nil && len(b)%attestedSize == 0 {
			list := make([]repo.Attested, 0, len(b)/attestedSize)
			for ; len(b) > 0; b = b[attestedSize:] {
				list = append(list, repo.Attested{Segment: image.SegmentID(b), Digest: image.Digest(b[16:])})
			}
			return list, nil
		}
	}
	list, err := env.Repo.Attestation(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil // another took its place
	}
	if err != nil || env.Catalog == nil {
		return list, err
	}
	b := make([]byte, 0, len(list)*attestedSize)
	for _, a := range list {
		b = append(append(b, a.Segment[:]...), a.Digest[:]...)
	}
	return list, env.Catalog.Put(ctx, attestSpace, name, b)
}

func (env *Env) forgetAttestations(ctx context.Context, seen map[string]bool) error {
	var gone []string
	err := env.Catalog.Scan(ctx, attestSpace, "", func(name string, _ []byte) error {
		if !seen[name] {
			gone = append(gone, name)
		}
		return nil
	})
	for _, name := range gone {
		if err == nil {
			err = env.Catalog.Delete(ctx, attestSpace, name)
		}
	}
	return err
}

// vouched reports whether everybody may rely on a segment.
func (t *trust) vouched(w keys.Writer, moved bool, id image.SegmentID, digest image.Digest) bool {
	if t.all || w.Vouches() && !moved {
		return true
	}
	attested, ok := t.attested[id]
	return ok && attested == digest
}

// usable reports whether a run with these keys may take a segment's blocks for
// stored.
func (t *trust) usable(w keys.Writer, moved bool, id image.SegmentID, digest image.Digest) bool {
	return t.vouched(w, moved, id, digest) || w == t.me && !moved
}
