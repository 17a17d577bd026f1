package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestEveryCommandHasAManualPage(t *testing.T) {
	term, out, _ := screen()
	if code := run([]string{"man", "--list"}, term); code != exitDone {
		t.Fatalf("status %d", code)
	}
	pages := strings.Fields(out.String())
	if len(pages) != len(commands())+1 {
		t.Errorf("%d pages for %d commands", len(pages), len(commands()))
	}
	term, whole, _ := screen()
	run([]string{"man"}, term)
	for _, row := range commands() {
		term, page, errs := screen()
		if code := run(append([]string{"man"}, strings.Fields(row.name)...), term); code != exitDone || errs.Len() > 0 {
			t.Errorf("%s: status %d, %s", row.name, code, errs)
		}
		// The package's build knows the names of pages alone.
		term, byPage, _ := screen()
		run(append([]string{"man"}, strings.Split(strings.TrimPrefix(manName(row.name), "platter-"), "-")...), term)
		if byPage.String() != page.String() {
			t.Errorf("%s has another page by its page's name", row.name)
		}
		text := page.String()
		for _, f := range row.flags {
			if !strings.Contains(text, troff("--"+f.name)) {
				t.Errorf("the page of %s does not list --%s", row.name, f.name)
			}
		}
		if !strings.HasPrefix(text, ".TH PLATTER") || !strings.Contains(whole.String(), troff(manName(row.name))) {
			t.Errorf("%s: %.60q", row.name, text)
		}
	}
	term, _, _ = screen()
	if code := run([]string{"man", "nothing"}, term); code != exitUsage {
		t.Errorf("status %d", code)
	}
}

func TestManualPagesHaveNoMistakes(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("groff is not here")
	}
	for _, name := range []string{"", "backup", "alerts ack", "completion"} {
		term, page, _ := screen()
		run(append([]string{"man"}, strings.Fields(name)...), term)
		cmd := exec.CommandContext(t.Context(), "groff", "-man", "-Tutf8", "-ww", "-z")
		cmd.Stdin = page
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%q: %v\n%s", name, err, out)
		}
	}
}

func TestTroffLeavesNothingToBeObeyed(t *testing.T) {
	for in, want := range map[string]string{`.so x`: `\&.so x`, `'x`: `\&'x`, `a\fBb`: `a\efBb`, "--all": `\-\-all`} {
		if got := troff(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
