package retention

import (
	"errors"
	"slices"
	"strings"
	"time"
)

// A Rule says which images a policy is for.
type Rule struct {
	Name string // for reasons; may be empty where there is but one
	// Volumes are patterns of names, in which * stands for any characters,
	// slashes too. None means any volume.
	Volumes []string
	// Tags: an image needs one of them. None means any image.
	Tags   []string
	All    bool // keep all images, in place of Policy
	Policy Policy
}

// Check refuses a rule that cannot be meant.
func (r *Rule) Check() error {
	switch err := r.Policy.check(); {
	case slices.Contains(r.Volumes, ""):
		return errors.New("an empty pattern of volumes matches nothing")
	case slices.Contains(r.Tags, ""):
		return errors.New("an empty tag matches nothing")
	case r.All && !errors.Is(err, ErrNoRule):
		return errors.New("it keeps all, and says besides what to keep")
	case !r.All:
		return err
	}
	return nil
}

func (r *Rule) matches(volume string, tags []string) bool {
	if len(r.Tags) > 0 && !slices.ContainsFunc(tags, func(t string) bool { return slices.Contains(r.Tags, t) }) {
		return false
	}
	return len(r.Volumes) == 0 || slices.ContainsFunc(r.Volumes, func(p string) bool { return Match(p, volume) })
}

// Match reports whether a pattern is a whole name. A * in it stands for any
// characters, or none.
func Match(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	first, last := parts[0], parts[len(parts)-1]
	if len(parts) == 1 {
		return pattern == name
	}
	if !strings.HasPrefix(name, first) || !strings.HasSuffix(name[len(first):], last) {
		return false
	}
	name = name[len(first) : len(name)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		at := strings.Index(name, part)
		if at < 0 {
			return false
		}
		name = name[at+len(part):]
	}
	return true
}

// ApplyRules judges all images of a volume, each by the first rule that
// matches it, among those that the same rule is for. An image that no rule is
// for is kept. Errors are those of Apply.
func ApplyRules(rules []Rule, volume string, images []Item, now time.Time, zone *time.Location) ([]Verdict, error) {
	if len(rules) == 0 {
		return nil, ErrNoRule
	}
	verdicts := make([]Verdict, len(images))
	groups := make([][]int, len(rules))
	for i, item := range images {
		n := slices.IndexFunc(rules, func(r Rule) bool { return r.matches(volume, item.Tags) })
		if n < 0 {
			verdicts[i] = Verdict{Item: item, Keep: true, Reasons: []string{"no policy is for it"}}
		} else {
			groups[n] = append(groups[n], i)
		}
	}
	for n, group := range groups {
		judged, err := rules[n].judge(pick(images, group), now, zone)
		if err != nil {
			return nil, err
		}
		for i, v := range judged {
			verdicts[group[i]] = v
		}
	}
	return verdicts, nil
}

func pick(images []Item, group []int) []Item {
	list := make([]Item, len(group))
	for i, n := range group {
		list[i] = images[n]
	}
	return list
}

func (r *Rule) judge(images []Item, now time.Time, zone *time.Location) (verdicts []Verdict, err error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	if r.All {
		for _, item := range images {
			verdicts = append(verdicts, Verdict{Item: item, Keep: true, Reasons: []string{"keep all"}})
		}
	} else if verdicts, err = Apply(r.Policy, images, now, zone); err != nil {
		return nil, err
	}
	for i := range verdicts {
		if r.Name != "" {
			verdicts[i].Reasons[0] = "policy " + r.Name + ": " + verdicts[i].Reasons[0]
		}
	}
	return verdicts, nil
}
