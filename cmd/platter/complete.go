package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completionTime bounds how long a shell waits for names from a repository.
const completionTime = 3 * time.Second

func runCompletion(_ context.Context, c *call, args []string) error {
	var script strings.Builder
	var err error
	switch args[0] {
	case "bash":
		err = c.root.GenBashCompletionV2(&script, true)
	case "zsh":
		err = c.root.GenZshCompletion(&script)
	case "fish":
		err = c.root.GenFishCompletion(&script, true)
	default:
		return usagef("completion: %q is no shell that is known: want bash, zsh or fish", args[0])
	}
	if err != nil {
		return fmt.Errorf("completion %s: %w", args[0], err)
	}
	_, err = io.WriteString(c.term.out, script.String())
	return err
}

// complete lists what a shell may offer in place of the next argument. It
// never fails aloud: a shell shows nothing then.
func (c *call) complete(cmd *cobra.Command, row command, args []string) ([]string, cobra.ShellCompDirective) {
	words := strings.Fields(strings.NewReplacer("[", "", "]", "", "...", "").Replace(row.args))
	if len(words) == 0 || len(args) >= len(words) && !strings.Contains(row.args, "...") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	switch words[min(len(args), len(words)-1)] {
	case "DEVICE", "TARGET", "FILE":
		return nil, cobra.ShellCompDirectiveDefault
	case "SHELL":
		return []string{"bash", "zsh", "fish"}, cobra.ShellCompDirectiveNoFileComp
	case "NAME", "ALERT":
		return nil, cobra.ShellCompDirectiveNoFileComp
	case "COMMAND":
		return commandNames(), cobra.ShellCompDirectiveNoFileComp
	case "IMAGE":
		return append(c.volumes(cmd), "latest"), cobra.ShellCompDirectiveNoFileComp
	}
	return c.volumes(cmd), cobra.ShellCompDirectiveNoFileComp
}

func commandNames() []string {
	var names []string
	for _, row := range commands() {
		names = append(names, row.name)
	}
	return names
}

// volumes are the names of the repository's volumes, none where it cannot be
// read.
func (c *call) volumes(cmd *cobra.Command) []string {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	if c.fromEnvironment(cmd.Flags(), globalFlags()) != nil {
		return nil
	}
	c.term.asks = false
	r, err := c.openRepository(ctx)
	if err != nil {
		return nil
	}
	defer r.Store.Close()
	var names []string
	err = r.Manifests(ctx, func(name string) error {
		m, err := r.Manifest(ctx, name)
		if err == nil {
			names = append(names, clean(m.Volume))
		}
		return ctx.Err()
	})
	if err != nil {
		return nil
	}
	slices.Sort(names)
	return slices.Compact(names)
}
