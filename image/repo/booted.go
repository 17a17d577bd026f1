package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

const screenPrefix = "screens/"

// MaxScreen is how large a picture of a screen may be, in bytes.
const MaxScreen = 4 << 20

// A Boot is what came of starting an image in a virtual machine.
type Boot struct {
	Time     time.Time     `json:"time"`    // when it was started, by the store's clock
	Verdict  string        `json:"verdict"` // booted, failed or unknown
	Reason   string        `json:"reason"`  // the prompt, or what was judged by: the machine's own words
	Elapsed  time.Duration `json:"elapsed_ns"`
	Firmware string        `json:"firmware"` // bios or uefi
	Bus      string        `json:"bus"`      // of the disk
	KVM      bool          `json:"kvm"`      // else the processor was emulated
	Screen   string        `json:"screen,omitempty"`
}

// laterBoot is the one that counts of two, either of which may be nil.
func laterBoot(a, b *Boot) *Boot {
	if a == nil || b != nil && b.Time.After(a.Time) {
		return b
	}
	return a
}

// A screen is the content of an object: a picture of a machine's last screen.
// It stands apart, so that listing images does not read pictures.
type screen struct {
	Manifest string `json:"manifest"` // of the image that was started
	PNG      []byte `json:"png"`
}

// NoteBoot stores what came of starting the image of a manifest, in the place
// of what was known before, and a picture of its last screen, which may be nil.
func (r *Repo) NoteBoot(ctx context.Context, manifest string, b Boot, png []byte) error {
	b.Screen = ""
	if len(png) > 0 && len(png) <= MaxScreen {
		name := screenPrefix + randomName()
		object, _, err := r.Keys.Seal(keys.KindScreen, name, screen{manifest, png})
		if err != nil {
			return err
		}
		if err := r.Store.Put(ctx, name, object); err != nil {
			return fmt.Errorf("keep a picture of the screen: %w", err)
		}
		b.Screen = name
	}
	return r.NoteChecks(ctx, []Check{{Manifest: manifest, Boot: &b}}, func(Check) bool { return false })
}

// Screen returns the picture of a Boot of the image of a manifest, a PNG.
func (r *Repo) Screen(ctx context.Context, manifest string, b *Boot) ([]byte, error) {
	if len(b.Screen) < len(screenPrefix) || b.Screen[:len(screenPrefix)] != screenPrefix || !isRandomName(b.Screen[len(screenPrefix):]) {
		return nil, fmt.Errorf("no picture was kept of the screen: %w", store.ErrNotFound)
	}
	object, err := Object(ctx, r.Store, keys.KindScreen, b.Screen)
	if err != nil {
		return nil, err
	}
	var s screen
	if _, err := r.Keys.Open(keys.KindScreen, b.Screen, object, &s); err != nil {
		return nil, err
	}
	if s.Manifest != manifest || len(s.PNG) > MaxScreen {
		return nil, fmt.Errorf("%s: %d bytes of a screen of %q, want one of %q: %w", b.Screen, len(s.PNG), s.Manifest, manifest, image.ErrCorrupt)
	}
	return s.PNG, nil
}

// sweepScreens deletes pictures that no Check names. One may be about to be
// named: those of the last day stay.
func (r *Repo) sweepScreens(ctx context.Context, list []Check) error {
	named := map[string]bool{}
	for _, c := range list {
		if c.Boot != nil {
			named[c.Boot.Screen] = true
		}
	}
	now, err := r.Store.Now(ctx)
	if err != nil {
		return err
	}
	var old []string
	err = r.Store.List(ctx, screenPrefix, func(o store.Info) error {
		if isRandomName(o.Name[len(screenPrefix):]) && !named[o.Name] && o.Modified.Before(now.Add(-24*time.Hour)) {
			old = append(old, o.Name)
		}
		return nil
	})
	for _, name := range old {
		if e := r.Store.Delete(ctx, name); e != nil && !errors.Is(e, store.ErrNotFound) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("delete old pictures of screens: %w", err)
	}
	return nil
}
