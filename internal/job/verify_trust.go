package job

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// strangers looks at all small objects that are no image's: what is damaged
// among them, and what somebody put there who had no right to.
func (v *verifier) strangers(ctx context.Context) error {
	if len(v.opts.Images) > 0 {
		return nil
	}
	for prefix, kind := range map[string]string{
		"trash/segments/": keys.KindCondemned, "trash/damaged/": keys.KindDamage, "attest/": keys.KindAttested, "leases/": keys.KindLease, "keys/": keys.KindSlot,
		"pins/": keys.KindPin, "verified/": keys.KindVerified, "screens/": keys.KindScreen,
	} {
		err := v.env.Repo.Store.List(ctx, prefix, func(o store.Info) error { return v.stranger(ctx, o.Name, kind) })
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
	}
	return nil
}

func (v *verifier) stranger(ctx context.Context, name, kind string) error {
	object, err := repo.Object(ctx, v.env.Repo.Store, kind, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	var what any
	var s keys.Signed
	if err == nil {
		s, what, err = v.env.Repo.CheckObject(kind, name, object)
	}
	lease, _ := what.(*repo.Lease)
	switch {
	case errors.Is(err, keys.ErrForged):
		v.forgery(name, err)
	case errors.Is(err, image.ErrCorrupt):
		v.damage(Damage{Object: name, Problem: strings.TrimLeft(strings.TrimPrefix(err.Error(), name), " :")})
	case err != nil:
		return err
	case !s.Writer.MayCollect() && (kind == keys.KindDamage || lease != nil && lease.Kind == repo.LeaseCollect):
		v.forgery(name, fmt.Errorf("writer %.16s, who only writes images, made it: it counts for no other", s.Writer))
	}
	return nil
}

// attestations there may be before one takes the place of them all.
const attestationsKept = 50

// attest says of the segments that were read whole, and that not everybody
// relies on yet, that they hold what their footers say.
func (v *verifier) attest(ctx context.Context) error {
	if len(v.whole) == 0 {
		return nil
	}
	// A repository that cannot be written to is verified all the same.
	if err := v.env.Repo.Attest(ctx, v.whole); err != nil {
		v.env.warn("others store again what is in these segments: %v", err)
		return ctx.Err()
	}
	v.report.Attested = len(v.whole)
	if err := v.env.mergeAttestations(ctx); err != nil {
		v.env.warn("%v", err)
	}
	return ctx.Err()
}

// attests keeps that a segment was read whole, unless that is nothing new.
func (v *verifier) attests(f *segment.Footer) {
	if v.trust != nil && !v.trust.vouched(f.Writer, f.Moved, f.ID, f.Digest) {
		v.whole = append(v.whole, repo.Attested{Segment: f.ID, Digest: f.Digest})
	}
}

// mergeAttestations puts one attestation in the place of many, without the
// segments that are gone.
func (env *Env) mergeAttestations(ctx context.Context) error {
	var old []string
	err := env.Repo.Attestations(ctx, func(name string) error {
		old = append(old, name)
		return nil
	})
	if err != nil || len(old) <= attestationsKept {
		return err
	}
	t, err := env.trust(ctx)
	if err != nil {
		return err
	}
	var list []repo.Attested
	for id, digest := range t.attested {
		if _, err := env.Repo.Store.Head(ctx, segment.Name(id)); err == nil {
			list = append(list, repo.Attested{Segment: id, Digest: digest})
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	// The new one goes first: cut short, some segments are attested twice.
	if err := env.Repo.Attest(ctx, list); err != nil {
		return err
	}
	for _, name := range old {
		if err := env.Repo.Store.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return nil
}
