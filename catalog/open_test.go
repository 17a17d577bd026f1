package catalog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewerCatalogIsRefusedAndLeftAlone(t *testing.T) {
	opts := testOptions(t)
	mustClose(t, mustOpen(t, opts))
	text := []byte("platter catalog\nschema 2\nsomething else\n")
	text = fmt.Appendf(text, "checksum %016x\n", xxhash.Sum64(text))
	path := filepath.Join(opts.Dir, headName)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), opts)
	if !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "schema 2") {
		t.Errorf("open: got %v, want ErrNewer", err)
	}
	if _, _, err := Rebuild(t.Context(), opts, newFakeRepo(), nil); !errors.Is(err, ErrNewer) {
		t.Errorf("rebuild: got %v, want ErrNewer", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != string(text) {
		t.Errorf("the file is %q now, %v", got, err)
	}
}

func TestDamagedCatalogSaysHowToRebuild(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"head empty":  func(dir string) error { return os.WriteFile(dir+"/"+headName, nil, 0o600) },
		"head junk":   func(dir string) error { return os.WriteFile(dir+"/"+headName, []byte("junk\n"), 0o600) },
		"index gone":  func(dir string) error { return os.RemoveAll(dir + "/index-00000001") },
		"index empty": func(dir string) error { return removeFiles(dir + "/index-00000001/*") },
		"manifest gone": func(dir string) error {
			return removeFiles(dir + "/index-00000001/MANIFEST-*")
		},
		"tables gone": func(dir string) error { return removeFiles(dir + "/index-00000001/*.sst") },
	} {
		t.Run(name, func(t *testing.T) {
			repo := smallRepo()
			opts := testOptions(t)
			c := mustOpen(t, opts)
			mustSync(t, c, repo)
			if err := c.db.Flush(); err != nil {
				t.Fatal(err)
			}
			mustClose(t, c)
			if err := spoil(opts.Dir); err != nil {
				t.Fatal(err)
			}
			_, err := Open(t.Context(), opts)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "platter catalog rebuild") || !strings.Contains(err.Error(), opts.Dir) {
				t.Errorf("got %v, want ErrDamaged with advice", err)
			}
			c, _, err = Rebuild(t.Context(), opts, repo, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer mustClose(t, c)
			mustCheck(t, c, repo)
		})
	}
}

func removeFiles(pattern string) error {
	names, err := filepath.Glob(pattern)
	for _, name := range names {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

func TestOtherFilesInTheDirectoryStay(t *testing.T) {
	opts := testOptions(t)
	mine := filepath.Join(opts.Dir, "index-of-mine")
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, opts))
	c, _, err := Rebuild(t.Context(), opts, newFakeRepo(), nil)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, c)
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(opts.Dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the directory's mode is %v, %v: it was not ours to change", info.Mode(), err)
	}
	names, err := filepath.Glob(opts.Dir + "/index-0*")
	if err != nil || len(names) != 1 {
		t.Errorf("indexes after a rebuild: %q, %v", names, err)
	}
}

func TestDirectoryThatIsAFile(t *testing.T) {
	opts := testOptions(t)
	if err := os.WriteFile(opts.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), opts); err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), opts.Dir) {
		t.Errorf("got %v, want an error that names %s", err, opts.Dir)
	}
}
