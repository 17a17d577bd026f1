// Package config reads what a machine is told to keep and to do: platter.toml,
// and whatever lies beside it in conf.d.
//
// It is strict. A key that nobody knows, a value that cannot be meant and a
// policy without a rule are refused, each with its file, line and column.
// Nothing but these files is read, and nothing is written.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"platter/retention"
)

// A Config is what all files say together.
type Config struct {
	Files []string // that were read, in order
	// Policies are in the order of the files and, within one, as they stand
	// there: of those that match an image the first one counts.
	Policies []retention.Rule

	Agent        Agent
	Repositories []Repository // in the order of the files
	Jobs         []*Job       // likewise
	// Alerts are rules in the order of the files: of those that match a volume
	// the first one counts.
	Alerts    []Alert
	Notifiers []Notifier
	Metrics   Metrics
}

// maxFile bounds a file in bytes.
const maxFile = 1 << 20

// Load reads path and, in the order of their names, the files conf.d/*.toml
// beside it. That a file is not there is no error as long as another one is;
// else the error wraps fs.ErrNotExist. Problems of all files come joined, each
// a *Problem.
func Load(path string) (*Config, error) {
	names, err := files(path)
	if err != nil {
		return nil, err
	}
	c := new(Config)
	var problems []error
	where := map[string]string{} // file of each table
	for _, name := range names {
		text, err := read(name)
		if err != nil {
			return nil, err
		}
		f, err := parse(name, text)
		problems = append(problems, err)
		if f == nil {
			continue
		}
		for _, table := range f.tables {
			if other, twice := where[table.String()]; twice {
				problems = append(problems, f.problem(table, "%s has a table [%s] already", other, table))
			}
			where[table.String()] = name
		}
		c.Files = append(c.Files, name)
		problems = append(problems, c.add(f))
	}
	problems = append(problems, c.join()...)
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return c, nil
}

// add takes over what a file says.
func (c *Config) add(f *file) (problem error) {
	c.Policies = append(c.Policies, f.policies...)
	c.Repositories = append(c.Repositories, f.repos...)
	c.Jobs = append(c.Jobs, f.jobs...)
	c.Alerts = append(c.Alerts, f.alerts...)
	c.Notifiers = append(c.Notifiers, f.notifiers...)
	if f.metrics != (Metrics{}) {
		c.Metrics = f.metrics
	}
	if f.agent != nil {
		c.Agent, problem = f.agent.settings(f)
	}
	return problem
}

// files returns the names of the files there are.
func files(path string) (names []string, err error) {
	_, missing := os.Stat(path)
	if missing == nil {
		names = append(names, path)
	} else if !errors.Is(missing, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the config: %w", missing)
	}
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(path), "conf.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the config: %w", err)
	}
	for _, e := range entries { // sorted by name
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, filepath.Join(filepath.Dir(path), "conf.d", e.Name()))
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("read the config: %w", missing)
	}
	return names, nil
}

func read(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", fmt.Errorf("read the config: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return "", fmt.Errorf("read the config: %s: want a file of at most %d bytes", name, maxFile)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("read the config: %w", err)
	}
	return string(text), nil
}

// A Problem is what is wrong with a config, and where.
type Problem struct {
	File         string
	Line, Column int // from 1
	Text         string
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
}

// sortProblems puts those of one file in the order of its lines.
func sortProblems(list []*Problem) []error {
	slices.SortStableFunc(list, func(a, b *Problem) int { return a.Line - b.Line })
	errs := make([]error, len(list))
	for i, p := range list {
		errs[i] = p
	}
	return errs
}
