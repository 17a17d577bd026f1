// Package quantity reads and writes sizes and lengths of time the way that
// people type them, on the command line and in the config.
package quantity

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// sizeUnits are powers of 1024, largest first. A single letter means the same
// as with "iB".
var sizeUnits = [...]struct {
	name  string
	bytes int64
}{{"EiB", 1 << 60}, {"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// ParseSize reads a size in bytes: 65536, 64KiB, 1GiB.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimLeft(s, "0123456789")
	number, unit := s[:len(s)-len(digits)], strings.TrimSpace(digits)
	n, err := strconv.ParseInt(number, 10, 64)
	if number == "" || err != nil && n != math.MaxInt64 {
		return 0, fmt.Errorf("want a size such as 64KiB, 1GiB or a number of bytes")
	}
	for _, u := range sizeUnits {
		if unit == "" || strings.EqualFold(unit, u.name) || u.bytes > 1 && strings.EqualFold(unit, u.name[:1]) {
			if unit == "" {
				u.bytes = 1
			}
			if err != nil || n > math.MaxInt64/u.bytes {
				return 0, fmt.Errorf("out of range: sizes end at %s", FormatSize(1<<62))
			}
			return n * u.bytes, nil
		}
	}
	return 0, fmt.Errorf("unknown unit %q: want KiB, MiB, GiB or TiB, powers of 1024", unit)
}

// FormatSize is the exact reverse of ParseSize, in the largest unit that fits.
func FormatSize(n int64) string {
	for _, u := range sizeUnits {
		if n != 0 && u.bytes > 1 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// spanUnits are those of a span, largest first. Days have 24 hours and years
// 365 days: a span never asks a calendar.
var spanUnits = [...]struct {
	name string
	d    time.Duration
}{{"y", 365 * day}, {"w", 7 * day}, {"d", day}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}

// ParseSpan reads a length of time: 90s, 5m, 24h, 30d, 2w, 1y, 1d12h, 0.
func ParseSpan(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	var total time.Duration
	for rest := s; rest != ""; {
		tail := strings.TrimLeft(rest, "0123456789")
		n, err := strconv.ParseInt(rest[:len(rest)-len(tail)], 10, 64)
		unit := unitSpan(tail)
		if err != nil || unit == 0 {
			return 0, fmt.Errorf("want a length of time such as 5m, 24h, 30d, 2w or 1y")
		}
		if n > int64(math.MaxInt64-total)/int64(unit) {
			return 0, fmt.Errorf("out of range: lengths of time end at 292y")
		}
		total += time.Duration(n) * unit
		rest = tail[1:]
	}
	if s == "" {
		return 0, fmt.Errorf("empty; give a length of time such as 24h or 30d")
	}
	return total, nil
}

func unitSpan(tail string) time.Duration {
	for _, u := range spanUnits {
		if strings.HasPrefix(tail, u.name) {
			return u.d
		}
	}
	return 0
}

// FormatSpan writes whole seconds as ParseSpan reads them, in hours at most up
// to two days and in days beyond.
func FormatSpan(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	var b strings.Builder
	for _, u := range spanUnits {
		if u.d > day || u.d == day && d < 2*day {
			continue
		}
		if n := d / u.d; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.d
		}
	}
	if b.Len() == 0 {
		return "less than 1s"
	}
	return b.String()
}
