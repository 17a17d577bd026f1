package config

import (
	"path/filepath"
)

// A Repository is one that jobs may name, and what opens it. Of the paths none
// is looked at here.
type Repository struct {
	Name     string
	Location string // as with --repo
	Catalog  string // a directory; "" for the one of the repository
	// Environment are the variables that open it, in place of all of the same
	// kind that the agent itself was given.
	Environment []string
	// EnvironmentFile holds more of them, NAME=VALUE in a line; "" for none.
	EnvironmentFile string
}

// repository is a table [repository.NAME].
type repository struct {
	Location        string `toml:"location"`
	Catalog         string `toml:"catalog"`
	PasswordFile    string `toml:"password-file"`
	PasswordCommand string `toml:"password-command"`
	KeyFile         string `toml:"key-file"`
	IdentityFile    string `toml:"identity-file"`
	EnvironmentFile string `toml:"environment-file"`
}

func (r *repository) repository(f *file, name string) (out Repository, problems []*Problem) {
	out = Repository{Name: name, Location: r.Location, Catalog: r.Catalog, EnvironmentFile: r.EnvironmentFile}
	table := []string{"repository", name}
	if r.Location == "" {
		problems = append(problems, f.problem(table, "repository %s: it has no location", name))
	}
	for _, v := range []struct{ key, path string }{
		{"catalog", r.Catalog},
		{"password-file", r.PasswordFile},
		{"key-file", r.KeyFile},
		{"identity-file", r.IdentityFile},
		{"environment-file", r.EnvironmentFile},
	} {
		if v.path != "" && !filepath.IsAbs(v.path) {
			problems = append(problems, f.problem(append(table[:2:2], v.key), "repository.%s.%s: want a path from the root, not %q", name, v.key, v.path))
		}
	}
	if r.PasswordFile != "" && r.PasswordCommand != "" {
		problems = append(problems, f.problem(append(table[:2:2], "password-command"), "repository %s: a password comes from a file or from a command, not from both", name))
	}
	for _, v := range []struct{ name, value string }{
		{"PLATTER_PASSWORD_FILE", r.PasswordFile},
		{"PLATTER_PASSWORD_COMMAND", r.PasswordCommand},
		{"PLATTER_KEY_FILE", r.KeyFile},
		{"PLATTER_IDENTITY_FILE", r.IdentityFile},
	} {
		if v.value != "" {
			out.Environment = append(out.Environment, v.name+"="+v.value)
		}
	}
	return out, problems
}
