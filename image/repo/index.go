package repo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"platter/image"
	"platter/image/keys"
	"platter/image/segment"
	"platter/image/store"
)

// An index is the ends of many segments in one object, for whoever knows no
// segment yet: it fetches a few large objects in place of one end for each
// segment. The ends are as the segments hold them and go on proving
// themselves, so that an index is believed in nothing.
//
// Payload, little-endian:
//
//	0:4  number of segments N
//	then N entries of 24 bytes, in ascending order of ID:
//	      0:16 segment ID
//	     16:20 length of the segment, in units of 4096 bytes
//	     20:24 length of its footer, as stored
//	then in the same order the segments' footers, each followed by its trailer
const (
	indexHeader    = 4
	indexEntrySize = 24
	indexPrefix    = "index/footers/"
)

// MaxIndex bounds the payload of an index on writing, in bytes: it is held in
// memory twice by those who read it.
const MaxIndex = 8 << 20

// Indexed is a segment's end, as an index holds it.
type Indexed struct {
	segment.Object
	segment.Tail
}

// IndexSize is how much of MaxIndex a segment takes, in bytes.
func (s *Indexed) IndexSize() int {
	return indexEntrySize + len(s.Footer) + segment.TrailerSize
}

// encodeIndex returns the payload of an index of segments in order of ID.
func encodeIndex(list []Indexed) []byte {
	size := indexHeader
	for i := range list {
		size += list[i].IndexSize()
	}
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, size), uint32(len(list)))
	for i := range list {
		s := &list[i]
		b = append(b, s.ID[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(s.Size/segment.Align))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Footer)))
	}
	for i := range list {
		b = append(append(b, list[i].Footer...), list[i].Trailer...)
	}
	return b
}

// decodeIndex is the reverse of encodeIndex. The ends are parts of b, and are
// not checked.
func decodeIndex(b []byte) ([]Indexed, error) {
	bad := func(format string, args ...any) ([]Indexed, error) {
		return nil, fmt.Errorf("index of %d bytes: %s: %w", len(b), fmt.Sprintf(format, args...), image.ErrCorrupt)
	}
	if len(b) < indexHeader {
		return bad("no number of segments")
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n > int64(len(b)-indexHeader)/(indexEntrySize+segment.TrailerSize) {
		return bad("%d segments", n)
	}
	list := make([]Indexed, n)
	ends := b[indexHeader+n*indexEntrySize:]
	for i := range list {
		e, s := b[indexHeader+i*indexEntrySize:][:indexEntrySize], &list[i]
		s.ID = image.SegmentID(e[:16])
		s.Size = int64(binary.LittleEndian.Uint32(e[16:])) * segment.Align
		length := int64(binary.LittleEndian.Uint32(e[20:]))
		if i > 0 && bytes.Compare(list[i-1].ID[:], s.ID[:]) >= 0 {
			return bad("segment %s after %s", s.ID, list[i-1].ID)
		}
		if length > int64(len(ends))-segment.TrailerSize {
			return bad("footer of %d bytes of segment %s, %d are left", length, s.ID, len(ends))
		}
		s.Footer, s.Trailer = ends[:length:length], ends[length:][:segment.TrailerSize:segment.TrailerSize]
		ends = ends[length+segment.TrailerSize:]
	}
	if len(ends) > 0 {
		return bad("%d bytes are of no segment", len(ends))
	}
	return list, nil
}

// PutIndex stores an index of segments, which are in order of ID and take no
// more than MaxIndex together.
func (r *Repo) PutIndex(ctx context.Context, list []Indexed) (name string, err error) {
	return r.putUnder(ctx, indexPrefix, keys.KindIndex, encodeIndex(list))
}

// putUnder stores a payload under a new name.
func (r *Repo) putUnder(ctx context.Context, prefix, kind string, payload []byte) (name string, err error) {
	var random [16]byte
	rand.Read(random[:])
	name = prefix + hex.EncodeToString(random[:])
	object, _, err := r.Keys.SealBytes(kind, name, payload)
	if err != nil {
		return "", err
	}
	if err := r.Store.Put(ctx, name, object); err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	return name, nil
}

// Indexes calls f for the name and size of every index, in order of name.
func (r *Repo) Indexes(ctx context.Context, f func(name string, size int64) error) error {
	return r.under(ctx, indexPrefix, f)
}

// under calls f for what is listed under a prefix and named as putUnder does.
func (r *Repo) under(ctx context.Context, prefix string, f func(name string, size int64) error) error {
	return r.Store.List(ctx, prefix, func(o store.Info) error {
		if id, err := hex.DecodeString(o.Name[len(prefix):]); err != nil || len(id) != 16 {
			return nil
		}
		return f(o.Name, o.Size)
	})
}

// Index reads an index. The ends in it are not checked: Open does that.
func (r *Repo) Index(ctx context.Context, name string) ([]Indexed, error) {
	payload, err := r.payload(ctx, keys.KindIndex, name)
	if err != nil {
		return nil, err
	}
	list, err := decodeIndex(payload)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}

func (r *Repo) payload(ctx context.Context, kind, name string) ([]byte, error) {
	object, err := Object(ctx, r.Store, kind, name)
	if err != nil {
		return nil, err
	}
	payload, _, err := r.Keys.Payload(kind, name, object)
	return payload, err
}

// footerWorkers is how many footers are read or checked at once.
const footerWorkers = 8

// tailCost is about what reading one segment's end costs, in bytes: that many
// are read, or could have been in the time that asking takes.
const tailCost = 256 << 10

// Footers calls f with the footer of every segment in list, or with what is
// wrong with it, in any order and from several goroutines at once, until f
// returns an error. Where many are asked for they come out of indexes, as far
// as those go: one that cannot be read or does not prove itself is passed over.
func (r *Repo) Footers(ctx context.Context, list []segment.Object, f func(segment.Object, *segment.Footer, error) error) error {
	rest, err := r.indexedFooters(ctx, list, f)
	if err != nil {
		return err
	}
	return each(ctx, rest, func(ctx context.Context, o segment.Object) error {
		footer, err := segment.ReadFooter(ctx, r.Store, r.Keys, o.ID, o.Size)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return f(o, footer, err)
	})
}

// each calls f for all of a list, several at a time.
func each[T any](ctx context.Context, list []T, f func(context.Context, T) error) error {
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(footerWorkers)
	for _, v := range list {
		if group.Err() != nil {
			break
		}
		g.Go(func() error { return f(group, v) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// indexedFooters serves what indexes hold, where fetching all of them is
// cheaper than reading the ends one by one, and returns the rest.
func (r *Repo) indexedFooters(ctx context.Context, list []segment.Object, f func(segment.Object, *segment.Footer, error) error) ([]segment.Object, error) {
	if len(list) < 2*footerWorkers {
		return list, nil
	}
	var names []string
	var total int64
	err := r.Indexes(ctx, func(name string, size int64) error {
		names = append(names, name)
		total += size
		return nil
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil || total > int64(len(list))*tailCost {
		return list, nil
	}
	wanted := make(map[image.SegmentID]int64, len(list))
	for _, o := range list {
		wanted[o.ID] = o.Size
	}
	for _, name := range names {
		if err := r.fromIndex(ctx, name, wanted, f); err != nil {
			return nil, err
		}
	}
	var rest []segment.Object
	for _, o := range list {
		if _, ok := wanted[o.ID]; ok {
			rest = append(rest, o)
		}
	}
	return rest, nil
}

// fromIndex serves what one index holds of what is wanted, and takes it off.
func (r *Repo) fromIndex(ctx context.Context, name string, wanted map[image.SegmentID]int64, f func(segment.Object, *segment.Footer, error) error) error {
	ends, err := r.Index(ctx, name)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return nil // superseded meanwhile, or damaged: the segments have it all
	}
	var here []Indexed
	for _, s := range ends {
		if size, ok := wanted[s.ID]; ok && size == s.Size {
			here = append(here, s)
		}
	}
	good := make([]bool, len(here))
	places := make([]int, len(here))
	for i := range places {
		places[i] = i
	}
	err = each(ctx, places, func(_ context.Context, i int) error {
		footer, err := here[i].Open(r.Keys, here[i].Object)
		if errors.Is(err, image.ErrCorrupt) {
			return nil // the segment itself may be better
		}
		good[i] = true
		return f(here[i].Object, footer, err)
	})
	for i := range here {
		if good[i] {
			delete(wanted, here[i].ID)
		}
	}
	return err
}
