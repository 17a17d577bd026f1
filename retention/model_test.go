package retention

import (
	"fmt"
	"time"
)

// The model decides every image for itself, straight from the definition,
// by looking at all others. It shares no code with the package.
type model struct {
	policy Policy
	images []Item
	now    time.Time
	zone   *time.Location
}

// kept returns the IDs of the images that the policy keeps.
func (m model) kept() map[string]bool {
	kept := make(map[string]bool)
	for _, i := range m.images {
		if m.byRule(i) {
			kept[i.ID] = true
		}
	}
	for _, i := range m.images {
		if w, ok := m.witness(i); ok && kept[i.ID] {
			kept[w.ID] = true
		}
	}
	return kept
}

func (m model) byRule(i Item) bool {
	if m.future(i) || i.Pinned != "" {
		return true
	}
	newer := func(is func(Item) bool) (n int) {
		for _, j := range m.images {
			if j.Seq > i.Seq && !m.future(j) && is(j) {
				n++
			}
		}
		return n
	}
	switch {
	case i.Complete && newer(func(j Item) bool { return j.Complete }) == 0,
		i.Verified && newer(func(j Item) bool { return j.Verified }) == 0,
		newer(func(Item) bool { return true }) < m.policy.Last,
		m.policy.Within > 0 && m.within(i):
		return true
	}
	for places, key := range map[*int]func(time.Time) string{
		&m.policy.Hourly: hourKey, &m.policy.Daily: dayKey, &m.policy.Weekly: weekKey,
		&m.policy.Monthly: monthKey, &m.policy.Yearly: yearKey,
	} {
		if m.inCalendar(i, *places, key) {
			return true
		}
	}
	return false
}

func (m model) future(i Item) bool { return i.Time.Sub(m.now) > 5*time.Minute }

// witness is the first of the latest-dated among older images, if dated after i.
func (m model) witness(i Item) (w Item, ok bool) {
	if m.future(i) {
		return w, false
	}
	for _, j := range m.images {
		if m.future(j) || j.Seq >= i.Seq || !j.Time.After(i.Time) {
			continue
		}
		// Of two with the same date the later one was the last to be in order.
		if !ok || j.Time.After(w.Time) || j.Time.Equal(w.Time) && j.Seq > w.Seq {
			w, ok = j, true
		}
	}
	return w, ok
}

func (m model) within(i Item) bool {
	for _, j := range m.images {
		if m.future(j) || j.Seq > i.Seq {
			continue
		}
		late := true
		for _, l := range m.images {
			if !m.future(l) && l.Time.Sub(j.Time) > m.policy.Within {
				late = false
			}
		}
		if late {
			return true
		}
	}
	return false
}

func (m model) inCalendar(i Item, places int, key func(time.Time) string) bool {
	of := func(j Item) string { return key(j.Time.In(m.zone)) }
	later := make(map[string]bool)
	beaten := false
	for _, j := range m.images {
		if m.future(j) {
			continue
		}
		if !m.wrong(j) && of(j) > of(i) {
			later[of(j)] = true
		}
		if of(j) == of(i) && j.Seq > i.Seq {
			worse := i.Complete && !j.Complete || m.wrong(j) && !m.wrong(i)
			beaten = beaten || !worse
		}
	}
	return len(later) < places && !beaten
}

func (m model) wrong(i Item) bool {
	_, wrong := m.witness(i)
	return wrong
}

// Keys sort as text in the order of the calendar, for years of four digits.

// hourKey goes by what UTC reads when the local hour begins or, for an hour
// that a change of clocks cuts, would have begun.
func hourKey(t time.Time) string {
	_, offset := t.Zone()
	into := time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second + time.Duration(t.Nanosecond())
	return fmt.Sprintf("%s %+06d", t.Add(-into).UTC().Format("2006-01-02T15:04:05"), offset)
}

func dayKey(t time.Time) string   { return t.Format("2006-01-02") }
func monthKey(t time.Time) string { return t.Format("2006-01") }
func yearKey(t time.Time) string  { return t.Format("2006") }

// weekKey is the date of the week's Thursday, which has the week's year.
func weekKey(t time.Time) string {
	thursday := t.AddDate(0, 0, 4-(int(t.Weekday())+6)%7-1)
	return thursday.Format("2006-01-02")
}
