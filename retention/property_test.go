package retention

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones below, whatever the machine has

	"pgregory.net/rapid"
)

// TestMain tries more than rapid's hundred cases, which are few for so many
// rules at once; -rapid.checks still decides.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "2000"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

var zones = []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "America/St_Johns"}

// moments are where calendars are odd: clocks going back and forth, New Year
// in weeks 53 and 1, a leap day, and a day that a country left out.
var moments = []string{
	"2026-10-25T00:30:00Z", "2026-11-01T05:30:00Z", "2026-04-04T14:45:00Z", "2026-03-29T00:59:59Z",
	"2026-12-31T23:00:00Z", "2020-12-31T12:00:00Z", "2024-02-29T12:00:00Z", "2011-12-30T10:00:00Z",
}

type question struct {
	policy Policy
	images []Item
	now    time.Time
	zone   *time.Location
}

func drawQuestion(t *rapid.T) question {
	zone, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
	if err != nil {
		t.Fatal(err)
	}
	start, err := time.Parse(time.RFC3339, rapid.SampledFrom(moments).Draw(t, "moment"))
	if err != nil {
		t.Fatal(err)
	}
	q := question{policy: drawPolicy(t), images: drawImages(t, start), zone: zone}
	q.now = start.Add(time.Duration(rapid.IntRange(-2, 400).Draw(t, "now")) * 6 * time.Hour)
	return q
}

func drawPolicy(t *rapid.T) Policy {
	n := func(name string) int { return rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3, 6}).Draw(t, name) }
	p := Policy{Last: n("last"), Hourly: n("hourly"), Daily: n("daily"), Weekly: n("weekly"), Monthly: n("monthly"), Yearly: n("yearly")}
	p.Within = time.Duration(rapid.SampledFrom([]int{0, 0, 0, 1, 20, 50, 1500}).Draw(t, "within")) * time.Hour
	if p == (Policy{}) {
		p.Daily = 1
	}
	return p
}

// drawImages draws a history whose clock mostly goes forward.
func drawImages(t *rapid.T, at time.Time) []Item {
	images := make([]Item, rapid.SampledFrom([]int{0, 1, 2, 3, 6, 12, 25}).Draw(t, "images"))
	bits := make([]int, 32) // of a number below 32, each as likely
	for i := range bits {
		bits[i] = i
	}
	step := rapid.SampledFrom([]time.Duration{7 * time.Minute, time.Hour, 9 * time.Hour, 5 * day, 40 * day}).Draw(t, "step")
	for i := range images {
		steps := rapid.SampledFrom([]int{0, 1, 1, 1, 1, 2, 3, 9, -1, -4}).Draw(t, "steps")
		at = at.Add(time.Duration(steps) * step)
		flags := rapid.SampledFrom(bits).Draw(t, "flags")
		images[i] = Item{
			ID: fmt.Sprintf("%08d", i+1), Seq: uint64(i + 1), Time: at,
			Complete: flags%4 != 0, Verified: flags%8 == 1,
		}
		if flags == 31 {
			images[i].Pinned = "before the upgrade"
		}
	}
	return rapid.Permutation(images).Draw(t, "order")
}

func (q question) ask(t *rapid.T) map[string]Verdict {
	verdicts, err := Apply(q.policy, q.images, q.now, q.zone)
	if err != nil {
		t.Fatalf("policy %+v: %v", q.policy, err)
	}
	byID := make(map[string]Verdict)
	for i, v := range verdicts {
		if !reflect.DeepEqual(v.Item, q.images[i]) {
			t.Fatalf("verdict %d is about %s, want %s", i, v.ID, q.images[i].ID)
		}
		byID[v.ID] = v
	}
	return byID
}

func TestApplyAgreesWithModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := drawQuestion(t)
		want := model(q).kept()
		for id, v := range q.ask(t) {
			if v.Keep != want[id] {
				t.Fatalf("%s of %s: got keep %v (%q), want %v", id, v.Time.In(q.zone), v.Keep, v.Reasons, want[id])
			}
		}
	})
}

func TestApplyTwiceDropsNothingMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := drawQuestion(t)
		var left []Item
		for _, v := range q.ask(t) {
			if v.Keep {
				left = append(left, v.Item)
			}
		}
		q.images = left
		for id, v := range q.ask(t) {
			if !v.Keep {
				t.Fatalf("%s was kept, then dropped: %q", id, v.Reasons)
			}
		}
	})
}

func TestLargerPolicyKeepsNoLess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := drawQuestion(t)
		before := q.ask(t)
		more := drawPolicy(t)
		for _, c := range []struct{ to, add *int }{
			{&q.policy.Last, &more.Last},
			{&q.policy.Hourly, &more.Hourly},
			{&q.policy.Daily, &more.Daily},
			{&q.policy.Weekly, &more.Weekly},
			{&q.policy.Monthly, &more.Monthly},
			{&q.policy.Yearly, &more.Yearly},
		} {
			*c.to += *c.add
		}
		q.policy.Within += more.Within
		for id, v := range q.ask(t) {
			if before[id].Keep && !v.Keep {
				t.Fatalf("%s was kept, dropped by the larger policy %+v: %q", id, q.policy, v.Reasons)
			}
		}
	})
}

// A writer who lies about the time gets no place of the calendar or of within
// that an image with a date to be believed has.
func TestWrongDatePushesNothingOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := drawQuestion(t)
		before := q.ask(t)
		var latest time.Time
		for _, i := range q.images {
			if !model(q).future(i) && i.Time.After(latest) {
				latest = i.Time
			}
		}
		liar := Item{ID: "liar", Seq: 1000, Complete: rapid.Bool().Draw(t, "complete")}
		if back := rapid.Bool().Draw(t, "back"); back && !latest.IsZero() {
			liar.Time = latest.Add(-time.Duration(rapid.IntRange(1, 2000).Draw(t, "by")) * time.Hour)
		} else {
			liar.Time = q.now.Add(5*time.Minute + 1)
		}
		q.images = append(q.images, liar)
		after := q.ask(t)
		for id, v := range before {
			for _, reason := range v.Reasons {
				if lost(reason, after[id].Reasons) {
					t.Fatalf("%s lost %q to %s, has %q", id, reason, liar.Time, after[id].Reasons)
				}
			}
		}
	})
}

// lost reports whether a rule no longer keeps an image with a date to be
// believed. Rules that go by number alone are not asked.
func lost(reason string, now []string) bool {
	word, _, _ := strings.Cut(reason, " ")
	switch word {
	case "within", "hourly", "daily", "weekly", "monthly", "yearly":
	default:
		return false
	}
	reason, _, _ = strings.Cut(reason, ",")
	for _, r := range append(now, "") {
		if strings.HasPrefix(r, reason) || strings.HasPrefix(r, "dated ") {
			return false
		}
	}
	return true
}

func TestSomethingIsAlwaysKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := drawQuestion(t)
		kept := 0
		for _, v := range q.ask(t) {
			if len(v.Reasons) == 0 {
				t.Fatalf("%s: no reason for keep %v", v.ID, v.Keep)
			}
			if v.Keep {
				kept++
			}
		}
		if len(q.images) > 0 && kept == 0 {
			t.Fatalf("policy %+v dropped all of %v", q.policy, q.images)
		}
	})
}

func TestWithinReadsWhatItWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(1, 292*365*24).Draw(t, "hours")) * time.Hour
		got, err := ParseWithin(FormatWithin(d))
		if err != nil || got != d {
			t.Fatalf("%s: got %v %v, want %v", FormatWithin(d), got, err, d)
		}
	})
}

func TestPolicyWithoutRuleIsRefused(t *testing.T) {
	if _, err := Apply(Policy{}, nil, time.Now(), time.UTC); !errors.Is(err, ErrNoRule) {
		t.Fatalf("got %v, want %v", err, ErrNoRule)
	}
}
