package main

import (
	"bytes"
	stdflag "flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

var update = stdflag.Bool("update", false, "write the golden help files")

func TestEveryCommandHasHelpWithAnExampleThatItAccepts(t *testing.T) {
	for _, row := range commands() {
		if row.short == "" || row.long == "" || row.example == "" || row.run == nil {
			t.Errorf("%s: a field of its row is empty", row.name)
		}
		if !slices.ContainsFunc(groups[:], func(g struct{ id, title string }) bool { return g.id == row.group }) {
			t.Errorf("%s: no group %q", row.name, row.group)
		}
		for line := range strings.Lines(row.example) {
			if err := accepts(strings.Fields(line)); err != "" {
				t.Errorf("%s: example %q: %s", row.name, line, err)
			}
		}
	}
}

// accepts says why the program would refuse a command line before it starts.
func accepts(words []string) string {
	if i := slices.IndexFunc(words, func(w string) bool { return strings.ContainsAny(w[:1], ">|&;#") }); i >= 0 {
		words = words[:i]
	}
	if len(words) < 2 || words[0] != "platter" {
		return "not a command of platter"
	}
	if _, ok := rowOf(words[1:]); !ok {
		return "no such command"
	}
	term, _, _ := screen()
	c := newCall(term, nil)
	cmd, rest, err := c.root.Find(words[1:])
	if err != nil {
		return err.Error()
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err.Error()
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return err.Error()
	}
	return ""
}

func TestAcceptsRefuses(t *testing.T) {
	for _, line := range []string{"platter", "restic backup", "platter bakup", "platter show", "platter images --bogus", "platter diff a b c", "platter catalog", "platter images --memory 1"} {
		if accepts(strings.Fields(line)) == "" {
			t.Errorf("%q is accepted", line)
		}
	}
}

func TestArity(t *testing.T) {
	for args, want := range map[string][2]int{
		"": {0, 0}, "IMAGE": {1, 1}, "IMAGE TARGET": {2, 2}, "[VOLUME]": {0, 1}, "[IMAGE...]": {0, -1}, "DEVICE...": {1, -1},
	} {
		if least, most := (command{args: args}).arity(); least != want[0] || most != want[1] {
			t.Errorf("%q takes %d to %d, want %v", args, least, most, want)
		}
	}
}

func TestHelpIsTheGoldenOne(t *testing.T) {
	lines := [][]string{{"help"}, {"help", "catalog"}}
	for _, row := range commands() {
		lines = append(lines, append([]string{"help"}, strings.Fields(row.name)...))
	}
	for _, args := range lines {
		term, out, errs := screen()
		if code := run(args, term); code != exitDone || errs.Len() > 0 {
			t.Errorf("%q: status %d, %s", args, code, errs)
		}
		// The default depends on who asks.
		got := bytes.ReplaceAll(out.Bytes(), []byte(defaults().repo), []byte("REPOSITORY"))
		path := filepath.Join("testdata", "help", strings.Join(args, "-")+".txt")
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%q differs from %s; if that is meant, run go test -update:\n%s", args, path, diff)
		}
		for line := range strings.Lines(string(got)) {
			if len(line) > 101 {
				t.Errorf("%q: a line of %d columns: %s", args, len(line), line)
			}
		}
	}
}

func TestHelpFlagShowsTheSameAsHelp(t *testing.T) {
	for _, row := range commands() {
		words := strings.Fields(row.name)
		term, want, _ := screen()
		run(append([]string{"help"}, words...), term)
		term, got, errs := screen()
		if code := run(append(words, "--help"), term); code != exitDone || errs.Len() > 0 {
			t.Errorf("%s --help: status %d, %s", row.name, code, errs)
		}
		if got.String() != want.String() {
			t.Errorf("%s --help and help %s differ", row.name, row.name)
		}
	}
}

func TestCompletionKnowsEveryCommandAndFlag(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		term, out, _ := screen()
		if code := run([]string{"completion", shell}, term); code != exitDone || !strings.Contains(out.String(), "platter") {
			t.Errorf("%s: status %d, %d bytes", shell, code, out.Len())
		}
	}
	// The scripts ask the program itself.
	ask := func(words ...string) string {
		term, out, _ := screen()
		if code := run(append([]string{cobra.ShellCompRequestCmd}, words...), term); code != exitDone {
			t.Errorf("complete %q: status %d", words, code)
		}
		return out.String()
	}
	for _, row := range commands() {
		words := strings.Fields(row.name)
		last := len(words) - 1
		if got := ask(append(slices.Clone(words[:last]), "")...); !strings.Contains(got, words[last]+"\t") {
			t.Errorf("%s is not offered:\n%s", row.name, got)
		}
		got := ask(append(words, "--")...)
		for _, f := range append(globalFlags(), row.flags...) {
			if !strings.Contains(got, "--"+f.name+"\t") {
				t.Errorf("%s: --%s is not offered:\n%s", row.name, f.name, got)
			}
		}
	}
	if got := ask("completion", ""); !strings.Contains(got, "fish") {
		t.Errorf("shells are not offered: %s", got)
	}
}

// inReadme finds commands in the code of a page: from "platter" to what ends
// the line or the span.
var inReadme = regexp.MustCompile("(?m)(?:^|[\\s`/(])platter ([a-z][^`\n]*)")

func readme(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

func TestReadmeListsEveryCommandWithItsFlags(t *testing.T) {
	page := readme(t)
	for _, row := range commands() {
		head := "| `" + strings.TrimSpace("platter "+row.name+" "+row.args) + "` |"
		_, rest, ok := strings.Cut(page, head)
		if !ok {
			t.Errorf("README.md has no row %s", head)
		}
		line, _, _ := strings.Cut(rest, "\n")
		for _, f := range row.flags {
			if !strings.Contains(line, "`--"+f.name) {
				t.Errorf("README.md does not list --%s in the row of %s", f.name, row.name)
			}
		}
	}
	for _, f := range globalFlags() {
		if !strings.Contains(page, "`--"+f.name+"`") || f.short != "" && !strings.Contains(page, "`-"+f.short+"`") || !strings.Contains(page, f.env) {
			t.Errorf("README.md does not list --%s, -%s and %s among those of every command", f.name, f.short, f.env)
		}
	}
	for _, c := range causes {
		if row := fmt.Sprintf("\n| %d | ", c.status); !strings.Contains(page, row) {
			t.Errorf("README.md does not list exit status %d", c.status)
		}
	}
}

func TestReadmeTypesNoCommandAndNoFlagThatIsNotThere(t *testing.T) {
	for _, line := range codeLines(readme(t)) {
		for _, m := range inReadme.FindAllStringSubmatch(line, -1) {
			checkReadmeCommand(t, m[1])
		}
	}
}

// codeLines are the lines of fenced blocks and the spans between backticks.
func codeLines(page string) (lines []string) {
	fenced := false
	for line := range strings.Lines(page) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
			continue
		}
		if fenced {
			lines = append(lines, line)
			continue
		}
		for i, span := range strings.Split(line, "`") {
			if i%2 == 1 {
				lines = append(lines, span)
			}
		}
	}
	return lines
}

// checkReadmeCommand checks that the command exists and that all its flags do.
func checkReadmeCommand(t *testing.T, line string) {
	words := strings.Fields(line)
	row, ok := rowOf(words)
	if !ok {
		t.Errorf("README.md: there is no command platter %s", line)
		return
	}
	known := append(globalFlags(), row.flags...)
	for _, w := range words[1:] {
		if strings.ContainsAny(w[:1], ">|&;#") {
			return
		}
		name, ok := strings.CutPrefix(strings.Trim(w, "[],.;:"), "--")
		name, _, _ = strings.Cut(name, "=")
		if ok && name != "" && !slices.ContainsFunc(known, func(f flag) bool { return f.name == name }) {
			t.Errorf("README.md: platter %s has no flag --%s", row.name, name)
		}
	}
}

func rowOf(words []string) (command, bool) {
	for _, row := range commands() {
		name := strings.Fields(row.name)
		if len(words) >= len(name) && slices.Equal(words[:len(name)], name) {
			return row, true
		}
	}
	return command{}, false
}
