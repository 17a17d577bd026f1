package retention

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// dated returns complete images with these dates, oldest first, named a, b, ….
func dated(t *testing.T, times ...string) (images []Item) {
	t.Helper()
	for i, s := range times {
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, Item{ID: string(rune('a' + i)), Seq: uint64(i + 1), Time: at, Complete: true})
	}
	return images
}

// report writes the verdicts, one a line: + or -, ID, reasons.
func report(t *testing.T, p Policy, images []Item, now time.Time, z *time.Location) string {
	t.Helper()
	verdicts, err := Apply(p, images, now, z)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, v := range verdicts {
		sign := "-"
		if v.Keep {
			sign = "+"
		}
		lines = append(lines, fmt.Sprintf("%s %s: %s", sign, v.ID, strings.Join(v.Reasons, " | ")))
	}
	return strings.Join(lines, "\n")
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if want = strings.ReplaceAll(strings.TrimSpace(want), "\t", ""); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

var late = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func TestBucketsOfTheLocalCalendar(t *testing.T) {
	for _, c := range []struct {
		name, zone string
		policy     Policy
		times      []string
		want       string
	}{
		{
			"the hour that comes twice is two hours", "Europe/Berlin",
			Policy{Hourly: 2},
			[]string{"2026-10-25T01:59:59+02:00", "2026-10-25T02:10:00+02:00", "2026-10-25T02:10:00+01:00", "2026-10-25T02:50:00+01:00"},
			`
			- a: no rule keeps it: hourly 2026-10-25 01:00 +02:00 is before the 2 hours kept
			+ b: hourly 2026-10-25 02:00 +02:00
			- c: no rule keeps it: newer image d fills hourly 2026-10-25 02:00 +01:00
			+ d: newest complete image | hourly 2026-10-25 02:00 +01:00`,
		},
		{
			"the hour that is left out takes no place", "America/New_York",
			Policy{Hourly: 2},
			[]string{"2026-03-08T01:30:00-05:00", "2026-03-08T03:00:00-04:00"},
			`
			+ a: hourly 2026-03-08 01:00 -05:00
			+ b: newest complete image | hourly 2026-03-08 03:00 -04:00`,
		},
		{
			"half an hour that comes twice", "Australia/Lord_Howe",
			Policy{Hourly: 2},
			[]string{"2026-04-05T01:40:00+11:00", "2026-04-05T01:40:00+10:30", "2026-04-05T02:00:00+10:30"},
			`
			- a: no rule keeps it: hourly 2026-04-05 01:00 +11:00 is before the 2 hours kept
			+ b: hourly 2026-04-05 01:00 +10:30
			+ c: newest complete image | hourly 2026-04-05 02:00 +10:30`,
		},
		{
			"a day of 25 hours is one day", "Europe/Berlin",
			Policy{Daily: 2},
			[]string{"2026-10-24T23:59:59+02:00", "2026-10-25T00:00:00+02:00", "2026-10-25T23:59:59+01:00"},
			`
			+ a: daily 2026-10-24
			- b: no rule keeps it: newer image c fills daily 2026-10-25
			+ c: newest complete image | daily 2026-10-25`,
		},
		{
			"a day of 23 hours is one day", "America/New_York",
			Policy{Daily: 2},
			[]string{"2026-03-07T23:59:59-05:00", "2026-03-08T00:00:00-05:00", "2026-03-08T23:59:59-04:00", "2026-03-09T00:00:00-04:00"},
			`
			- a: no rule keeps it: daily 2026-03-07 is before the 2 days kept
			- b: no rule keeps it: newer image c fills daily 2026-03-08
			+ c: daily 2026-03-08
			+ d: newest complete image | daily 2026-03-09`,
		},
		{
			"the zone decides the day", "America/New_York",
			Policy{Daily: 1},
			[]string{"2026-06-02T03:00:00Z", "2026-06-02T03:59:59Z", "2026-06-02T04:00:00Z"},
			`
			- a: no rule keeps it: daily 2026-06-01 is before the one day kept
			- b: no rule keeps it: daily 2026-06-01 is before the one day kept
			+ c: newest complete image | daily 2026-06-02`,
		},
		{
			"week 53 goes on into January", "Europe/Berlin",
			Policy{Weekly: 3},
			[]string{"2026-12-27T12:00:00+01:00", "2026-12-28T12:00:00+01:00", "2027-01-03T23:59:59+01:00", "2027-01-04T00:00:00+01:00"},
			`
			+ a: weekly 2026-W52
			- b: no rule keeps it: newer image c fills weekly 2026-W53
			+ c: weekly 2026-W53
			+ d: newest complete image | weekly 2027-W01`,
		},
		{
			"week 1 begins in December", "UTC",
			Policy{Weekly: 1, Yearly: 2},
			[]string{"2024-12-30T12:00:00Z", "2025-01-01T12:00:00Z"},
			`
			+ a: yearly 2024
			+ b: newest complete image | weekly 2025-W01 | yearly 2025`,
		},
		{
			"the leap day is a day of February", "UTC",
			Policy{Daily: 2, Monthly: 2},
			[]string{"2028-02-28T12:00:00Z", "2028-02-29T12:00:00Z", "2028-03-01T12:00:00Z"},
			`
			- a: no rule keeps it: daily 2028-02-28 is before the 2 days kept; newer image b fills monthly 2028-02
			+ b: daily 2028-02-29 | monthly 2028-02
			+ c: newest complete image | daily 2028-03-01 | monthly 2028-03`,
		},
		{
			"days without images take no place", "UTC",
			Policy{Daily: 2},
			[]string{"2026-01-01T12:00:00Z", "2026-05-01T12:00:00Z", "2026-11-01T12:00:00Z"},
			`
			- a: no rule keeps it: daily 2026-01-01 is before the 2 days kept
			+ b: daily 2026-05-01
			+ c: newest complete image | daily 2026-11-01`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			same(t, report(t, c.policy, dated(t, c.times...), late, zone(t, c.zone)), c.want)
		})
	}
}

func TestLastCountsByNumber(t *testing.T) {
	images := dated(t, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z")
	slices.Reverse(images)
	for n, want := range map[int]string{
		1: "+ c: newest complete image | last 1 of 1\n- b: no rule keeps it: not one of the last 1\n- a: no rule keeps it: not one of the last 1",
		2: "+ c: newest complete image | last 1 of 2\n+ b: last 2 of 2\n- a: no rule keeps it: not one of the last 2",
		3: "+ c: newest complete image | last 1 of 3\n+ b: last 2 of 3\n+ a: last 3 of 3",
		4: "+ c: newest complete image | last 1 of 4\n+ b: last 2 of 4\n+ a: last 3 of 4",
	} {
		same(t, report(t, Policy{Last: n}, images, late, time.UTC), want)
	}
}

// A prune years late drops what a prune in time would have dropped, no more.
func TestWithinCountsFromTheLatestImage(t *testing.T) {
	images := dated(t, "2026-01-01T11:59:59Z", "2026-01-01T12:00:00Z", "2026-01-31T12:00:00Z")
	same(t, report(t, Policy{Within: 30 * day}, images, late, time.UTC), `
		- a: no rule keeps it: not within 30d
		+ b: within 30d
		+ c: newest complete image | within 30d`)
}

func TestNewestCompleteAndVerifiedImagesStay(t *testing.T) {
	images := dated(t, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z")
	images[0].Pinned = "before the move"
	images[1].Verified = true
	images[3].Complete = false
	same(t, report(t, Policy{Last: 1}, images, late, time.UTC), `
		+ a: pinned: before the move
		+ b: newest verified image
		+ c: newest complete image
		+ d: last 1 of 1`)
}

func TestIncompleteImageTakesNoPlaceFromACompleteOne(t *testing.T) {
	images := dated(t, "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z", "2026-01-02T00:00:00Z")
	images[2].Complete = false
	same(t, report(t, Policy{Daily: 2}, images, late, time.UTC), `
		- a: no rule keeps it: newer image b fills daily 2026-01-01
		+ b: daily 2026-01-01, as image c is incomplete
		+ c: daily 2026-01-01
		+ d: newest complete image | daily 2026-01-02`)
}

func TestImageOfTheFutureIsKeptAndTakesNoPlace(t *testing.T) {
	now := time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
	images := dated(t, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:05:00Z", "2026-01-03T00:05:01Z")
	same(t, report(t, Policy{Last: 1, Daily: 2, Within: time.Hour}, images, now, time.UTC), `
		- a: no rule keeps it: not one of the last 1; not within 1h; daily 2026-01-01 is before the 2 days kept
		+ b: daily 2026-01-02
		+ c: newest complete image | last 1 of 1 | within 1h | daily 2026-01-03
		+ d: dated in the future, 2026-01-03T00:05:01Z: a clock was or is wrong`)
}

// Whoever writes an image for each of the last days, each dated as the last
// thing that happened on it, does not get rid of what was there.
func TestImagesDatedBackTakeNoPlace(t *testing.T) {
	images := dated(t, "2026-01-01T20:00:00Z", "2026-01-02T20:00:00Z", "2026-01-03T20:00:00Z",
		"2026-01-01T23:00:00Z", "2026-01-02T23:00:00Z", "2026-01-02T23:30:00Z")
	same(t, report(t, Policy{Daily: 2}, images, late, time.UTC), `
		- a: no rule keeps it: daily 2026-01-01 is before the 2 days kept
		+ b: daily 2026-01-02, as the date of image f is wrong
		+ c: daily 2026-01-03
		- d: no rule keeps it: daily 2026-01-01 is before the 2 days kept | dated 2026-01-01T23:00:00Z, before the older image c: a clock was wrong
		- e: no rule keeps it: newer image f fills daily 2026-01-02 | dated 2026-01-02T23:00:00Z, before the older image c: a clock was wrong
		+ f: newest complete image | daily 2026-01-02 | dated 2026-01-02T23:30:00Z, before the older image c: a clock was wrong`)
}

// A machine whose clock fell back to 1970 still has its images of this month.
func TestWithinKeepsWhatWasMadeAfterAYoungImage(t *testing.T) {
	images := dated(t, "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "1970-01-01T00:00:10Z", "1970-01-01T00:00:12Z")
	same(t, report(t, Policy{Within: day}, images, late, time.UTC), `
		- a: no rule keeps it: not within 1d
		+ b: within 1d
		+ c: within 1d, as it was made after image b | dated 1970-01-01T00:00:10Z, before the older image b: a clock was wrong
		+ d: newest complete image | within 1d, as it was made after image b | dated 1970-01-01T00:00:12Z, before the older image b: a clock was wrong`)
}

func TestWitnessOfAWrongDateStays(t *testing.T) {
	images := dated(t, "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", "2026-01-01T00:00:00Z")
	same(t, report(t, Policy{Last: 1}, images, late, time.UTC), `
		- a: no rule keeps it: not one of the last 1
		+ b: shows that the date of image c is wrong
		+ c: newest complete image | last 1 of 1 | dated 2026-01-01T00:00:00Z, before the older image b: a clock was wrong`)
}

func TestNoImagesNoVerdicts(t *testing.T) {
	verdicts, err := Apply(Policy{Last: 1}, nil, late, time.UTC)
	if err != nil || len(verdicts) != 0 {
		t.Fatalf("got %v, %v", verdicts, err)
	}
}

func TestApplyRefusesWhatItCannotMean(t *testing.T) {
	twins := dated(t, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
	twins[1].Seq = twins[0].Seq
	for _, c := range []struct {
		policy Policy
		images []Item
		want   string
	}{
		{Policy{}, nil, "no rule says what to keep"},
		{Policy{Last: -1, Daily: 1}, nil, "keep last -1: want 0 or more"},
		{Policy{Last: 1, Weekly: -2}, nil, "keep weekly -2: want 0 or more"},
		{Policy{Last: 1, Within: -1}, nil, "keep within -1ns: want 0 or more"},
		{Policy{Last: 1}, twins, "images b and a are both number 1 of their volume"},
	} {
		_, err := Apply(c.policy, c.images, late, time.UTC)
		if err == nil || err.Error() != c.want && err.Error() != strings.Replace(c.want, "b and a", "a and b", 1) {
			t.Errorf("%+v: got %v, want %s", c.policy, err, c.want)
		}
	}
}

func TestParseWithin(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"1h": time.Hour, "12h": 12 * time.Hour, "30d": 30 * day, "2w": 14 * day, "1y": 365 * day,
		"1y6w2d3h": 365*day + 44*day + 3*time.Hour, "0d1h": time.Hour, "292y": 292 * 365 * day,
	} {
		if got, err := ParseWithin(s); err != nil || got != want {
			t.Errorf("%q: got %v %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "0", "0d", "30", "d", "-1d", "+1d", "1.5d", "1 d", "1m", "5s", "1D", "3d4", "293y", "292y292y",
		"9223372036854775808h", "2562048h", "١d", "1д",
	} {
		if got, err := ParseWithin(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, got)
		}
	}
}

func TestFormatWithin(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 23 * time.Hour: "23h", day: "1d", 25 * time.Hour: "1d1h", 720 * time.Hour: "30d",
		90 * time.Minute: "1h30m0s", 0: "0s",
	} {
		if got := FormatWithin(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func FuzzParseWithin(f *testing.F) {
	f.Add("1y6w2d3h")
	f.Add("9223372036854775807h")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseWithin(s)
		if err == nil && d < time.Hour || err != nil && d != 0 {
			t.Fatalf("%q: got %v, %v", s, d, err)
		}
	})
}
