package schedule

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func load(t interface{ Fatal(...any) }, name string) *time.Location {
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func parse(t interface{ Fatal(...any) }, text string) Schedule {
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nexts are the next n moments after from, in the zone's own clock.
func nexts(t *testing.T, text, zone, from string, n int) string {
	t.Helper()
	z := load(t, zone)
	at, err := time.ParseInLocation("2006-01-02 15:04", from, z)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for range n {
		at = parse(t, text).Next(at, z)
		list = append(list, at.Format("Mon 2006-01-02 15:04 -0700"))
	}
	return strings.Join(list, ", ")
}

func TestNextOfCalendarAndCronWords(t *testing.T) {
	for _, c := range []struct{ text, from, want string }{
		{"daily", "2026-01-01 00:00", "Fri 2026-01-02 00:00 +0000, Sat 2026-01-03 00:00 +0000"},
		{"daily 02:30", "2026-01-01 02:29", "Thu 2026-01-01 02:30 +0000, Fri 2026-01-02 02:30 +0000"},
		{"Daily 02:30:00", "2026-01-01 02:29", "Thu 2026-01-01 02:30 +0000, Fri 2026-01-02 02:30 +0000"},
		{"02:30", "2026-01-01 02:30", "Fri 2026-01-02 02:30 +0000, Sat 2026-01-03 02:30 +0000"},
		{"hourly", "2026-01-01 22:59", "Thu 2026-01-01 23:00 +0000, Fri 2026-01-02 00:00 +0000"},
		{"minutely", "2026-01-01 23:59", "Fri 2026-01-02 00:00 +0000, Fri 2026-01-02 00:01 +0000"},
		{"weekly", "2026-01-01 00:00", "Mon 2026-01-05 00:00 +0000, Mon 2026-01-12 00:00 +0000"},
		{"weekly Sun 03:00", "2026-01-01 00:00", "Sun 2026-01-04 03:00 +0000, Sun 2026-01-11 03:00 +0000"},
		{"monthly 04:00", "2026-01-31 00:00", "Sun 2026-02-01 04:00 +0000, Sun 2026-03-01 04:00 +0000"},
		{"quarterly", "2026-01-31 00:00", "Wed 2026-04-01 00:00 +0000, Wed 2026-07-01 00:00 +0000"},
		{"yearly", "2026-01-31 00:00", "Fri 2027-01-01 00:00 +0000, Sat 2028-01-01 00:00 +0000"},
		{"Mon..Fri 22:00", "2026-01-02 22:00", "Mon 2026-01-05 22:00 +0000, Tue 2026-01-06 22:00 +0000"},
		{"Sat..Sun 12:00", "2026-01-01 00:00", "Sat 2026-01-03 12:00 +0000, Sun 2026-01-04 12:00 +0000"},
		{"Monday,wed 0/12:00", "2026-01-01 00:00", "Mon 2026-01-05 00:00 +0000, Mon 2026-01-05 12:00 +0000"},
		{"*-*~01 03:00", "2028-01-31 04:00", "Tue 2028-02-29 03:00 +0000, Fri 2028-03-31 03:00 +0000"},
		{"*-*-29,30 03:00", "2026-02-01 00:00", "Sun 2026-03-29 03:00 +0000, Mon 2026-03-30 03:00 +0000"},
		{"*-02-29", "2026-02-01 00:00", "Tue 2028-02-29 00:00 +0000, Sun 2032-02-29 00:00 +0000"},
		{"Fri *-02-29", "2026-02-01 00:00", "Fri 2036-02-29 00:00 +0000, Fri 2064-02-29 00:00 +0000"},
		{"Mon *-*-01..07 01:00", "2026-01-01 00:00", "Mon 2026-01-05 01:00 +0000, Mon 2026-02-02 01:00 +0000"},
		{"*:0/15", "2026-01-01 23:40", "Thu 2026-01-01 23:45 +0000, Fri 2026-01-02 00:00 +0000"},
		{"9..17/4:05", "2026-01-01 09:05", "Thu 2026-01-01 13:05 +0000, Thu 2026-01-01 17:05 +0000"},
		{"Mon..Fri 02:30; Sat 12:00", "2026-01-02 03:00", "Sat 2026-01-03 12:00 +0000, Mon 2026-01-05 02:30 +0000"},
		{"every 4h", "2026-01-01 00:00", "Thu 2026-01-01 04:00 +0000, Thu 2026-01-01 08:00 +0000"},
		{"every 90m", "2026-01-01 00:00", "Thu 2026-01-01 01:30 +0000, Thu 2026-01-01 03:00 +0000"},
		{"every 1d12h", "1999-12-30 00:00", "Thu 1999-12-30 12:00 +0000, Sat 2000-01-01 00:00 +0000"},
		{"30 2 * * *", "2026-01-01 02:30", "Fri 2026-01-02 02:30 +0000, Sat 2026-01-03 02:30 +0000"},
		{"*/20 8-9 * * 1-5", "2026-01-02 09:30", "Fri 2026-01-02 09:40 +0000, Mon 2026-01-05 08:00 +0000"},
		{"0 0 13 * Fri", "2026-02-01 00:00", "Fri 2026-02-06 00:00 +0000, Fri 2026-02-13 00:00 +0000"},
		{"0 0 */2 * Fri", "2026-02-01 00:00", "Fri 2026-02-13 00:00 +0000, Fri 2026-02-27 00:00 +0000"},
		{"0 0 * jan,MAR 7", "2026-01-20 00:00", "Sun 2026-01-25 00:00 +0000, Sun 2026-03-01 00:00 +0000"},
		{"@weekly", "2026-01-01 00:00", "Sun 2026-01-04 00:00 +0000, Sun 2026-01-11 00:00 +0000"},
	} {
		if got := nexts(t, c.text, "UTC", c.from, 2); got != c.want {
			t.Errorf("%q after %s:\n got %s\nwant %s", c.text, c.from, got, c.want)
		}
	}
}

func TestClocksThatChangeNeitherSkipNorDouble(t *testing.T) {
	for _, c := range []struct{ text, zone, from, want string }{
		// Berlin: 2026-03-29 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00.
		{"daily 02:30", "Europe/Berlin", "2026-03-28 12:00", "Sun 2026-03-29 03:30 +0200, Mon 2026-03-30 02:30 +0200"},
		{"daily 02:00", "Europe/Berlin", "2026-03-28 12:00", "Sun 2026-03-29 03:00 +0200, Mon 2026-03-30 02:00 +0200"},
		{"daily 02:30", "Europe/Berlin", "2026-10-24 12:00", "Sun 2026-10-25 02:30 +0200, Mon 2026-10-26 02:30 +0100"},
		{"2,3:30", "Europe/Berlin", "2026-03-28 12:00", "Sun 2026-03-29 03:30 +0200, Mon 2026-03-30 02:30 +0200"},
		{"*:30", "Europe/Berlin", "2026-03-29 01:00", "Sun 2026-03-29 01:30 +0100, Sun 2026-03-29 03:30 +0200"},
		{"*:30", "Europe/Berlin", "2026-10-25 01:45", "Sun 2026-10-25 02:30 +0200, Sun 2026-10-25 02:30 +0100"},
		{"every 1h", "Europe/Berlin", "2026-10-25 01:30", "Sun 2026-10-25 02:00 +0200, Sun 2026-10-25 02:00 +0100"},
		{"30 2 * * 0", "America/New_York", "2026-03-07 12:00", "Sun 2026-03-08 03:30 -0400, Sun 2026-03-15 02:30 -0400"},
		// Half an hour.
		{"daily 02:10", "Australia/Lord_Howe", "2026-10-03 12:00", "Sun 2026-10-04 02:40 +1100, Mon 2026-10-05 02:10 +1100"},
		// Midnight itself is not there.
		{"daily", "America/Santiago", "2026-09-05 12:00", "Sun 2026-09-06 01:00 -0300, Mon 2026-09-07 00:00 -0300"},
		// A whole day, a Friday, is not there.
		{"daily 02:30", "Pacific/Apia", "2011-12-28 12:00", "Thu 2011-12-29 02:30 -1000, Sat 2011-12-31 02:30 +1400"},
		{"Fri 02:30", "Pacific/Apia", "2011-12-28 12:00", "Sat 2011-12-31 02:30 +1400, Fri 2012-01-06 02:30 +1400"},
	} {
		if got := nexts(t, c.text, c.zone, c.from, 2); got != c.want {
			t.Errorf("%q in %s after %s:\n got %s\nwant %s", c.text, c.zone, c.from, got, c.want)
		}
	}
}

var zones = []string{
	"UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "America/Santiago", "Australia/Lord_Howe", "Africa/Casablanca",
	"Asia/Kathmandu", "Pacific/Apia", "Pacific/Chatham", "Asia/Tehran", "America/Sao_Paulo", "Africa/Cairo", "Asia/Gaza", "Antarctica/Troll",
}

// change is a moment at which the clocks of a zone change, drawn from all years,
// or any moment where they never do.
func change(t *rapid.T, zone *time.Location) time.Time {
	at := time.Unix(rapid.Int64Range(160_000_000, 2_140_000_000).Draw(t, "moment"), 0).In(zone)
	if _, end := at.ZoneBounds(); !end.IsZero() && end.Year() < 2038 {
		return end.In(zone)
	}
	if start, _ := at.ZoneBounds(); start.Year() > 1975 {
		return start.In(zone)
	}
	return at
}

// TestEveryDayHasItsRunOnce: whatever the clocks of a zone do, a time of day is
// due once for every date that the zone has.
func TestEveryDayHasItsRunOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zone := load(t, rapid.SampledFrom(zones).Draw(t, "zone"))
		minute := rapid.IntRange(0, 24*60-1).Draw(t, "minute")
		s := parse(t, time.Date(2000, 1, 1, 0, minute, 0, 0, time.UTC).Format("15:04"))
		year, month, day := change(t, zone).Date()
		start, end := time.Date(year, month, day-4, 12, 0, 0, 0, zone), time.Date(year, month, day+5, 12, 0, 0, 0, zone)
		due := map[string]int{}
		for at := s.Next(start, zone); !at.After(end); at = s.Next(at, zone) {
			of := at
			if got := at.Hour()*60 + at.Minute(); got < minute {
				of = time.Date(at.Year(), at.Month(), at.Day()-1, 12, 0, 0, 0, zone) // its own day had ended by then
			}
			due[of.Format(time.DateOnly)]++
			if got := at.Hour()*60 + at.Minute(); got != minute && exists(of, minute, zone) {
				t.Fatalf("due at %v, and %02d:%02d was there that day", at, minute/60, minute%60)
			}
		}
		for at := start.Add(24 * time.Hour); at.Before(end.Add(-24 * time.Hour)); at = at.Add(time.Hour) {
			if n := due[at.Format(time.DateOnly)]; n != 1 {
				t.Fatalf("%s in %s: due %d times on %s", s, zone, n, at.Format(time.DateOnly))
			}
		}
	})
}

// exists reports whether a clock in the zone shows a minute of the day on the
// date of at, by looking at every minute of that day.
func exists(at time.Time, minute int, zone *time.Location) bool {
	for m := at.Add(-26 * time.Hour).Truncate(time.Minute); m.Before(at.Add(26 * time.Hour)); m = m.Add(time.Minute) {
		if l := m.In(zone); l.YearDay() == at.YearDay() && l.Hour()*60+l.Minute() == minute {
			return true
		}
	}
	return false
}

// TestNextIsTheFirst: nothing that is due lies between a moment and its next,
// told by asking from each minute between.
func TestNextIsTheFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zone := load(t, rapid.SampledFrom(zones).Draw(t, "zone"))
		text := rapid.SampledFrom([]string{
			"*:30", "0/2:15", "1,2,3:00", "Sun 2:30", "daily 23:45", "every 45m", "15 */3 * * *", "0 2 1 * Sun", "2:59; 3:01",
		}).Draw(t, "schedule")
		s := parse(t, text)
		at := time.Unix(rapid.Int64Range(0, 2_100_000_000).Draw(t, "from"), 0)
		next := s.Next(at, zone)
		if !next.After(at) {
			t.Fatalf("%q after %v: %v", text, at, next)
		}
		for range 40 {
			between := at.Add(time.Duration(rapid.Int64Range(0, int64(next.Sub(at))-1).Draw(t, "between")))
			if got := s.Next(between, zone); !got.Equal(next) {
				t.Fatalf("%q: next after %v is %v, yet after %v it is %v", text, at, next, between, got)
			}
		}
	})
}

// TestEveryHourIsAnHourOfTime: a schedule of every hour goes on where clocks
// change by whole hours.
func TestEveryHourIsAnHourOfTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zone := load(t, rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/New_York", "America/Santiago"}).Draw(t, "zone"))
		s := parse(t, rapid.SampledFrom([]string{"*:15", "hourly", "59 * * * *", "every 1h"}).Draw(t, "schedule"))
		at := s.Next(change(t, zone).Add(-12*time.Hour), zone)
		for range 36 {
			next := s.Next(at, zone)
			if next.Sub(at) != time.Hour {
				t.Fatalf("%s in %s: after %v comes %v", s, zone, at, next)
			}
			at = next
		}
	})
}

func TestWhatCannotBeMeantIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"": "empty", "tomorrow": "weekday", "25:00": "hour", "12:60": "minute", "*-*-32": "day", "*-13-01": "month", "*-02-30": "no such day",
		"2026-01-01": "every year", "Mon..Foo 1:00": "weekday", "Fri..Mon 1:00": "ends before", "daily 02:30 extra": "cannot be read",
		"02:30 Mon": "cannot be read", "02:30:15": "seconds", "every": "length of time", "every 5s": "1m to 366d", "every -4h": "1m", "every day": "length",
		"every 4h; daily": "alone", "* * * *": "cannot be read", "* * * * * *": "cannot be read", "60 * * * *": "minute", "* 24 * * *": "hour",
		"* * 0 * *": "day", "* * * 13 *": "month", "* * * * 8": "weekday", "*/0 * * * *": "step", "+5 * * * *": "minute", "1- * * * *": "minute",
		"@reboot": "cron's words", "@daily 2": "cron's words", "daily;": "empty", "*:0/": "step",
	} {
		if s, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %v, %v; want %q", text, s, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"daily", "Mon..Fri 02:30", "*-*~01 0/2:15", "30 2 * * 1-5", "every 1d4h", "@weekly", "Sat 1:00; Sun 2:00"} {
		f.Add(s)
	}
	at := time.Date(2026, 3, 28, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		if next := s.Next(at, time.UTC); !next.After(at) {
			t.Errorf("%q is due at %v", text, next)
		}
		if again, err := Parse(s.String()); err != nil || !again.Equal(s) {
			t.Errorf("%q became %q: %v", text, s, err)
		}
	})
}

func TestWindow(t *testing.T) {
	zone := load(t, "Europe/Berlin")
	for _, c := range []struct {
		text, at string
		want     bool
	}{
		{"22:00..06:00", "2026-01-01 21:59", false},
		{"22:00..06:00", "2026-01-01 22:00", true},
		{"22:00..06:00", "2026-01-02 05:59", true},
		{"22:00..06:00", "2026-01-02 06:00", false},
		{"Fri 22:00..06:00", "2026-01-02 22:00", true}, // a Friday
		{"Fri 22:00..06:00", "2026-01-03 03:00", true},
		{"Fri 22:00..06:00", "2026-01-02 03:00", false},
		{"Sat..Sun 00:00..24:00", "2026-01-03 23:59", true},
		{"Sat..Sun 00:00..24:00", "2026-01-05 00:00", false},
		{"09:00..10:00; 12:00..13:00", "2026-01-05 12:30", true},
		{"09:00..10:00; 12:00..13:00", "2026-01-05 11:30", false},
	} {
		w, err := ParseWindow(c.text)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.ParseInLocation("2006-01-02 15:04", c.at, zone)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.Open(at.UTC(), zone); got != c.want {
			t.Errorf("%s at %s: open is %v", c.text, c.at, got)
		}
	}
	if !(Window{}).Open(time.Now(), time.UTC) {
		t.Error("no window is closed")
	}
	for _, text := range []string{"", "22:00", "22:00..", "..06:00", "06:00..06:00", "24:00..06:00", "22:60..06:00", "25:00..26:00", "Foo 22:00..06:00", "a b c", "-1:00..06:00", "22:00..06:00;"} {
		if w, err := ParseWindow(text); err == nil {
			t.Errorf("ParseWindow(%q) = %v", text, w)
		}
	}
}

func TestJitterIsStableAndSpreads(t *testing.T) {
	if j := Jitter(0, "a"); j != 0 {
		t.Errorf("no jitter is %v", j)
	}
	if j := Jitter(time.Hour, "machine", "job"); j.Round(time.Second) != 48*time.Minute+41*time.Second {
		t.Errorf("the place of a job in an hour is now %v: every machine's runs move", j)
	}
	quarters := map[time.Duration]int{}
	for i := range 400 {
		j := Jitter(time.Hour, "machine", string(rune('a'+i)))
		if j < 0 || j >= time.Hour {
			t.Fatalf("jitter of %v", j)
		}
		quarters[j/(15*time.Minute)]++
	}
	for q := range time.Duration(4) {
		if quarters[q] < 60 {
			t.Errorf("of 400 jobs only %d have their place in quarter %d", quarters[q], q)
		}
	}
}
