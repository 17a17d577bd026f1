package config

import (
	"slices"
	"time"
)

// join checks what tables say of each other, whatever files they are in, and
// fills in what the agent's says for all.
func (c *Config) join() (problems []error) {
	if c.Agent.Zone == nil {
		c.Agent.AtOnce, c.Agent.Zone = defaultAtOnce, time.Local
	}
	for _, j := range c.Jobs {
		if j.Zone == nil {
			j.Zone = c.Agent.Zone
		}
		if j.Jitter == nil {
			j.Jitter = &c.Agent.Jitter
		}
		key := "repository"
		if j.Repository == "" {
			j.Repository, key = c.Agent.Repository, ""
		}
		if j.Repository != "" && c.Repository(j.Repository) == nil {
			problems = append(problems, j.at(key, "there is no table [repository.%s]", j.Repository))
		}
		if j.Kind == Prune && len(c.Policies) == 0 {
			problems = append(problems, j.at("", "there is no policy that says what to keep: add a table [policy.NAME]"))
		}
	}
	return problems
}

// Repository returns the one of a name, or nil.
func (c *Config) Repository(name string) *Repository {
	i := slices.IndexFunc(c.Repositories, func(r Repository) bool { return r.Name == name })
	if i < 0 {
		return nil
	}
	return &c.Repositories[i]
}
