// Package schedule says when a job is due: pure reckoning with calendars and
// time zones, in which the clock is an argument.
//
// Times of day are those of a wall clock. Where clocks go forward, a time that
// is not there is taken as long after the jump as it would have been after
// midnight: 02:30 becomes 03:30. Where they go back, a time that is there
// twice counts once, the first time. A schedule of every hour goes by elapsed
// time instead, and so does "every 4h".
package schedule

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/internal/quantity"
)

// A Schedule is a set of moments. The zero Schedule is empty. It can be
// compared only by Equal.
type Schedule struct {
	text  string
	every time.Duration // or
	rules []rule
}

// Parse reads one of
//
//	daily                      hourly, weekly, monthly, quarterly, yearly
//	daily 02:30                weekly Sun 03:00, monthly 04:00
//	Mon..Fri 02:30             Mon,Wed 12:00, Sat..Sun 0/6:00
//	*-*-01 03:00               *-*~01 for the last day of a month
//	*:0/15                     every quarter of an hour
//	every 4h
//	30 2 * * 1-5               as cron has it
//
// or several of them, with a semicolon between. A schedule that is never due
// is an error.
func Parse(text string) (Schedule, error) {
	s := Schedule{text: strings.Join(strings.Fields(text), " ")}
	parts := strings.Split(s.text, ";")
	for _, part := range parts {
		words := strings.Fields(part)
		switch {
		case len(words) == 0:
			return Schedule{}, fmt.Errorf("schedule %q: empty; want something like daily 02:30, Mon..Fri 22:00 or every 4h", text)
		case words[0] == "every":
			if len(parts) > 1 {
				return Schedule{}, fmt.Errorf("schedule %q: every stands alone", text)
			}
			every, err := parseEvery(words)
			s.every = every
			return s, err
		}
		parse := parseCalendar
		if len(words) == 5 || strings.HasPrefix(words[0], "@") {
			parse = parseCron
		}
		r, err := parse(words)
		if err != nil {
			return Schedule{}, fmt.Errorf("schedule %q: %w", part, err)
		}
		s.rules = append(s.rules, r)
	}
	if s.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), time.UTC).IsZero() {
		return Schedule{}, fmt.Errorf("schedule %q: there is no such day", text)
	}
	return s, nil
}

// UnmarshalText is Parse.
func (s *Schedule) UnmarshalText(text []byte) (err error) {
	*s, err = Parse(string(text))
	return err
}

// String returns what Parse was given.
func (s Schedule) String() string { return s.text }

// Equal reports whether two schedules were written the same way.
func (s Schedule) Equal(other Schedule) bool { return s.text == other.text }

// Empty reports whether it is never due.
func (s Schedule) Empty() bool { return s.every == 0 && len(s.rules) == 0 }

const (
	leastEvery = time.Minute
	mostEvery  = 366 * 24 * time.Hour
	// horizon is how far Next looks: a Friday that is a 29th of February comes
	// within 40 years.
	horizon = 45 * 366
)

func parseEvery(words []string) (time.Duration, error) {
	text := strings.Join(words[1:], "")
	d, err := quantity.ParseSpan(text)
	if err != nil || d < leastEvery || d > mostEvery {
		return 0, badEvery(text)
	}
	return d, nil
}

func badEvery(text string) error {
	return fmt.Errorf("every %q: want a length of time from 1m to 366d, as in 30m, 4h or 2d", text)
}

// Next returns the first moment after t at which it is due in a time zone, or
// zero if there is none.
func (s Schedule) Next(t time.Time, zone *time.Location) time.Time {
	t = t.Round(0).In(zone)
	if s.every > 0 {
		return s.nextEvery(t, zone)
	}
	var first time.Time
	for _, r := range s.rules {
		if n := r.next(t, zone); !n.IsZero() && (first.IsZero() || n.Before(first)) {
			first = n
		}
	}
	return first
}

// nextEvery counts from a midnight of the zone, a Monday, so that "every 4h"
// means the same times after each start of the agent.
func (s Schedule) nextEvery(t time.Time, zone *time.Location) time.Time {
	start := time.Date(2001, 1, 1, 0, 0, 0, 0, zone)
	n := t.Sub(start) / s.every
	if t.Before(start) {
		n = 0
		for back := start; back.After(t); back = back.Add(-s.every * 1000) {
			n -= 1000
		}
	}
	next := start.Add(n * s.every)
	for !next.After(t) {
		next = next.Add(s.every)
	}
	return next
}

// A rule is a set of days, and of times on each of them.
type rule struct {
	weekdays [7]bool
	months   [13]bool
	days     [32]bool
	fromEnd  [32]bool // 1 is the last day of a month
	// either: a day that fits is enough, or a weekday that does, as in cron
	// when both are given.
	either  bool
	hours   [24]bool
	minutes [60]bool
	hourly  bool // every hour: goes by elapsed time
}

// next looks from two days before on: a time that was not there that day may
// be to come yet, also where clocks went forward by a whole day.
func (r *rule) next(t time.Time, zone *time.Location) time.Time {
	year, month, day := t.Date()
	for i := range horizon {
		d := time.Date(year, month, day-2+i, 0, 0, 0, 0, time.UTC)
		if !r.onDay(d) {
			continue
		}
		if n := r.onDate(d, t, zone); !n.IsZero() {
			return n
		}
	}
	return time.Time{}
}

func (r *rule) onDay(d time.Time) bool {
	if !r.months[d.Month()] {
		return false
	}
	last := time.Date(d.Year(), d.Month()+1, 0, 0, 0, 0, 0, time.UTC).Day()
	date := r.days[d.Day()] || r.fromEnd[last-d.Day()+1]
	if r.either {
		return date || r.weekdays[d.Weekday()]
	}
	return date && r.weekdays[d.Weekday()]
}

// onDate returns the first moment after t of those that are due on a date. Two
// times of a day may come in the other order where clocks change; so all of
// them are looked at.
func (r *rule) onDate(d, t time.Time, zone *time.Location) (first time.Time) {
	for minute := 0; minute < 24*60; minute++ {
		wall := d.Add(time.Duration(minute) * time.Minute)
		switch {
		case !r.hours[minute/60]:
			minute += 59 - minute%60 // the hour ends
			continue
		case !r.minutes[minute%60] || wall.Add(farthest).Before(t):
			continue
		case !first.IsZero() && wall.Add(-farthest).After(first):
			return first
		}
		for _, n := range r.moments(wall, zone) {
			if n.After(t) && (first.IsZero() || n.Before(first)) {
				first = n
			}
		}
	}
	return first
}

// farthest is further than any zone is from UTC.
const farthest = 15 * time.Hour

func (r *rule) moments(wall time.Time, zone *time.Location) []time.Time {
	all := moments(wall, zone)
	if r.hourly {
		return all
	}
	return all[:1]
}

// moments returns when a wall clock in a zone shows a time, which is given as
// if it were UTC: once, twice where clocks go back, and where they go forward
// past it the moment that is as long after the jump.
func moments(wall time.Time, zone *time.Location) (list []time.Time) {
	var skipped time.Time
	for at := wall.Add(-farthest).In(zone); ; {
		_, offset := at.Zone()
		start, end := at.ZoneBounds()
		n := wall.Add(-time.Duration(offset) * time.Second).In(zone)
		late := !end.IsZero() && !n.Before(end)
		if !late && (start.IsZero() || !n.Before(start)) {
			list = append(list, n)
		}
		if late {
			skipped = n
		}
		if end.IsZero() || end.After(wall.Add(farthest)) {
			break
		}
		at = end.In(zone)
	}
	if len(list) == 0 {
		return []time.Time{skipped}
	}
	slices.SortFunc(list, time.Time.Compare)
	return list
}
