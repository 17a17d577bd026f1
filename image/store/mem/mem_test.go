package mem_test

import (
	"testing"

	"platter/image/store"
	"platter/image/store/mem"
	"platter/image/store/storetest"
)

func TestSuite(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return mem.New() })
}
