package repo

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
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

	// Next is the epoch of the list that may follow this one.
	Next uint64 `json:"-"`
	// Unread are the names of lists of later epochs that are damaged. Nobody
	// knows what they condemn: nothing may be deleted while they are there.
	Unread []string `json:"-"`
}

// A CondemnedSegment is one that no image needed when it was condemned.
type CondemnedSegment struct {
	Segment image.SegmentID `json:"segment"`
	Size    int64           `json:"size"`
	Since   time.Time       `json:"since"` // by the store's clock
	Epoch   uint64          `json:"epoch"` // of the first list it stood on
	// Moved is how many of its bytes were stored again when it was repacked.
	Moved int64 `json:"moved,omitempty"`
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

// NewestCondemned returns the newest list, or an empty one of epoch 0. What a
// writer without the right put among the lists is passed over.
func (r *Repo) NewestCondemned(ctx context.Context) (*Condemned, error) {
	for {
		epochs, err := r.condemnedEpochs(ctx)
		if err != nil {
			return nil, err
		}
		c, err := r.newestOf(ctx, epochs)
		if errors.Is(err, store.ErrNotFound) {
			continue // a newer one came meanwhile
		}
		if err != nil {
			return nil, err
		}
		for c.Next = c.Epoch + 1; slices.Contains(epochs, c.Next); c.Next++ {
		}
		return c, nil
	}
}

func (r *Repo) newestOf(ctx context.Context, epochs []uint64) (*Condemned, error) {
	var unread []string
	for _, e := range slices.Backward(epochs) {
		c, err := r.condemned(ctx, e)
		switch {
		case err == nil:
			c.Unread = unread
			return c, nil
		case errors.Is(err, keys.ErrForged):
		case errors.Is(err, image.ErrCorrupt):
			unread = append(unread, condemnedName(e))
		default:
			return nil, err
		}
	}
	return &Condemned{Unread: unread}, nil
}

// CondemnedSince returns what any list of a later epoch condemned. whole is
// false when a list between is gone already, or damaged.
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
		c, err := r.condemned(ctx, e)
		if errors.Is(err, keys.ErrForged) {
			if e == next {
				next++ // it stands in nobody's way
			}
			continue
		}
		whole = whole && e == next
		next = e + 1
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, image.ErrCorrupt) {
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
	object, err := Object(ctx, r.Store, keys.KindCondemned, name)
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

// PublishCondemned writes the list of an epoch, the newest's Next. It returns
// store.ErrExists when another collector published first: read again, decide
// again. It returns keys.ErrRights when nobody would heed the list.
func (r *Repo) PublishCondemned(ctx context.Context, c *Condemned) error {
	if !r.Keys.Writer().MayCollect() {
		return fmt.Errorf("publish condemned segments: %w", keys.ErrRights)
	}
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
// no catalog, however new, takes them for stored. What a writer without the
// right to collect notes, counts for that writer.
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

// Damaged calls f for every record noted as damaged, by a collector or with
// these keys. Where notes are damaged themselves it goes on, and returns in the
// end an error wrapping image.ErrCorrupt that names the first: there may be
// more damage than it told of.
func (r *Repo) Damaged(ctx context.Context, f func(image.ID, image.Location) error) error {
	var unread error
	err := r.Store.List(ctx, damagePrefix, func(o store.Info) error {
		d, err := r.damage(ctx, o.Name)
		switch {
		case errors.Is(err, store.ErrNotFound), errors.Is(err, keys.ErrForged):
			return nil
		case errors.Is(err, image.ErrCorrupt):
			unread = cmp.Or(unread, err)
			return nil
		case err != nil:
			return err
		}
		for _, rec := range d.Records {
			if err := f(rec.Block, rec.At); err != nil {
				return err
			}
		}
		return nil
	})
	return cmp.Or(err, unread)
}

func (r *Repo) damage(ctx context.Context, name string) (*damage, error) {
	object, err := Object(ctx, r.Store, keys.KindDamage, name)
	if err != nil {
		return nil, err
	}
	d := new(damage)
	s, err := r.Keys.Open(keys.KindDamage, name, object, d)
	if err == nil && !s.Writer.MayCollect() && s.Writer != r.Keys.Writer() {
		err = fmt.Errorf("%s: writer %.16s only writes images: %w", name, s.Writer, keys.ErrForged)
	}
	return d, err
}
