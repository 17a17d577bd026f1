package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"platter/internal/job"
	"platter/internal/quantity"
	"platter/retention"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
	day = 24 * time.Hour
)

// A value is one flag's place in the options. It is a pflag.Value: kind is the
// word for what the flag takes, shown in help, and "bool" for a switch.
type value struct {
	kind string
	get  func() string
	set  func(string) error
}

func (v value) Type() string       { return v.kind }
func (v value) String() string     { return v.get() }
func (v value) Set(s string) error { return v.set(s) }

// toggle is a flag that takes nothing.
func toggle(p *bool) value {
	return value{"bool", func() string { return strconv.FormatBool(*p) }, func(s string) (err error) {
		*p, err = strconv.ParseBool(s)
		return err
	}}
}

// text is a flag that takes any words but none.
func text(kind string, p *string) value {
	return value{kind, func() string { return *p }, func(s string) error {
		if s == "" {
			return fmt.Errorf("empty; give a %s", kind)
		}
		*p = s
		return nil
	}}
}

// texts is a flag that may be given again and again.
func texts(kind string, p *[]string) value {
	return value{kind, func() string { return strings.Join(*p, ",") }, func(s string) error {
		if s == "" {
			return fmt.Errorf("empty; give a %s", kind)
		}
		*p = append(*p, s)
		return nil
	}}
}

// choice is a flag that takes one of a few words.
func choice(p *string, words ...string) value {
	return value{strings.Join(words, "|"), func() string { return *p }, func(s string) error {
		for _, w := range words {
			if s == w {
				*p = s
				return nil
			}
		}
		return fmt.Errorf("want %s", strings.Join(words, " or "))
	}}
}

// size is a flag in bytes, from lowest to highest.
func size(p *int64, lowest, highest int64) value {
	return value{"SIZE", func() string { return quantity.FormatSize(*p) }, func(s string) error {
		n, err := quantity.ParseSize(s)
		if err != nil {
			return err
		}
		if n < lowest || n > highest {
			return fmt.Errorf("out of range: want %s to %s", quantity.FormatSize(lowest), quantity.FormatSize(highest))
		}
		*p = n
		return nil
	}}
}

// power is a size that is a power of two.
func power(p *int64, lowest, highest int64) value {
	v := size(p, lowest, highest)
	ranged := v.set
	v.set = func(s string) error {
		old := *p
		if err := ranged(s); err != nil {
			return err
		}
		if *p&(*p-1) != 0 {
			*p = old
			return fmt.Errorf("not a power of two: want one from %s to %s", quantity.FormatSize(lowest), quantity.FormatSize(highest))
		}
		return nil
	}
	return v
}

// rate is a size per second; zero, its default, is no limit.
func rate(p *int64) value {
	return value{"SIZE", func() string {
		if *p == 0 {
			return ""
		}
		return quantity.FormatSize(*p)
	}, size(p, 64*kib, tib).set}
}

// count is a flag that takes a whole number from 0 to highest.
func count(p *int, highest int) value {
	return value{"N", func() string { return strconv.Itoa(*p) }, func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > highest {
			return fmt.Errorf("want a whole number from 0 to %d", highest)
		}
		*p = n
		return nil
	}}
}

// span is a length of time, from lowest to highest.
func span(p *time.Duration, lowest, highest time.Duration) value {
	return value{"DURATION", func() string { return quantity.FormatSpan(*p) }, func(s string) error {
		d, err := quantity.ParseSpan(s)
		if err != nil {
			return err
		}
		if d < lowest || d > highest {
			return fmt.Errorf("out of range: want %s to %s", quantity.FormatSpan(lowest), quantity.FormatSpan(highest))
		}
		*p = d
		return nil
	}}
}

// within is how far back everything is kept.
func within(p *time.Duration) value {
	return value{"DURATION", func() string {
		if *p == 0 {
			return ""
		}
		return retention.FormatWithin(*p)
	}, func(s string) error {
		d, err := retention.ParseWithin(s)
		if err == nil {
			*p = d
		}
		return err
	}}
}

// share is a part of a whole, above 0 % and up to 100 %.
func share(p *float64) value {
	return value{"PERCENT", func() string {
		if *p == 0 {
			return ""
		}
		return strconv.FormatFloat(*p*100, 'f', -1, 64) + "%"
	}, func(s string) error {
		n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
		if err != nil || !strings.HasSuffix(s, "%") || !(n > 0 && n <= 100) {
			return fmt.Errorf("want a share above 0%% and up to 100%%, such as 5%%")
		}
		*p = n / 100
		return nil
	}}
}

// shareOrCount is a part of a whole, or a number from 1 to highest in its place.
func shareOrCount(p *float64, n *int, highest int) value {
	part := share(p)
	return value{"PERCENT|N", func() string {
		if *n > 0 {
			return strconv.Itoa(*n)
		}
		return part.get()
	}, func(s string) error {
		if strings.HasSuffix(s, "%") {
			*n = 0
			return part.set(s)
		}
		count, err := strconv.Atoi(s)
		if err != nil || count < 1 || count > highest {
			return fmt.Errorf("want a share such as 50%%, or a whole number from 1 to %d", highest)
		}
		*p, *n = 0, count
		return nil
	}}
}

// moment is a time to come: one that is named, or a length of time from now.
func moment(p *time.Time) value {
	return value{"TIME", func() string {
		if p.IsZero() {
			return ""
		}
		return timeText(*p)
	}, func(s string) error {
		if d, err := quantity.ParseSpan(s); err == nil && d > 0 {
			*p = time.Now().Add(d)
			return nil
		}
		t, err := job.ParseMoment(s)
		if err != nil {
			return fmt.Errorf("want a date like 2027-01-31, a time like 2027-01-31T15:04, RFC 3339, or a length of time like 90d")
		}
		*p = t
		return nil
	}}
}
