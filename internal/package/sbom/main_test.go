package main

import (
	"crypto/sha256"
	"encoding/json"
	"os"
	"runtime/debug"
	"strings"
	"testing"
)

func TestTheListHasEveryModuleThatIsInTheProgram(t *testing.T) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("this test was built without information")
	}
	info.Deps = []*debug.Module{
		{Path: "example.org/a", Version: "v1.2.3", Sum: "h1:" + strings.Repeat("A", 43) + "="},
		{Path: "example.org/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/c", Version: "v2.0.0"}},
	}
	text, err := json.Marshal(list(info, sha256.Sum256(nil), "0~1", "1800000000"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"purl":"pkg:golang/example.org/a@v1.2.3"`, `"purl":"pkg:golang/example.org/c@v2.0.0"`, `"bomFormat":"CycloneDX"`,
		`"timestamp":"2027-01-15T08:00:00Z"`, `"version":"0~1"`, `e3b0c44298fc1c149afbf4c8996fb924`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if err := run(os.Args[0]); err != nil {
		t.Error(err)
	}
	if err := run("/dev/null"); err == nil {
		t.Error("a file that is no program has a list")
	}
}
