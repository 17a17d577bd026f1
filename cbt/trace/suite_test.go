package trace

import (
	"testing"

	"platter/cbt/cbttest"
)

func TestTracerPassesTheSuite(t *testing.T) {
	dir := testDir(t)
	runTest(t, dir, options{}).Close()
	cbttest.Run(t, func(t testing.TB, size int64) cbttest.Fixture {
		return (&rig{t: t, dir: dir}).fixture(size)
	})
}
