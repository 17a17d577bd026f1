package main

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocsTroubleshootingHasMessagesOfTheProgram keeps the page from
// telling of messages that nobody will ever see.
func TestDocsTroubleshootingHasMessagesOfTheProgram(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	messages := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(page), -1)
	if len(messages) < 20 {
		t.Fatalf("%d messages in the page", len(messages))
	}
	var source strings.Builder
	err = fs.WalkDir(os.DirFS("../.."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := fs.ReadFile(os.DirFS("../.."), path)
		source.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if !strings.Contains(source.String(), m[1]) {
			t.Errorf("docs/troubleshooting.md: nothing says %q", m[1])
		}
	}
}
