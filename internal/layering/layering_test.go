package layering

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

func TestImportsFollowTheTable(t *testing.T) {
	report(t, Check(Table(), TestAids, load(t)))
}

func TestTablePointsUp(t *testing.T) {
	report(t, CheckTable(Table()))
}

func TestFoldersHaveTheirPlace(t *testing.T) {
	var all []string
	err := fs.WalkDir(os.DirFS(root), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir() || p == ".":
			return err
		case strings.HasPrefix(d.Name(), "."), d.Name() == "testdata", p == "bin":
			return fs.SkipDir
		}
		all = append(all, p)
		return nil
	})
	if err != nil || len(all) == 0 {
		t.Fatalf("walk %s: %d folders, %v", root, len(all), err)
	}
	report(t, CheckFolders(Folders, NoFolders, all))
}

// load asks the go command for the packages of this module. Those that do not
// build, because somebody is at work on them, are checked as far as they go.
func load(t *testing.T) []Package {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e",
		"-json=ImportPath,Module,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &complaint)
	}
	packages, err := decode(out)
	if err != nil || len(packages) == 0 {
		t.Fatalf("read what go list says: %d packages, %v", len(packages), err)
	}
	return packages
}

func decode(out []byte) (packages []Package, err error) {
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath                         string
			Module                             struct{ Path string }
			Imports, TestImports, XTestImports []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, err
		}
		ours := func(imports []string) (short []string) {
			for _, i := range imports {
				if rest, ok := strings.CutPrefix(i, p.Module.Path+"/"); ok {
					short = append(short, rest)
				}
			}
			return short
		}
		packages = append(packages, Package{
			Path:        strings.TrimPrefix(p.ImportPath, p.Module.Path+"/"),
			Imports:     ours(p.Imports),
			TestImports: ours(slices.Concat(p.TestImports, p.XTestImports)),
		})
	}
}

func report(t *testing.T, wrong []string) {
	t.Helper()
	for _, w := range wrong {
		t.Error(w)
	}
}

func TestCheckFindsWrongArrows(t *testing.T) {
	table := []Layer{
		{"low", "", ""},
		{"low/...", "low", ""},
		{"mid/...", "low/...", ""},
		{"mid/deep", "low", ""},
		{"midst", "", ""},
	}
	for _, c := range []struct {
		name string
		p    Package
		want string // the beginning of the only sentence; empty for none
	}{
		{"none", Package{Path: "low"}, ""},
		{"down", Package{Path: "mid", Imports: []string{"low", "low/sub"}}, ""},
		{"down from below a folder", Package{Path: "mid/sub/sub", Imports: []string{"low/sub/sub"}}, ""},
		{"up", Package{Path: "low", Imports: []string{"mid"}}, "low imports mid, and may import nothing of this module: move"},
		{"up inside a folder", Package{Path: "low", Imports: []string{"low/sub"}}, "low imports low/sub, and may import nothing"},
		{"across", Package{Path: "low/a", Imports: []string{"low/b"}}, "low/a imports low/b, and may import only low:"},
		{"the closest line counts", Package{Path: "mid/deep", Imports: []string{"low/sub"}}, "mid/deep imports low/sub, and may import only low:"},
		{"a name that begins the same", Package{Path: "midst", Imports: []string{"low"}}, "midst imports low, and may import nothing"},
		{"no line", Package{Path: "lower", Imports: []string{"low"}}, "lower is in no line of the table: add one"},
		{"a suite from code", Package{Path: "mid", Imports: []string{"low/lowtest"}}, "mid imports low/lowtest, which is for tests: move"},
		{"a suite from a test", Package{Path: "midst", TestImports: []string{"midst", "low/lowtest"}}, ""},
		{"a suite from a suite", Package{Path: "low/lowtest", Imports: []string{"low", "low/models/m"}}, ""},
		{"up from a test", Package{Path: "low", TestImports: []string{"mid"}}, "a test of low imports mid, and may import nothing"},
	} {
		got := Check(table, "low/lowtest low/models/...", []Package{c.p})
		if c.want == "" && len(got) == 0 || len(got) == 1 && c.want != "" && strings.HasPrefix(got[0], c.want) {
			continue
		}
		t.Errorf("%s: got %q, want %q", c.name, got, c.want)
	}
}

func TestCheckTableFindsCircles(t *testing.T) {
	for _, c := range []struct {
		table []Layer
		want  []string
	}{
		{[]Layer{{"a", "", ""}, {"a/...", "a", ""}, {"b", "a a/...", ""}}, nil},
		{[]Layer{{"a", "b", ""}, {"b", "", ""}}, []string{
			"a may import b, but the line b is not above it",
			"a may import b, which no line above it says anything of",
		}},
		{[]Layer{{"a", "", ""}, {"a/sub", "a/...", ""}, {"a/...", "a", ""}}, []string{
			"a/sub may import a/..., but the line a/sub is not above it",
			"a/sub may import a/..., but the line a/... is not above it",
		}},
		{[]Layer{{"a/...", "", ""}, {"b/...", "a/...", ""}, {"a/late/...", "", ""}}, []string{
			"b/... may import a/..., but the line a/late/... is not above it",
		}},
		{[]Layer{{"a", "gone", ""}}, []string{"a may import gone, which no line above it says anything of"}},
		{[]Layer{{"a", "", ""}, {"a", "", ""}}, []string{"a has two lines"}},
	} {
		if got := CheckTable(c.table); !slices.Equal(got, c.want) {
			t.Errorf("%v: got %q, want %q", c.table, got, c.want)
		}
	}
}

func TestCheckFoldersFindsNamesThatSayNothing(t *testing.T) {
	got := CheckFolders("block cmd .*", "util common", []string{"block", "block/util", ".ci", "cmd/Common", "scripts", "blocks/x"})
	want := []string{
		"folder block/util: the name says nothing; put each thing into the package that it is about",
		"folder cmd/Common: the name says nothing; put each thing into the package that it is about",
		"folder scripts: the tree has no top-level folder scripts, only block cmd .*",
		"folder blocks/x: the tree has no top-level folder blocks, only block cmd .*",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
