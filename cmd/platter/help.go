package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// help writes the help of one command, or of all.
func (c *call) help(cmd *cobra.Command, w io.Writer) {
	var b strings.Builder
	switch name := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "platter"), " "); {
	case name == "":
		b.WriteString("Platter images disks and gives them back.\n\nUsage:\n  platter COMMAND [FLAGS] [ARGUMENTS]\n")
		c.listCommands(&b, "")
		fmt.Fprintf(&b, "\nGlobal flags:\n%s", flagsText(globalFlags()))
		b.WriteString("\nSee \"platter help COMMAND\" for more, with examples.\n")
	case cmd.HasSubCommands() && !isCommand(name):
		fmt.Fprintf(&b, "Usage:\n  platter %s COMMAND\n", name)
		c.listCommands(&b, name+" ")
	default:
		helpCommand(&b, name)
		if cmd.HasSubCommands() {
			c.listCommands(&b, name+" ")
		}
		fmt.Fprintf(&b, "\nGlobal flags:\n%s", flagsText(globalFlags()))
	}
	io.WriteString(w, b.String())
}

// listCommands lists the commands whose names begin so, by group.
func (c *call) listCommands(b *strings.Builder, prefix string) {
	for _, g := range groups {
		title := "\n" + g.title + "\n"
		for _, row := range commands() {
			if row.group == g.id && strings.HasPrefix(row.name, prefix) {
				fmt.Fprintf(b, "%s  %-16s %s\n", title, row.name, row.short)
				title = ""
			}
		}
	}
}

func helpCommand(b *strings.Builder, name string) {
	for _, row := range commands() {
		if row.name != name {
			continue
		}
		fmt.Fprintf(b, "%s\n\nUsage:\n  %s\n\nExamples:\n", row.long, row.use())
		for line := range strings.Lines(row.example) {
			b.WriteString("  " + line)
		}
		b.WriteString("\n")
		if len(row.flags) > 0 {
			fmt.Fprintf(b, "\nFlags:\n%s", flagsText(row.flags))
		}
	}
}

// flagsText describes flags in the order of the table, with their defaults.
func flagsText(flags []flag) string {
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	addFlags(set, defaults(), flags)
	return set.FlagUsages()
}

// isCommand tells a command from a word that others begin with.
func isCommand(name string) bool { return slices.Contains(commandNames(), name) }
