package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseSizeReadsPlainBytesAndPowersOf1024(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "65536": 65536, "10B": 10, "64KiB": 64 << 10, "64k": 64 << 10,
		"1GiB": 1 << 30, "2 TiB": 2 << 40, "7EiB": 7 << 60, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "KiB", "-1", "+1", "1.5GiB", "64KB", "1XiB", "8EiB", "9223372036854775808", "1GiB2", "0x10", "1e9", "NaN"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d; want an error", in, got)
		}
	}
}

func TestFormatSizeIsReadBackExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.Int64Min(0).Draw(t, "size")
		if got, err := parseSize(formatSize(want)); err != nil || got != want {
			t.Fatalf("%d became %q became %d, %v", want, formatSize(want), got, err)
		}
	})
}

func TestParseSpan(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "90s": 90 * time.Second, "5m": 5 * time.Minute, "24h": day, "1d12h": 36 * time.Hour,
		"2w": 14 * day, "1y": 365 * day,
	} {
		if got, err := parseSpan(in); err != nil || got != want {
			t.Errorf("parseSpan(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "5", "-5m", "h", "1.5h", "5min", "5x", "999999y", "99999999999999999999s"} {
		if got, err := parseSpan(in); err == nil {
			t.Errorf("parseSpan(%q) = %v; want an error", in, got)
		}
	}
}

func TestFormatSpanIsReadBackExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := time.Duration(rapid.Int64Range(0, int64(200*365*day/time.Second)).Draw(t, "seconds")) * time.Second
		if got, err := parseSpan(formatSpan(want)); err != nil || got != want {
			t.Fatalf("%v became %q became %v, %v", want, formatSpan(want), got, err)
		}
	})
	for d, want := range map[time.Duration]string{5 * time.Minute: "5m", day: "24h", 36 * time.Hour: "36h", 30 * day: "30d"} {
		if got := formatSpan(d); got != want {
			t.Errorf("formatSpan(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestValuesRefuseWhatIsOutOfRangeAndNameTheRange(t *testing.T) {
	var (
		n int64
		c int
		d time.Duration
		f float64
		s string
	)
	for _, tc := range []struct {
		v         value
		good, bad []string
		says      string
	}{
		{power(&n, 4*kib, 4*mib), []string{"4KiB", "4096", "4MiB"}, []string{"2KiB", "8MiB", "4095", "12KiB", "0", "-4096"}, "4KiB to 4MiB"},
		{size(&n, 64*mib, tib), []string{"64MiB", "1TiB"}, []string{"67108863", "1099511627777", "1"}, "64MiB to 1TiB"},
		{count(&c, 1000), []string{"0", "1", "1000"}, []string{"-1", "1001", "", "many"}, "0 to 1000"},
		{span(&d, 0, 365*day), []string{"0", "24h", "1y"}, []string{"1y1s", "366d"}, "0 to 365d"},
		{share(&f), []string{"0.1%", "5%", "100%"}, []string{"0%", "101%", "-1%", "5", "NaN%", "Inf%", "%"}, "above 0% and up to 100%"},
		{choice(&s, "auto", "full"), []string{"auto", "full"}, []string{"", "Auto", "era"}, "auto or full"},
	} {
		for _, in := range tc.good {
			if err := tc.v.Set(in); err != nil {
				t.Errorf("%s %q: %v", tc.v.kind, in, err)
			}
		}
		for _, in := range tc.bad {
			before := tc.v.String()
			err := tc.v.Set(in)
			if err == nil {
				t.Errorf("%s %q: accepted", tc.v.kind, in)
			} else if in[:min(1, len(in))] != "-" && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s %q: %q does not say %q", tc.v.kind, in, err, tc.says)
			}
			if tc.v.String() != before {
				t.Errorf("%s %q: refused, yet the value went from %q to %q", tc.v.kind, in, before, tc.v.String())
			}
		}
	}
}
