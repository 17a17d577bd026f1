package retention

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"db1/root", "db1/root", true},
		{"db1/root", "db1/roots", false},
		{"db1/*", "db1/vg0/root", true},
		{"db1/*", "db1/", true},
		{"db1/*", "db12/root", false},
		{"*", "anything/at/all", true},
		{"*/root", "db1/root", true},
		{"*/root", "db1/root2", false},
		{"db*/ro*t", "db1/root", true},
		{"a*a", "a", false}, // one letter is not two
		{"a*a", "aa", true},
		{"*b*b*", "abxb", true},
		{"*b*b*", "ab", false},
		{"", "a", false},
		{"**", "a", true},
		{"DB1/*", "db1/root", false},
	} {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("%q of %q: got %v", c.pattern, c.name, got)
		}
	}
}

// history returns n images, a day apart, the newest today.
func daily(n int, now time.Time, tags ...string) []Item {
	items := make([]Item, n)
	for i := range items {
		items[i] = Item{ID: string(rune('a'+i)) + "0000000", Seq: uint64(i + 1), Time: now.AddDate(0, 0, i-n), Complete: true, Tags: tags}
	}
	return items
}

func keeps(verdicts []Verdict) string {
	var b strings.Builder
	for _, v := range verdicts {
		if v.Keep {
			b.WriteByte(v.ID[0])
		}
	}
	return b.String()
}

func TestEachImageIsJudgedByTheFirstRuleForIt(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	items := daily(8, now)
	items[0].Tags = []string{"x", "release"}
	items[2].Tags = []string{"release"}
	items[3].Tags = []string{"try"}
	items[4].Tags = []string{"try"}
	rules := []Rule{
		{Name: "releases", Tags: []string{"release"}, All: true},
		{Name: "tries", Tags: []string{"try"}, Volumes: []string{"db*"}, Policy: Policy{Last: 1}},
		{Name: "other", Volumes: []string{"web*"}, Policy: Policy{Last: 1}},
		{Name: "rest", Policy: Policy{Last: 2}},
	}
	verdicts, err := ApplyRules(rules, "db1/root", items, now, time.UTC)
	if err != nil || keeps(verdicts) != "aceg"+"h" {
		t.Errorf("kept %q, %v; want a and c of releases, e of tries, g and h of the rest", keeps(verdicts), err)
	}
	for i, name := range []string{"releases", "rest", "releases", "tries", "tries", "rest", "rest", "rest"} {
		if !strings.HasPrefix(verdicts[i].Reasons[0], "policy "+name+": ") {
			t.Errorf("image %s: %q, want policy %s", verdicts[i].ID, verdicts[i].Reasons, name)
		}
	}
}

func TestImagesThatNoRuleIsForAreKept(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	verdicts, err := ApplyRules([]Rule{{Name: "a", Volumes: []string{"web*"}, Policy: Policy{Last: 1}}}, "db1/root", daily(4, now), now, time.UTC)
	if err != nil || keeps(verdicts) != "abcd" || verdicts[0].Reasons[0] != "no policy is for it" {
		t.Errorf("%+v, %v", verdicts, err)
	}
	if _, err := ApplyRules(nil, "db1/root", daily(4, now), now, time.UTC); !errors.Is(err, ErrNoRule) {
		t.Errorf("no rule at all: %v", err)
	}
	// A rule that keeps nothing stops all, also where another one applies.
	if v, err := ApplyRules([]Rule{{Name: "a"}}, "db1/root", daily(4, now), now, time.UTC); !errors.Is(err, ErrNoRule) {
		t.Errorf("an empty rule: %+v, %v", v, err)
	}
}

func TestNewestCompleteAndVerifiedAreKeptUnderAnyRules(t *testing.T) {
	// D23.
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	items := daily(6, now)
	items[1].Verified = true
	items[4].Complete, items[5].Complete = false, false
	items[2].Pinned = "a reason"
	verdicts, err := ApplyRules([]Rule{{Policy: Policy{Last: 1}}}, "db1/root", items, now, time.UTC)
	if err != nil || keeps(verdicts) != "bcdf" {
		t.Errorf("kept %q, %v; want bcdf", keeps(verdicts), err)
	}
}
