package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

const (
	condemnedPrefix = "trash/segments/"
	damagePrefix    = "trash/damaged/"
)

// A Condemned list is the whole state of the trash at one epoch. Each new list
// takes the place of the one before; its number is claimed by put-if-absent,
// so that lists of several collectors form one line.
type Condemned struct {
	Epoch    uint64             `json:"epoch"` // 0: none was ever published
	Time     time.Time          `json:"time"`  // by the store's clock
	Run      string             `json:"run"`   // hex
	Segments []CondemnedSegment `json:"segments"`
	// Seen is the highest number of each volume's images, by the volume's tag,
	// that the collector had read: what it condemned, those do not need.
	Seen map[string]uint64 `json:"seen"`
}

// A CondemnedSegment is one that no image needed when it was condemned.
type CondemnedSegment struct {
	Segment image.SegmentID `json:"segment"`
	Size    int64           `json:"size"`
	Since   time.Time       `json:"since"` // by the store's clock
	Epoch   uint64          `json:"epoch"` // of the first list it stood on
}

// IDs returns the condemned segments as a set.
func (c *Condemned) IDs() map[image.SegmentID]bool {
	set := make(map[image.SegmentID]bool, len(c.Segments))
	for _, s := range c.Segments {
		set[s.Segment] = true
	}
	return set
}

func condemnedName(epoch uint64) string { return fmt.Sprintf("%s%016x", condemnedPrefix, epoch) }

// NewestCondemned returns the newest list, or an empty one of epoch 0.
func (r *Repo) NewestCondemned(ctx context.Context) (*Condemned, error) {
	for {
		epochs, err := r.condemnedEpochs(ctx)
		if err != nil {
			return nil, err
		}
		if len(epochs) == 0 {
			return new(Condemned), nil
		}
		c, err := r.condemned(ctx, epochs[len(epochs)-1])
		if errors.Is(err, store.ErrNotFound) {
			continue // a newer one came meanwhile
		}
		return c, err
	}
}

// CondemnedSince returns what any list of a later epoch condemned. whole is
// false when a list between is gone already.
func (r *Repo) CondemnedSince(ctx context.Context, epoch uint64) (set map[image.SegmentID]bool, whole bool, err error) {
	epochs, err := r.condemnedEpochs(ctx)
	if err != nil {
		return nil, false, err
	}
	set, whole = map[image.SegmentID]bool{}, true
	next := epoch + 1
	for _, e := range epochs {
		if e <= epoch {
			continue
		}
		whole = whole && e == next
		next = e + 1
		c, err := r.condemned(ctx, e)
		if errors.Is(err, store.ErrNotFound) {
			whole = false
			continue
		} else if err != nil {
			return nil, false, err
		}
		for _, s := range c.Segments {
			if s.Epoch > epoch {
				set[s.Segment] = true
			}
		}
	}
	return set, whole, nil
}

func (r *Repo) condemnedEpochs(ctx context.Context) (epochs []uint64, err error) {
	err = r.Store.List(ctx, condemnedPrefix, func(o store.Info) error {
		e, err := strconv.ParseUint(o.Name[len(condemnedPrefix):], 16, 64)
		if err != nil || condemnedName(e) != o.Name {
			return nil
		}
		epochs = append(epochs, e)
		return nil
	})
	return epochs, err
}

func (r *Repo) condemned(ctx context.Context, epoch uint64) (*Condemned, error) {
	name := condemnedName(epoch)
	object, err := r.Store.Get(ctx, name, keys.MaxObject)
	if err != nil {
		return nil, err
	}
	c := new(Condemned)
	if _, err := r.Keys.Open(keys.KindCondemned, name, object, c); err != nil {
		return nil, err
	}
	if c.Epoch != epoch {
		return nil, fmt.Errorf("%s: says epoch %d: %w", name, c.Epoch, image.ErrCorrupt)
	}
	return c, nil
}

// PublishCondemned writes the list of the epoch after the newest. It returns
// store.ErrExists when another collector published first: read again, decide
// again.
func (r *Repo) PublishCondemned(ctx context.Context, c *Condemned) error {
	name := condemnedName(c.Epoch)
	object, _, err := r.Keys.Seal(keys.KindCondemned, name, c)
	if err != nil {
		return err
	}
	if err := r.Store.Put(ctx, name, object); err != nil {
		return fmt.Errorf("publish condemned segments: %w", err)
	}
	return nil
}

// DropCondemnedBefore removes lists older than epoch: nobody at work began
// before it.
func (r *Repo) DropCondemnedBefore(ctx context.Context, epoch uint64) error {
	epochs, err := r.condemnedEpochs(ctx)
	for _, e := range epochs {
		if e >= epoch {
			break
		}
		if err := r.Store.Delete(ctx, condemnedName(e)); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return err
}

// WholeSegment is the record of a location that is noted as damaged because
// nothing of its segment can be read; the block is then the zero ID.
const WholeSegment = 1<<32 - 1

type damage struct {
	Records []damagedRecord `json:"records"`
	Time    time.Time       `json:"time"`
}

type damagedRecord struct {
	Block image.ID       `json:"block"`
	At    image.Location `json:"at"`
}

// NoteDamage records that stored blocks or pages were found damaged, so that
// no catalog, however new, takes them for stored.
func (r *Repo) NoteDamage(ctx context.Context, ids []image.ID, at []image.Location) error {
	now, err := r.Store.Now(ctx)
	if err != nil {
		return err
	}
	d := damage{Time: now.UTC()}
	for i := range ids {
		d.Records = append(d.Records, damagedRecord{ids[i], at[i]})
	}
	var random [16]byte
	rand.Read(random[:])
	name := damagePrefix + hex.EncodeToString(random[:])
	object, _, err := r.Keys.Seal(keys.KindDamage, name, d)
	if err != nil {
		return err
	}
	if err := r.Store.Put(ctx, name, object); err != nil {
		return fmt.Errorf("note damaged records: %w", err)
	}
	return nil
}

// Damaged calls f for every record noted as damaged.
func (r *Repo) Damaged(ctx context.Context, f func(image.ID, image.Location) error) error {
	return r.Store.List(ctx, damagePrefix, func(o store.Info) error {
		object, err := r.Store.Get(ctx, o.Name, keys.MaxObject)
		if err != nil {
			return err
		}
		var d damage
		if _, err := r.Keys.Open(keys.KindDamage, o.Name, object, &d); err != nil {
			return err
		}
		for _, rec := range d.Records {
			if err := f(rec.Block, rec.At); err != nil {
				return err
			}
		}
		return nil
	})
}
