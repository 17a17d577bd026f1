package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/image/keys"
	"platter/image/store"
)

const verifiedPrefix = "verified/"

// A Check is what verifications have found of an image: when each of them
// last began, by the store's clock, zero for never.
type Check struct {
	Manifest  string    `json:"manifest"`           // its name: an ID may be copied by another writer
	Structure time.Time `json:"structure,omitzero"` // its map was whole, and every block where it should be
	Data      time.Time `json:"data,omitzero"`      // besides, every byte was read, and was right
	Damaged   time.Time `json:"damaged,omitzero"`   // some of it was not
	Boot      *Boot     `json:"boot,omitempty"`     // nil if it was never started
}

// Verified reports whether every byte was found right, and nothing wrong
// since.
func (c *Check) Verified() bool { return !c.Data.IsZero() && c.Data.After(c.Damaged) }

func (c *Check) merge(o Check) {
	c.Structure = latest(c.Structure, o.Structure)
	c.Data = latest(c.Data, o.Data)
	c.Damaged = latest(c.Damaged, o.Damaged)
	c.Boot = laterBoot(c.Boot, o.Boot)
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// checks is the content of an object: it replaces all objects that its writer
// had read, so that there are never many. What is in several is merged, the
// later time counts, and so the order of writers does not matter.
type checks struct {
	Images []Check `json:"images"`
}

// Checks returns what verifications have found, by the names of manifests.
func (r *Repo) Checks(ctx context.Context) (map[string]Check, error) {
	all, _, err := r.checks(ctx)
	return all, err
}

// checks also returns the names of the objects read.
func (r *Repo) checks(ctx context.Context) (all map[string]Check, names []string, err error) {
	for range 10 {
		all, names = map[string]Check{}, nil
		err = r.Store.List(ctx, verifiedPrefix, func(o store.Info) error {
			if !isRandomName(o.Name[len(verifiedPrefix):]) {
				return nil
			}
			names = append(names, o.Name)
			return r.readChecks(ctx, o.Name, all)
		})
		if !errors.Is(err, store.ErrNotFound) {
			break // else its content has moved to a new one meanwhile
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read results of verifications: %w", err)
	}
	return all, names, nil
}

func (r *Repo) readChecks(ctx context.Context, name string, into map[string]Check) error {
	object, err := Object(ctx, r.Store, keys.KindVerified, name)
	if err != nil {
		return err
	}
	var list checks
	_, err = r.Keys.Open(keys.KindVerified, name, object, &list)
	if errors.Is(err, keys.ErrForged) {
		return nil // nobody's
	}
	if err != nil {
		return fmt.Errorf("%w (if it is damaged, remove it, and verify again)", err)
	}
	for _, c := range list.Images {
		old := into[c.Manifest]
		c.merge(old)
		into[c.Manifest] = c
	}
	return nil
}

// NoteChecks adds results, and drops those of images that gone names.
func (r *Repo) NoteChecks(ctx context.Context, results []Check, gone func(Check) bool) error {
	all, names, err := r.checks(ctx)
	if err != nil {
		return err
	}
	for _, c := range results {
		old := all[c.Manifest]
		c.merge(old)
		all[c.Manifest] = c
	}
	var list checks
	for _, c := range all {
		if !gone(c) {
			list.Images = append(list.Images, c)
		}
	}
	slices.SortFunc(list.Images, func(a, b Check) int { return strings.Compare(a.Manifest, b.Manifest) })
	name := verifiedPrefix + randomName()
	object, _, err := r.Keys.Seal(keys.KindVerified, name, list)
	if err != nil {
		return err
	}
	if err := r.Store.Put(ctx, name, object); err != nil {
		return fmt.Errorf("note results of a verification: %w", err)
	}
	// What they hold is durable under the new name.
	for _, old := range names {
		if err := r.Store.Delete(ctx, old); err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("note results of a verification: %w", err)
		}
	}
	return r.sweepScreens(ctx, list.Images)
}
