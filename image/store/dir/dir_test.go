package dir_test

import (
	"testing"

	"platter/image/store"
	"platter/image/store/dir"
	"platter/image/store/storetest"
	"platter/image/store/vfs"
)

func TestSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s, err := dir.Create(t.TempDir()+"/a/repo", vfs.OS())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
