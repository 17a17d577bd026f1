package s3test

import (
	"io"
	"net/http"
	"testing"
)

// TestServerStarts comes first in "make test": it builds the server, which
// would take too much of another test's time.
func TestServerStarts(t *testing.T) {
	s := Start(t)
	resp, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("asked by nobody: status %d, want 403", resp.StatusCode)
	}
}
