package full_test

import (
	"context"
	"testing"

	"platter/cbt"
	"platter/cbt/cbttest"
	"platter/cbt/full"
)

func TestFullPassesTheSuite(t *testing.T) {
	cbttest.Run(t, func(t testing.TB, size int64) cbttest.Fixture {
		d := cbttest.File(t, size)
		return cbttest.Fixture{
			Device: d,
			Open:   func(context.Context, string) (cbt.Tracker, error) { return full.New(d.Size()), nil },
		}
	})
}
