package catalog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// A tally of index entries says whether two sets of them are the same without
// keeping either. Nobody gains by fooling it: it compares a cache with itself.
type tally struct{ count, sum, xor uint64 }

func (t *tally) add(hash uint64, number, record uint32) {
	h := (hash ^ uint64(number)*0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd
	h = (h ^ h>>32 ^ uint64(record)*0xc2b2ae3d27d4eb4f) * 0xc4ceb9fe1a85ec53
	h ^= h >> 29
	t.count++
	t.sum += h
	t.xor ^= h * 0x165667b19e3779f9
}

// lists compares the lists of records with the segments, and the index of
// blocks with the lists. Only when they differ is each entry looked for.
func (k *checker) lists(ctx context.Context) error {
	var listed, indexed tally
	var info SegmentInfo
	err := k.eachList(ctx, func(r *records) error {
		if info.ID != r.segment || info.number != r.number {
			var err error
			if info, err = k.c.segment(r.segment); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		if info.number != r.number || info.ID != r.segment || r.chunk >= chunks(info.Records) {
			k.differ("segment "+r.segment.String(), "records from %d on are listed as number %d, which it has not", r.record(0), r.number)
		}
		for i := range r.ids {
			listed.add(hashID(&r.ids[i]), r.number, r.record(i))
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = k.c.scan(ctx, "scan", bounds(tagBlock), func(key, _ []byte) error {
		hash, number, record, err := parseBlockKey(key)
		indexed.add(hash, number, record)
		return err
	})
	if err != nil || listed == indexed {
		return err
	}
	return errors.Join(k.missing(ctx), k.surplus(ctx))
}

func (k *checker) eachList(ctx context.Context, f func(*records) error) error {
	return k.c.scan(ctx, "scan", bounds(tagRecords), func(key, value []byte) error {
		r, err := parseList(key, value)
		if err != nil {
			return err
		}
		return f(r)
	})
}

// missing finds records that the index does not lead to.
func (k *checker) missing(ctx context.Context) error {
	var key []byte
	return k.eachList(ctx, func(r *records) error {
		for i := range r.ids {
			key = appendBlockKey(key[:0], hashID(&r.ids[i]), r.number, r.record(i))
			found, err := k.same(key, nil)
			if err != nil {
				return err
			}
			if !found {
				k.differ("block "+r.ids[i].String(), "is at %v, and is not found there", r.at(i))
			}
		}
		return nil
	})
}

// surplus finds entries of the index that lead to no such record.
func (k *checker) surplus(ctx context.Context) error {
	return k.c.scan(ctx, "scan", bounds(tagBlock), func(key, _ []byte) error {
		hash, number, record, err := parseBlockKey(key)
		if err != nil {
			return err
		}
		s := k.c.segments
		chunk := chunkKey{number, record / chunkRecords}
		s.mu.Lock()
		r := s.lists.get(chunk)
		s.mu.Unlock()
		if r == nil {
			if r, err = k.c.loadList(chunk); err != nil {
				return err
			}
		}
		place := int(record % chunkRecords)
		if r == nil || place >= len(r.ids) || hashID(&r.ids[place]) != hash {
			k.differ(fmt.Sprintf("entry %x", key), "leads to record %d of number %d, which is none of it", record, number)
		}
		return nil
	})
}

// pageKeys finds pages of no segment. Pages that are missing were found before.
func (k *checker) pageKeys(ctx context.Context) error {
	n := int64(0)
	err := k.c.scan(ctx, "scan", bounds(tagPage), func(key, _ []byte) error {
		if len(key) != numberKeySize {
			return corrupt("page key of %d bytes", len(key))
		}
		n++
		if _, ok := k.pages[binary.BigEndian.Uint32(key[1:])]; !ok {
			k.differ(fmt.Sprintf("page entry %x", key), "belongs to no segment")
		}
		return nil
	})
	if err == nil && n != k.totals.pages {
		k.differ("pages", "are %d, the segments have %d", n, k.totals.pages)
	}
	return err
}
