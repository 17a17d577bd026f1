package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

const pinPrefix = "pins/"

// A Pin keeps an image from being pruned, on whatever machine, until it is
// removed or its time is over. An image may have several. Only those of writers
// who may collect count.
type Pin struct {
	// Manifest is the name of the image's manifest: an ID may be copied by
	// another writer, a name is that of one line and claimed once.
	Manifest string `json:"manifest"`

	Image  image.ImageID `json:"image"` // for people, as are the next two
	Volume string        `json:"volume"`
	Seq    uint64        `json:"seq"`
	Reason string        `json:"reason"`
	// Hold marks a legal hold: it has no end, and is removed only by who asks
	// for just that.
	Hold bool      `json:"hold,omitempty"`
	By   string    `json:"by"`   // who set it: USER@HOST, as that machine says
	Time time.Time `json:"time"` // by the store's clock
	// Until is when the pin ends by the store's clock; zero for never.
	Until time.Time `json:"until,omitzero"`
	ID    string    `json:"-"` // 32 hex digits
}

// Ended reports whether a pin's time was over at a moment.
func (p *Pin) Ended(now time.Time) bool {
	return !p.Hold && !p.Until.IsZero() && !now.Before(p.Until)
}

// String is the pin in a few words.
func (p *Pin) String() string {
	text := p.Reason
	if p.Hold {
		text = "legal hold: " + text
	}
	if !p.Until.IsZero() && !p.Hold {
		text += ", until " + p.Until.Local().Format(time.RFC3339)
	}
	return text
}

// PutPin stores a pin and sets its ID and Time.
func (r *Repo) PutPin(ctx context.Context, p *Pin) error {
	now, err := r.Store.Now(ctx)
	if err != nil {
		return err
	}
	p.ID, p.Time = randomName(), now.UTC()
	object, _, err := r.Keys.Seal(keys.KindPin, pinPrefix+p.ID, p)
	if err != nil {
		return err
	}
	if err := r.Store.Put(ctx, pinPrefix+p.ID, object); err != nil {
		return fmt.Errorf("pin image %s: %w", p.Image, err)
	}
	return nil
}

// Pins returns all pins, those that have ended too, in order of ID. One that
// cannot be read is an error: nobody knows which image it keeps.
func (r *Repo) Pins(ctx context.Context) (list []Pin, err error) {
	// One that is listed and not found was removed meanwhile: then the next
	// listing does not tell of it any more.
	gone := map[string]bool{}
	for again := true; again && err == nil; {
		list, again = nil, false
		err = r.Store.List(ctx, pinPrefix, func(o store.Info) error {
			id := o.Name[len(pinPrefix):]
			if !isRandomName(id) {
				return nil
			}
			p, err := r.pin(ctx, id)
			switch {
			case errors.Is(err, store.ErrNotFound) && !gone[id]:
				gone[id], again = true, true
			case errors.Is(err, keys.ErrForged): // nobody's
			case err != nil:
				return fmt.Errorf("read pins: %w (if you know what it keeps, remove it by hand)", err)
			default:
				list = append(list, *p)
			}
			return nil
		})
	}
	return list, err
}

func (r *Repo) pin(ctx context.Context, id string) (*Pin, error) {
	object, err := Object(ctx, r.Store, keys.KindPin, pinPrefix+id)
	if err != nil {
		return nil, err
	}
	p := &Pin{ID: id}
	if _, err := r.Keys.Open(keys.KindPin, pinPrefix+id, object, p); err != nil {
		return nil, err
	}
	if _, _, ok := ParseManifestName(p.Manifest); !ok {
		return nil, fmt.Errorf("%s%s: keeps %q, which is no manifest: %w", pinPrefix, id, p.Manifest, image.ErrCorrupt)
	}
	return p, nil
}

// RemovePin removes a pin for good.
func (r *Repo) RemovePin(ctx context.Context, p *Pin) error {
	if err := r.Store.Delete(ctx, pinPrefix+p.ID); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("remove pin of image %s: %w", p.Image, err)
	}
	return nil
}

func randomName() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func isRandomName(s string) bool { return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == "" }
