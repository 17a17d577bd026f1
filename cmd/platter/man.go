package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// runMan prints the manual page of a command, or that of the program. The words
// of a command may as well be those of its page's name between the dashes.
func runMan(_ context.Context, c *call, args []string) error {
	if c.opts.list {
		for _, page := range manPages() {
			c.term.printf("%s\n", page)
		}
		return nil
	}
	if len(args) == 0 {
		_, err := fmt.Fprint(c.term, manProgram())
		return err
	}
	for _, row := range commands() {
		if manName(row.name) == manName(strings.Join(args, " ")) {
			_, err := fmt.Fprint(c.term, row.man())
			return err
		}
	}
	return advise(usagef("man: %q is no command", strings.Join(args, " ")), "see: platter man --list")
}

// manPages are the names of all manual pages.
func manPages() []string {
	pages := []string{"platter"}
	for _, name := range commandNames() {
		pages = append(pages, manName(name))
	}
	slices.Sort(pages)
	return pages
}

func manName(command string) string { return "platter-" + strings.ReplaceAll(command, " ", "-") }

// manHead begins a page.
func manHead(name, short string) string {
	return fmt.Sprintf(".TH %s 1 \"\" %s \"Platter\"\n.SH NAME\n%s \\- %s\n",
		troff(strings.ToUpper(name)), quoted("platter "+versionText()), troff(name), troff(short))
}

func manProgram() string {
	var b strings.Builder
	b.WriteString(manHead("platter", "image disks and get them back"))
	b.WriteString(".SH SYNOPSIS\n.B platter\n.I COMMAND\n[FLAGS] [ARGUMENTS]\n")
	b.WriteString(".SH DESCRIPTION\nPlatter images disks block by block, stores each distinct block once, and builds the disks again.\n")
	for _, g := range groups {
		fmt.Fprintf(&b, ".SH %s\n", troff(strings.ToUpper(strings.TrimSuffix(g.title, ":"))))
		for _, row := range commands() {
			if row.group == g.id {
				fmt.Fprintf(&b, ".TP\n.BR %s (1)\n%s\n", troff(manName(row.name)), troff(row.short))
			}
		}
	}
	b.WriteString(".SH FLAGS\n" + manFlags(globalFlags()))
	b.WriteString(".SH FILES\n.TP\n.I /etc/platter/platter.toml\nthe config, with conf.d/*.toml beside it\n" +
		".TP\n.I " + systemDir + "\ncatalogs and records; the repository, where none is named\n")
	b.WriteString(".SH EXIT STATUS\n0 done, 1 failed, 2 usage, 3 done but data is missing, fuzzy or untrusted, " +
		"10 no repository, 11 locked, 12 wrong password or key, 13 damage found, 14 target refused, 130 interrupted.\n")
	return b.String()
}

func (c command) man() string {
	var b strings.Builder
	b.WriteString(manHead(manName(c.name), c.short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", troff(c.use()))
	b.WriteString(".SH DESCRIPTION\n" + paragraphs(c.long))
	if len(c.flags) > 0 {
		b.WriteString(".SH FLAGS\n" + manFlags(c.flags))
	}
	b.WriteString(".SH EXAMPLES\n.nf\n")
	for line := range strings.Lines(c.example) {
		b.WriteString(troff(strings.TrimSuffix(line, "\n")) + "\n")
	}
	b.WriteString(".fi\n.SH SEE ALSO\n.BR platter (1)\nfor the flags of every command, and /usr/share/doc/platter\n")
	return b.String()
}

// paragraphs keeps empty lines as what parts them.
func paragraphs(text string) string {
	var b strings.Builder
	for i, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		for line := range strings.Lines(p) {
			b.WriteString(troff(strings.TrimSuffix(line, "\n")) + "\n")
		}
	}
	return b.String()
}

func manFlags(flags []flag) string {
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	addFlags(set, defaults(), flags)
	var b strings.Builder
	set.VisitAll(func(f *pflag.Flag) {
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind != "" && f.NoOptDefVal == "" {
			name += " " + kind
		}
		fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", troff(name), troff(usage))
	})
	return b.String()
}

// troff writes text so that nothing in it is taken for a request or an escape.
func troff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func quoted(s string) string { return `"` + strings.ReplaceAll(troff(s), `"`, `\(dq`) + `"` }
