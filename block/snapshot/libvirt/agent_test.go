package libvirt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A guest that does not thaw at once is thawed all the same: its agent may freeze
// it late. The virsh here refuses twice.
func TestGuestIsThawedUntilItIs(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	script := "#!/bin/sh\necho \"$*\" >>" + calls + "\n[ $(wc -l <" + calls + ") -gt 2 ]\n"
	virsh := filepath.Join(dir, "virsh")
	if err := os.WriteFile(virsh, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	thaw, err := guard(virsh, "1234")
	if err != nil {
		t.Fatal(err)
	}
	if err := thaw(); err != nil {
		t.Error(err)
	}
	said, err := os.ReadFile(calls)
	if n := strings.Count(string(said), "domfsthaw --domain 1234"); err != nil || n != 3 {
		t.Errorf("%d tries, want 3: %q, %v", n, said, err)
	}
}
