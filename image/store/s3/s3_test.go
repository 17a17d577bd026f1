package s3_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"platter/image/store"
	"platter/image/store/s3"
	"platter/image/store/s3/s3test"
	"platter/image/store/storetest"
)

func open(t testing.TB, config s3.Config) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSuite(t *testing.T) {
	server := s3test.Start(t)
	var n atomic.Int64
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, server.Config(fmt.Sprintf("suite/%d", n.Add(1))))
	})
}
