package catalog

import (
	"context"

	"github.com/cockroachdb/pebble/v2"
)

// callerError is an error of a caller's function: it is handed back as it is.
type callerError struct{ error }

func own(err error) error {
	if err == nil {
		return nil
	}
	return callerError{err}
}

// scanCheck is after how many entries a scan looks whether it is still wanted.
const scanCheck = 1024

// scan calls f for every entry within bounds, in order, until f returns an
// error. Key and value are f's until it returns.
func (c *Catalog) scan(ctx context.Context, what string, bounds *pebble.IterOptions, f func(key, value []byte) error) error {
	if err := c.state.get(); err != nil {
		return err
	}
	iter, err := c.db.NewIter(bounds)
	if err != nil {
		return c.state.wrap(what, err)
	}
	defer iter.Close()
	n := 0
	for iter.First(); iter.Valid(); iter.Next() {
		if n++; n%scanCheck == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		value, err := iter.ValueAndErr()
		if err == nil {
			err = f(iter.Key(), value)
		}
		if of, ok := err.(callerError); ok {
			return of.error
		}
		if err != nil {
			return c.state.wrap(what, err)
		}
	}
	return c.state.wrap(what, iter.Error())
}
