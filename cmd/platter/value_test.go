package main

import (
	"strings"
	"testing"
	"time"
)

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
