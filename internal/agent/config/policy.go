package config

import (
	"fmt"
	"time"

	"platter/retention"
)

// policy is a table [policy.NAME]: which images it is for, and what to keep of
// them.
type policy struct {
	Volumes []string `toml:"volumes"` // patterns, in which * stands for anything
	Tags    []string `toml:"tags"`    // any of them

	KeepAll     bool   `toml:"keep-all"`
	KeepLast    int    `toml:"keep-last"`
	KeepHourly  int    `toml:"keep-hourly"`
	KeepDaily   int    `toml:"keep-daily"`
	KeepWeekly  int    `toml:"keep-weekly"`
	KeepMonthly int    `toml:"keep-monthly"`
	KeepYearly  int    `toml:"keep-yearly"`
	KeepWithin  within `toml:"keep-within"`
}

// rule returns the policy as a rule, or what is wrong with it.
func (p *policy) rule(name string) (retention.Rule, string) {
	r := retention.Rule{Name: name, Volumes: p.Volumes, Tags: p.Tags, All: p.KeepAll, Policy: retention.Policy{
		Last: p.KeepLast, Hourly: p.KeepHourly, Daily: p.KeepDaily, Weekly: p.KeepWeekly, Monthly: p.KeepMonthly,
		Yearly: p.KeepYearly, Within: time.Duration(p.KeepWithin),
	}}
	if err := r.Check(); err != nil {
		return r, fmt.Sprintf("policy %s: %v", name, err)
	}
	return r, ""
}

// within is a span such as 30d.
type within time.Duration

func (w *within) UnmarshalText(text []byte) error {
	d, err := retention.ParseWithin(string(text))
	*w = within(d)
	return err
}
