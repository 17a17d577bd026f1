package owned

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFilesThatOthersMayChangeAreRefused(t *testing.T) {
	dir := t.TempDir()
	for at := dir; at != "/" && at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "deep", "file")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if real, err := Check(path); err != nil || real != path {
		t.Skipf("the folder for tests itself is not owned: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if real, err := Check(link); err != nil || real != path {
		t.Errorf("a link: %s, %v", real, err)
	}
	for _, c := range []struct {
		path string
		mode os.FileMode
		ok   bool
	}{
		{path, 0o644, true},
		{path, 0o664, false},
		{path, 0o602, false},
		{filepath.Dir(path), 0o775, false},
		{filepath.Dir(path), 0o757, false},
		{filepath.Dir(path), 0o777 | os.ModeSticky, true},
	} {
		before, err := os.Stat(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(c.path, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Check(path); (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s with mode %v: %v", c.path, c.mode, err)
		}
		if err := os.Chmod(c.path, before.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := CheckSecret(path); err != nil {
		t.Errorf("a secret with mode 0600: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := CheckSecret(path); err == nil {
		t.Error("a secret with mode 0640 is taken")
	}
	if _, err := Check(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if os.Getuid() != 0 {
		return
	}
	if err := os.Chown(filepath.Dir(path), 12345, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(path); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("in a folder of somebody else: %v", err)
	}
	if _, err := check(path, 12345); err != nil {
		t.Errorf("in a folder of one's own: %v", err)
	}
}
