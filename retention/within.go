package retention

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
	year = 365 * day
)

// ParseWithin reads a span like 12h, 30d, 2w or 1y, or several of them, as in
// 1y6w. A day is 24 hours, a week 7 days, a year 365 days. Minutes and months
// would both be m: there is neither.
func ParseWithin(s string) (time.Duration, error) {
	var total time.Duration
	rest := s
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if digits == 0 || digits == len(rest) {
			return 0, badWithin(s)
		}
		n, err := strconv.ParseInt(rest[:digits], 10, 64)
		unit := unitOf(rest[digits])
		if err != nil || unit == 0 || n > int64((math.MaxInt64-total)/unit) {
			return 0, badWithin(s)
		}
		total += time.Duration(n) * unit
		rest = rest[digits+1:]
	}
	if total == 0 {
		return 0, badWithin(s)
	}
	return total, nil
}

func badWithin(s string) error {
	return fmt.Errorf("span %q: want hours, days, weeks or years, as in 12h, 30d, 2w or 1y, above zero and up to 292y", s)
}

func unitOf(c byte) time.Duration {
	switch c {
	case 'h':
		return time.Hour
	case 'd':
		return day
	case 'w':
		return week
	case 'y':
		return year
	}
	return 0
}

// FormatWithin writes a span the way ParseWithin reads it, in days and hours.
// A span that is no whole number of hours it leaves to time.Duration.
func FormatWithin(d time.Duration) string {
	days, hours := d/day, d%day/time.Hour
	switch {
	case d <= 0 || d%time.Hour != 0:
		return d.String()
	case days == 0:
		return fmt.Sprintf("%dh", hours)
	case hours == 0:
		return fmt.Sprintf("%dd", days)
	}
	return fmt.Sprintf("%dd%dh", days, hours)
}
