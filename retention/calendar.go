package retention

import (
	"fmt"
	"slices"
	"time"
)

// A calendar is a rule that keeps one image for each of so many buckets.
type calendar struct {
	name, unit string
	places     int
	bucket     func(local time.Time) bucket
}

// A bucket is an hour, day, week, month or year of the local calendar. Buckets
// of one rule compare in the order of the calendar.
type bucket struct {
	order [5]int
	name  string
}

func (p Policy) calendars() []calendar {
	return []calendar{
		{"hourly", "hour", p.Hourly, hourOf},
		{"daily", "day", p.Daily, dayOf},
		{"weekly", "week", p.Weekly, weekOf},
		{"monthly", "month", p.Monthly, monthOf},
		{"yearly", "year", p.Yearly, yearOf},
	}
}

// hourOf tells the two hours of one name apart that there are when clocks go
// back: the earlier has the greater offset from UTC.
func hourOf(t time.Time) bucket {
	_, offset := t.Zone()
	return bucket{
		[5]int{t.Year(), int(t.Month()), t.Day(), t.Hour(), -offset},
		t.Format("2006-01-02 15:00 -07:00"),
	}
}

func dayOf(t time.Time) bucket {
	return bucket{[5]int{t.Year(), int(t.Month()), t.Day()}, t.Format(time.DateOnly)}
}

// weekOf goes by the week's own year, which differs from the calendar's for up
// to three days around New Year.
func weekOf(t time.Time) bucket {
	year, week := t.ISOWeek()
	return bucket{[5]int{year, week}, fmt.Sprintf("%04d-W%02d", year, week)}
}

func monthOf(t time.Time) bucket {
	return bucket{[5]int{t.Year(), int(t.Month())}, t.Format("2006-01")}
}

func yearOf(t time.Time) bucket {
	return bucket{[5]int{t.Year()}, t.Format("2006")}
}

// A group is the images of one bucket, newest first.
type group struct {
	bucket
	members []*entry
	// costs is whether the bucket takes a place: some image in it has a date
	// that can be believed.
	costs bool
}

// span names as many hours, days, … as the rule has places.
func (c calendar) span() string {
	if c.places == 1 {
		return "one " + c.unit
	}
	return fmt.Sprintf("%d %ss", c.places, c.unit)
}

func (h history) keepCalendar(rule calendar, zone *time.Location) {
	places := rule.places
	for _, g := range h.groups(rule, zone) {
		name := rule.name + " " + g.name
		if places == 0 {
			for _, e := range g.members {
				e.miss("%s is before the %s kept", name, rule.span())
			}
			continue
		}
		g.keep(name)
		if g.costs {
			places--
		}
	}
}

// keep keeps the newest image of the group, and each older one for which no
// newer image is as good.
func (g *group) keep(name string) {
	newest := g.members[0]
	newest.keep("%s", name)
	kept := []*entry{newest} // at most four
	for _, e := range g.members[1:] {
		i := slices.IndexFunc(kept, e.yieldsTo)
		switch {
		case i >= 0:
			e.miss("newer image %s fills %s", short(kept[i].ID), name)
			continue
		case newest.witness != nil && e.witness == nil:
			e.keep("%s, as the date of image %s is wrong", name, short(newest.ID))
		default:
			e.keep("%s, as image %s is incomplete", name, short(newest.ID))
		}
		kept = append(kept, e)
	}
}

// yieldsTo reports whether a newer image of the same bucket takes the place of
// e: it has to be as complete, and as much in order.
func (e *entry) yieldsTo(newer *entry) bool {
	return (newer.Complete || !e.Complete) && (newer.witness == nil || e.witness != nil)
}

// groups sorts the images that are not of the future into buckets and returns
// those, the latest of the calendar first.
func (h history) groups(rule calendar, zone *time.Location) []*group {
	byBucket := make(map[bucket]*group)
	var all []*group
	for _, e := range h {
		if e.future {
			continue
		}
		b := rule.bucket(e.Time.In(zone))
		g := byBucket[b]
		if g == nil {
			g = &group{bucket: b}
			byBucket[b] = g
			all = append(all, g)
		}
		g.members = append(g.members, e)
		g.costs = g.costs || e.witness == nil
	}
	slices.SortFunc(all, func(a, b *group) int { return slices.Compare(b.order[:], a.order[:]) })
	return all
}
