package schedule

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Window is the times of day at which something may go on. The zero Window
// is always open.
type Window struct {
	text  string
	spans []stretch
}

type stretch struct {
	days     rule // its weekdays are those on which the span begins
	from, to int  // minutes after midnight; a span that ends before it begins lasts into the next day
}

// ParseWindow reads [WEEKDAYS] FROM..TO, as in 22:00..06:00 or
// Sat..Sun 00:00..24:00, or several of them with a semicolon between.
func ParseWindow(text string) (Window, error) {
	w := Window{text: text}
	for part := range strings.SplitSeq(text, ";") {
		fields := strings.Fields(part)
		if len(fields) == 0 || len(fields) > 2 {
			return Window{}, badWindow(part)
		}
		var s stretch
		days := ""
		if len(fields) == 2 {
			days = fields[0]
		}
		if err := s.days.setWeekdays(days); err != nil {
			return Window{}, fmt.Errorf("window %q: %w", part, err)
		}
		from, to, ok := strings.Cut(fields[len(fields)-1], "..")
		var err1, err2 error
		s.from, err1 = minuteOf(from)
		s.to, err2 = minuteOf(to)
		if !ok || err1 != nil || err2 != nil || s.from == s.to || s.from == 24*60 {
			return Window{}, badWindow(part)
		}
		w.spans = append(w.spans, s)
	}
	return w, nil
}

func badWindow(part string) error {
	return fmt.Errorf("window %q: want [WEEKDAYS] FROM..TO, as in 22:00..06:00 or Sat..Sun 00:00..24:00", strings.TrimSpace(part))
}

func minuteOf(text string) (int, error) {
	hour, minute, _ := strings.Cut(text, ":")
	h, err := strconv.ParseUint(hour, 10, 8)
	m, err2 := strconv.ParseUint(minute, 10, 8)
	if err != nil || err2 != nil || m > 59 || h*60+m > 24*60 {
		return 0, fmt.Errorf("time %q: want HOUR:MINUTE", text)
	}
	return int(h*60 + m), nil
}

// UnmarshalText is ParseWindow.
func (w *Window) UnmarshalText(text []byte) (err error) {
	*w, err = ParseWindow(string(text))
	return err
}

// String returns what ParseWindow was given.
func (w Window) String() string { return w.text }

// Open reports whether it is open at t, by the wall clock of a time zone.
func (w Window) Open(t time.Time, zone *time.Location) bool {
	if len(w.spans) == 0 {
		return true
	}
	t = t.In(zone)
	now := t.Hour()*60 + t.Minute()
	today, yesterday := int(t.Weekday()), (int(t.Weekday())+6)%7
	for _, s := range w.spans {
		switch {
		case s.from < s.to && s.days.weekdays[today] && s.from <= now && now < s.to,
			s.from > s.to && s.days.weekdays[today] && s.from <= now,
			s.from > s.to && s.days.weekdays[yesterday] && now < s.to:
			return true
		}
	}
	return false
}

// Jitter returns a length of time from zero to less than most that is always
// the same for the same words: each machine has its own place for each job.
func Jitter(most time.Duration, words ...string) time.Duration {
	if most <= 0 {
		return 0
	}
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return time.Duration(binary.BigEndian.Uint64(sum[:8]) % uint64(most))
}
