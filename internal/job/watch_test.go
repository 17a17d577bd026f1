package job

import (
	"os"
	"testing"

	"platter/block/freeze"
)

// A freeze is watched by a process of the same program, which here is the
// program of the tests.
func TestMain(m *testing.M) {
	if freeze.Watch() {
		return
	}
	os.Exit(m.Run())
}
