package child

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"platter/internal/agent"
	"platter/internal/agent/owned"
)

// secrets begin the names of variables that open a repository. A job whose
// repository has its own gets none of the agent's.
var secrets = []string{"PLATTER_PASSWORD", "PLATTER_KEY_FILE", "PLATTER_IDENTITY_FILE"}

// environment is what the run of a task gets.
func (r *Runner) environment(t agent.Task) ([]string, error) {
	env := slices.Clone(r.Environment)
	if t.Config != "" {
		env = set(env, "PLATTER_CONFIG", t.Config)
	}
	if !agent.NeedsCatalog(t.Job.Kind) {
		env = set(env, "PLATTER_CATALOG", r.Absent)
	}
	if t.Repository == nil {
		return env, nil
	}
	env = set(env, "PLATTER_REPOSITORY", t.Repository.Location)
	if agent.NeedsCatalog(t.Job.Kind) {
		env = set(env, "PLATTER_CATALOG", t.Repository.Catalog)
	}
	if len(t.Repository.Environment) > 0 {
		env = slices.DeleteFunc(env, func(v string) bool {
			return slices.ContainsFunc(secrets, func(s string) bool { return strings.HasPrefix(v, s) })
		})
	}
	for _, v := range t.Repository.Environment {
		name, value, _ := strings.Cut(v, "=")
		env = set(env, name, value)
	}
	if t.Repository.EnvironmentFile == "" {
		return env, nil
	}
	return fromFile(env, t.Repository.EnvironmentFile)
}

// set gives a variable a value, or takes it away if that is empty.
func set(env []string, name, value string) []string {
	env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	if value == "" {
		return env
	}
	return append(env, name+"="+value)
}

const maxFile = 1 << 20

// fromFile adds the lines NAME=VALUE of a file. Empty lines and those that
// begin with # are passed over; quotes around a value are taken off.
func fromFile(env []string, path string) ([]string, error) {
	real, err := owned.CheckSecret(path)
	if err != nil {
		return nil, fmt.Errorf("environment-file: %w", err)
	}
	b, err := os.ReadFile(real)
	if err != nil {
		return nil, fmt.Errorf("environment-file: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("environment-file %s: want at most %d bytes", path, maxFile)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsRune(value, 0) {
			return nil, fmt.Errorf("environment-file %s:%d: want NAME=VALUE", path, n)
		}
		if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		env = set(env, name, value)
	}
	return env, nil
}
