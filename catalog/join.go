package catalog

import (
	"bytes"
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// A join walks the catalog's entries of one kind beside a sorted listing of
// the repository, in memory that does not grow with either.
type join struct {
	iter  *pebble.Iterator
	last  []byte
	extra func(key, value []byte) error // an entry that the listing does not name
}

func (c *Catalog) newJoin(tag byte, extra func(key, value []byte) error) (*join, error) {
	iter, err := c.db.NewIter(bounds(tag))
	if err != nil {
		return nil, err
	}
	iter.First()
	return &join{iter: iter, extra: extra}, nil
}

// next takes the listing's next key. It returns the catalog's value for it,
// which is valid until the next call, and whether there is one.
func (j *join) next(ctx context.Context, key []byte) (value []byte, known bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	if j.last != nil && bytes.Compare(key, j.last) <= 0 {
		return nil, false, fmt.Errorf("repository lists %q after %q", key[1:], j.last[1:])
	}
	j.last = append(j.last[:0], key...)
	for j.iter.Valid() && bytes.Compare(j.iter.Key(), key) < 0 {
		if err := j.extra(j.iter.Key(), j.iter.Value()); err != nil {
			return nil, false, err
		}
		j.iter.Next()
	}
	if !j.iter.Valid() || !bytes.Equal(j.iter.Key(), key) {
		return nil, false, j.iter.Error()
	}
	value = bytes.Clone(j.iter.Value())
	j.iter.Next()
	return value, true, nil
}

// rest ends the join: what the catalog still has, the listing does not name.
func (j *join) rest() error {
	for ; j.iter.Valid(); j.iter.Next() {
		if err := j.extra(j.iter.Key(), j.iter.Value()); err != nil {
			return err
		}
	}
	return j.iter.Error()
}

func (j *join) close() { j.iter.Close() }
