package quantity

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseSizeReadsPlainBytesAndPowersOf1024(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "65536": 65536, "10B": 10, "64KiB": 64 << 10, "64k": 64 << 10,
		"1GiB": 1 << 30, "2 TiB": 2 << 40, "7EiB": 7 << 60, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "KiB", "-1", "+1", "1.5GiB", "64KB", "1XiB", "8EiB", "9223372036854775808", "1GiB2", "0x10", "1e9", "NaN"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d; want an error", in, got)
		}
	}
}

func TestFormatSizeIsReadBackExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.Int64Min(0).Draw(t, "size")
		if got, err := ParseSize(FormatSize(want)); err != nil || got != want {
			t.Fatalf("%d became %q became %d, %v", want, FormatSize(want), got, err)
		}
	})
}

func TestParseSpan(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "90s": 90 * time.Second, "5m": 5 * time.Minute, "24h": day, "1d12h": 36 * time.Hour,
		"2w": 14 * day, "1y": 365 * day,
	} {
		if got, err := ParseSpan(in); err != nil || got != want {
			t.Errorf("ParseSpan(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "5", "-5m", "h", "1.5h", "5min", "5x", "999999y", "99999999999999999999s"} {
		if got, err := ParseSpan(in); err == nil {
			t.Errorf("ParseSpan(%q) = %v; want an error", in, got)
		}
	}
}

func TestFormatSpanIsReadBackExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := time.Duration(rapid.Int64Range(0, int64(200*365*day/time.Second)).Draw(t, "seconds")) * time.Second
		if got, err := ParseSpan(FormatSpan(want)); err != nil || got != want {
			t.Fatalf("%v became %q became %v, %v", want, FormatSpan(want), got, err)
		}
	})
	for d, want := range map[time.Duration]string{5 * time.Minute: "5m", day: "24h", 36 * time.Hour: "36h", 30 * day: "30d"} {
		if got := FormatSpan(d); got != want {
			t.Errorf("FormatSpan(%v) = %q, want %q", d, got, want)
		}
	}
}
