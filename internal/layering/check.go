package layering

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// A Package is what the go command says of a package. Paths are without the
// module's name.
type Package struct {
	Path        string
	Imports     []string // packages of this module that it imports
	TestImports []string // those that its test files import
}

// Check returns what is wrong with the arrows between packages, one sentence
// for each arrow, in order of the packages.
func Check(table []Layer, aids string, packages []Package) (wrong []string) {
	for _, p := range packages {
		layer, ok := find(table, p.Path)
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s is in no line of the table: add one to internal/layering/table.go, "+
				"as low as what it imports allows, or put the code where it belongs", p.Path))
			continue
		}
		aid := matches(aids, p.Path)
		for _, to := range p.Imports {
			if !aid && matches(aids, to) {
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which is for tests: move the import to a _test file", p.Path, to))
			} else if !allowed(layer, aids, aid, to) {
				wrong = append(wrong, forbidden(layer, p.Path, to))
			}
		}
		for _, to := range p.TestImports {
			if to != p.Path && !allowed(layer, aids, true, to) {
				wrong = append(wrong, "a test of "+forbidden(layer, p.Path, to))
			}
		}
	}
	return wrong
}

func allowed(layer Layer, aids string, test bool, to string) bool {
	return matches(layer.Imports, to) || test && matches(aids, to)
}

func forbidden(layer Layer, from, to string) string {
	may := "nothing of this module"
	if layer.Imports != "" {
		may = "only " + strings.Join(strings.Fields(layer.Imports), ", ")
	}
	return fmt.Sprintf("%s imports %s, and may import %s: move what both need down to a package that %s may import, "+
		"or declare an interface in %s and let the caller pass %s in", from, to, may, from, from, to)
}

// CheckTable returns what is wrong with the table itself: arrows that do not
// point to lines above, so that the tree could have a circle.
func CheckTable(table []Layer) (wrong []string) {
	for i, layer := range table {
		for _, to := range strings.Fields(layer.Imports) {
			above := false
			for j, l := range table {
				switch {
				case !covers(table, to, l):
				case j < i:
					above = true
				default:
					wrong = append(wrong, fmt.Sprintf("%s may import %s, but the line %s is not above it", layer.Packages, to, l.Packages))
				}
			}
			if !above {
				wrong = append(wrong, fmt.Sprintf("%s may import %s, which no line above it says anything of", layer.Packages, to))
			}
		}
		if slices.ContainsFunc(table[:i], func(l Layer) bool { return l.Packages == layer.Packages }) {
			wrong = append(wrong, fmt.Sprintf("%s has two lines", layer.Packages))
		}
	}
	return wrong
}

// covers reports whether some package that pattern names follows line l.
func covers(table []Layer, pattern string, l Layer) bool {
	if pattern != trunk(pattern) && matches(pattern, trunk(l.Packages)) {
		return true
	}
	of, ok := find(table, trunk(pattern))
	return ok && of.Packages == l.Packages
}

// CheckFolders returns what is wrong with folders, given as slash-separated
// paths from the root of the tree.
func CheckFolders(folders, banned string, all []string) (wrong []string) {
	for _, folder := range all {
		top, _, _ := strings.Cut(folder, "/")
		if !matchesName(folders, top) {
			wrong = append(wrong, fmt.Sprintf("folder %s: the tree has no top-level folder %s, only %s", folder, top, folders))
		}
		if matchesName(banned, strings.ToLower(path.Base(folder))) {
			wrong = append(wrong, fmt.Sprintf("folder %s: the name says nothing; put each thing into the package that it is about", folder))
		}
	}
	return wrong
}

// find returns the line that names the package most closely.
func find(table []Layer, pkg string) (best Layer, ok bool) {
	for _, l := range table {
		if matches(l.Packages, pkg) && (!ok || closer(l.Packages, best.Packages)) {
			best, ok = l, true
		}
	}
	return best, ok
}

// closer compares patterns that match the same package: the longer trunk is
// the closer one, and of two with the same trunk the one without dots.
func closer(a, b string) bool {
	if trunk(a) != trunk(b) {
		return len(trunk(a)) > len(trunk(b))
	}
	return a == trunk(a)
}

func trunk(pattern string) string { return strings.TrimSuffix(pattern, "/...") }

// matches reports whether one of the patterns names the package.
func matches(patterns, pkg string) bool {
	return slices.ContainsFunc(strings.Fields(patterns), func(p string) bool {
		return pkg == trunk(p) || p != trunk(p) && strings.HasPrefix(pkg, trunk(p)+"/")
	})
}

// matchesName reports whether one of the shell patterns matches the name.
func matchesName(patterns, name string) bool {
	return slices.ContainsFunc(strings.Fields(patterns), func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}
