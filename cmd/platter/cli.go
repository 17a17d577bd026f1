package main

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"platter/internal/agent/history"
)

// A call is one invocation of the program: its flags and where it prints.
type call struct {
	opts *options
	term *terminal
	root *cobra.Command
	// record is that of this run; nobody keeps it where there is none to be.
	record *history.Run
}

// newCall makes the commands of the table. Before flags are read, only args
// can tell how an error is to be printed.
func newCall(t *terminal, args []string) *call {
	c := &call{opts: defaults(), term: t, record: new(history.Run)}
	if i := slices.Index(args, "--json"); i >= 0 && !slices.Contains(args[:i], "--") {
		t.json = true
	}
	c.root = &cobra.Command{
		Use: "platter", Short: "image disks and get them back", Args: cobra.ArbitraryArgs,
		SilenceErrors: true, SilenceUsage: true, DisableFlagsInUseLine: true, TraverseChildren: true,
		RunE: func(cmd *cobra.Command, args []string) error { return c.unknown(cmd, args) },
	}
	c.root.CompletionOptions.DisableDefaultCmd = true
	c.root.SetOut(t.out)
	c.root.SetErr(t.err)
	c.root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { c.help(cmd, t.out) })
	c.root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return advise(usagef("%s", err), "see: %s --help", cmd.CommandPath())
	})
	addFlags(c.root.PersistentFlags(), c.opts, globalFlags())
	for _, row := range commands() {
		c.add(row)
	}
	c.root.SetHelpCommand(c.find("help"))
	return c
}

// add puts a row of the table into the tree of commands.
func (c *call) add(row command) {
	parent, name := c.root, row.name
	if above, below, ok := strings.Cut(row.name, " "); ok {
		name = below
		if parent = c.find(above); parent == nil {
			parent = &cobra.Command{Use: above, RunE: func(cmd *cobra.Command, args []string) error { return c.unknown(cmd, args) }, Args: cobra.ArbitraryArgs}
			c.root.AddCommand(parent)
		}
	}
	cmd := &cobra.Command{
		Use: strings.TrimSpace(name + " " + row.args), Short: row.short, Long: row.long, Example: row.example,
		DisableFlagsInUseLine: true,
		Args:                  func(cmd *cobra.Command, args []string) error { return row.checkArgs(args) },
		RunE:                  func(cmd *cobra.Command, args []string) error { return c.start(cmd, row, args) },
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return c.complete(cmd, row, args)
		},
	}
	addFlags(cmd.Flags(), c.opts, row.flags)
	parent.AddCommand(cmd)
}

// find returns a command directly below the root, or nil.
func (c *call) find(name string) *cobra.Command {
	for _, cmd := range c.root.Commands() {
		if cmd.Name() == name {
			return cmd
		}
	}
	return nil
}

func addFlags(set *pflag.FlagSet, o *options, flags []flag) {
	set.SortFlags = false
	for _, f := range flags {
		usage := f.usage
		if f.env != "" {
			usage += ", or $" + f.env
		}
		added := set.VarPF(f.value(o), f.name, f.short, usage)
		if added.Value.Type() == "bool" {
			added.NoOptDefVal = "true"
		}
	}
}

// checkArgs refuses too few and too many arguments.
func (c command) checkArgs(args []string) error {
	least, most := c.arity()
	switch {
	case len(args) < least:
		missing := strings.Join(strings.Fields(c.args)[len(args):], " ")
		return advise(usagef("%s: %s is missing", c.name, missing), "usage: %s", c.use())
	case most >= 0 && len(args) > most:
		return advise(usagef("%s: %q is too much", c.name, args[most]), "usage: %s", c.use())
	}
	return nil
}

// execute runs the command that args name. What fails before it starts is a
// mistake in the command line.
func (c *call) execute(ctx context.Context, args []string) error {
	c.root.SetArgs(args)
	return c.root.ExecuteContext(ctx)
}

// start completes the flags and runs one command.
func (c *call) start(cmd *cobra.Command, row command, args []string) error {
	if err := c.fromEnvironment(cmd.Flags(), append(globalFlags(), row.flags...)); err != nil {
		return err
	}
	c.term.json, c.term.quiet, c.term.verbose = c.opts.json, c.opts.quiet, c.opts.verbose
	limitMemory(c.opts.memory)
	return adviseReading(c.recorded(cmd.Context(), row, args))
}

// fromEnvironment sets the flags that the command line left alone.
func (c *call) fromEnvironment(set *pflag.FlagSet, flags []flag) error {
	for _, f := range flags {
		v, ok := os.LookupEnv(f.env)
		if f.env == "" || !ok || v == "" || set.Changed(f.name) {
			continue
		}
		if err := f.value(c.opts).Set(v); err != nil {
			return usagef("%s=%q: %s", f.env, v, err)
		}
	}
	return nil
}

// unknown is the error for no command, or one that is not in the table.
func (c *call) unknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		if !c.term.json {
			c.help(cmd, c.term.err)
		}
		return usagef("a command is missing")
	}
	cmd.SuggestionsMinimumDistance = min(2, len(args[0])/2)
	err := usagef("%q is no command of %s", args[0], cmd.CommandPath())
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		return advise(err, "did you mean: %s", strings.Join(like, ", "))
	}
	return advise(err, "see: %s --help", cmd.CommandPath())
}

func runHelp(_ context.Context, c *call, args []string) error {
	cmd, rest, err := c.root.Find(args)
	if err != nil || len(rest) > 0 {
		return c.unknown(cmd, rest)
	}
	c.help(cmd, c.term.out)
	return nil
}
