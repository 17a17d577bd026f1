package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// A space keeps small things by key beside the index: runs, results of
// verification, state of trackers. Its name has 1 to 255 bytes. Like all else
// here it may be lost: Rebuild empties every space.

// Put keeps value under key, durably, in place of what was there.
func (c *Catalog) Put(ctx context.Context, space, key string, value []byte) error {
	if err := checkSpace(ctx, space); err != nil {
		return err
	}
	b := c.db.NewBatch()
	b.Set(spaceKey(space, key), value, nil)
	return c.apply("put "+space+" "+key+" into", b, true)
}

// Get returns what Put kept, or ErrNotFound.
func (c *Catalog) Get(ctx context.Context, space, key string) (value []byte, err error) {
	if err := checkSpace(ctx, space); err != nil {
		return nil, err
	}
	err = c.read("get "+space+" "+key+" from", func() error {
		v, closer, err := c.db.Get(spaceKey(space, key))
		if errors.Is(err, pebble.ErrNotFound) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		value = bytes.Clone(v)
		return closer.Close()
	})
	return value, err
}

// Delete removes a key, durably. One that is not there is passed over.
func (c *Catalog) Delete(ctx context.Context, space, key string) error {
	if err := checkSpace(ctx, space); err != nil {
		return err
	}
	b := c.db.NewBatch()
	b.Delete(spaceKey(space, key), nil)
	return c.apply("delete "+space+" "+key+" from", b, true)
}

// Scan calls f for every key of a space that begins with prefix, in order,
// until f returns an error. The value is f's to keep.
func (c *Catalog) Scan(ctx context.Context, space, prefix string, f func(key string, value []byte) error) error {
	if err := checkSpace(ctx, space); err != nil {
		return err
	}
	start := spaceKey(space, prefix)
	skip := len(start) - len(prefix)
	o := &pebble.IterOptions{LowerBound: start, UpperBound: after(start)}
	return c.scan(ctx, "scan "+space+" of", o, func(key, value []byte) error {
		return own(f(string(key[skip:]), bytes.Clone(value)))
	})
}

func checkSpace(ctx context.Context, space string) error {
	if len(space) < 1 || len(space) > 255 {
		return fmt.Errorf("catalog space %q: want a name of 1 to 255 bytes", space)
	}
	return ctx.Err()
}

func spaceKey(space, key string) []byte {
	b := append([]byte{tagSpace, byte(len(space))}, space...)
	return append(b, key...)
}

// after returns the first key behind all that begin with prefix, which does
// not begin with 0xff.
func after(prefix []byte) []byte {
	b := bytes.Clone(prefix)
	for b[len(b)-1] == 0xff {
		b = b[:len(b)-1]
	}
	b[len(b)-1]++
	return b
}
