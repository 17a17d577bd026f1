package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// words are schedules by one word. Those of a week and longer may be followed
// by a day or a time that takes the place of theirs.
var words = map[string]string{
	"minutely": "*:*", "hourly": "*:00", "daily": "*-*-* 00:00", "weekly": "Mon *-*-* 00:00", "monthly": "*-*-01 00:00",
	"quarterly": "*-01,04,07,10-01 00:00", "yearly": "*-01-01 00:00", "annually": "*-01-01 00:00",
}

var weekdayNames = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}

var monthNames = []string{"", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"}

// parseCalendar reads [WORD] [WEEKDAYS] [DATE] [TIME].
func parseCalendar(fields []string) (r rule, err error) {
	weekdays, date, clock := "", "*-*-*", ""
	if long, ok := words[strings.ToLower(fields[0])]; ok {
		weekdays, date, clock = split(strings.Fields(long))
		fields = fields[1:]
	}
	days, dates, times := split(fields)
	if n := count(days, dates, times); n != len(fields) {
		return r, fmt.Errorf("cannot be read: want [WEEKDAYS] [DATE] [TIME], as in Mon..Fri *-*-01 02:30")
	}
	weekdays, date, clock = orElse(days, weekdays), orElse(dates, orElse(date, "*-*-*")), orElse(times, orElse(clock, "00:00"))
	if err := r.setWeekdays(weekdays); err != nil {
		return r, err
	}
	if err := r.setDate(date); err != nil {
		return r, err
	}
	return r, r.setClock(clock)
}

// split tells the fields of a calendar apart, whatever is missing.
func split(fields []string) (weekdays, date, clock string) {
	for _, f := range fields {
		switch {
		case strings.Contains(f, ":") && clock == "":
			clock = f
		case strings.ContainsAny(f, "-~") && date == "" && clock == "":
			date = f
		case !strings.ContainsAny(f, ":-~") && weekdays == "" && date == "" && clock == "":
			weekdays = f
		}
	}
	return weekdays, date, clock
}

func count(fields ...string) (n int) {
	for _, f := range fields {
		if f != "" {
			n++
		}
	}
	return n
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (r *rule) setWeekdays(text string) error {
	if text == "" {
		text = "*"
	}
	return r.setDays(text, "..")
}

// setDays sets weekdays, in which Sunday is 0 or 7: a week may end with it.
func (r *rule) setDays(text, to string) error {
	var days [8]bool
	err := set(days[:], 0, text, to, weekdayNames, "weekday")
	copy(r.weekdays[:], days[:7])
	r.weekdays[0] = r.weekdays[0] || days[7]
	return err
}

func (r *rule) setDate(text string) error {
	year, rest, _ := strings.Cut(text, "-")
	if year != "*" {
		return fmt.Errorf("date %q: want *-MONTH-DAY; a schedule is for every year", text)
	}
	month, day, end := strings.Cut(rest, "~")
	if !end {
		month, day, _ = strings.Cut(rest, "-")
	}
	if err := set(r.months[:], 1, month, "..", monthNames, "month"); err != nil {
		return err
	}
	if end {
		return set(r.fromEnd[:], 1, day, "..", nil, "day from a month's end")
	}
	return set(r.days[:], 1, day, "..", nil, "day")
}

func (r *rule) setClock(text string) error {
	hour, minute, _ := strings.Cut(text, ":")
	minute, seconds, more := strings.Cut(minute, ":")
	if more && seconds != "00" {
		return fmt.Errorf("time %q: want HOUR:MINUTE; seconds are not told apart", text)
	}
	return r.setTimes(hour, minute, "..")
}

func (r *rule) setTimes(hour, minute, to string) error {
	if err := set(r.hours[:], 0, hour, to, nil, "hour"); err != nil {
		return err
	}
	r.hourly = !slices.Contains(r.hours[:], false)
	return set(r.minutes[:], 0, minute, to, nil, "minute")
}

// aliases are those of cron.
var aliases = map[string]string{
	"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
	"@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}

// parseCron reads the five fields of cron: minute, hour, day, month, weekday,
// in which Sunday is 0 or 7.
func parseCron(fields []string) (r rule, err error) {
	if strings.HasPrefix(fields[0], "@") {
		long, ok := aliases[fields[0]]
		if !ok || len(fields) > 1 {
			return r, fmt.Errorf("%s cannot be read: cron's words are @hourly, @daily, @weekly, @monthly and @yearly", strings.Join(fields, " "))
		}
		fields = strings.Fields(long)
	}
	if err := r.setTimes(fields[1], fields[0], "-"); err != nil {
		return r, err
	}
	if err := set(r.days[:], 1, fields[2], "-", nil, "day"); err != nil {
		return r, err
	}
	if err := set(r.months[:], 1, fields[3], "-", monthNames, "month"); err != nil {
		return r, err
	}
	if err := r.setDays(fields[4], "-"); err != nil {
		return r, err
	}
	// Cron: where both are given, either is enough; one that begins with a
	// star counts as not given.
	r.either = !strings.HasPrefix(fields[2], "*") && !strings.HasPrefix(fields[4], "*")
	return r, nil
}

// set reads a list such as 1,3..5,*/10 or Mon..Fri into a set of the numbers
// from lowest to len(to)-1. Names, where there are some, stand for numbers.
func set(to []bool, lowest int, list, dash string, names []string, what string) error {
	for item := range strings.SplitSeq(list, ",") {
		first, last, step, err := span(item, lowest, len(to)-1, dash, names)
		if err != nil {
			return fmt.Errorf("%s %q: %w", what, item, err)
		}
		for i := first; i <= last; i += step {
			to[i] = true
		}
	}
	return nil
}

func span(item string, lowest, highest int, dash string, names []string) (first, last, step int, err error) {
	of, every, stepped := strings.Cut(item, "/")
	step = 1
	if stepped {
		if step, err = strconv.Atoi(every); err != nil || step < 1 || step > highest {
			return 0, 0, 0, fmt.Errorf("want a step from 1 to %d behind the slash", highest)
		}
	}
	if of == "*" {
		return lowest, highest, step, nil
	}
	from, to, ranged := strings.Cut(of, dash)
	if first, err = number(from, lowest, highest, names); err != nil {
		return 0, 0, 0, err
	}
	last = first
	if stepped {
		last = highest
	}
	if ranged {
		if last, err = number(to, lowest, highest, names); err != nil {
			return 0, 0, 0, err
		}
		if last == 0 && len(names) == len(weekdayNames) {
			last = highest // a week ends with Sunday
		}
		if last < first {
			return 0, 0, 0, fmt.Errorf("ends before it begins")
		}
	}
	return first, last, step, nil
}

func number(text string, lowest, highest int, names []string) (int, error) {
	for i, name := range names {
		if name != "" && len(text) >= 3 && (strings.EqualFold(text, name) || strings.EqualFold(text, longName(i, len(names)))) {
			return i, nil
		}
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < lowest || n > highest || strings.HasPrefix(text, "+") {
		want := fmt.Sprintf("a number from %d to %d", lowest, highest)
		if names != nil {
			want += " or a name such as " + names[1]
		}
		return 0, fmt.Errorf("want %s", want)
	}
	return n, nil
}

func longName(i, of int) string {
	if of == len(monthNames) {
		return time.Month(i).String()
	}
	return time.Weekday(i % 7).String()
}
