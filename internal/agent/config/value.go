package config

import (
	"fmt"
	"time"

	"platter/internal/quantity"
)

// A span is a length of time such as 90s, 5m, 12h or 30d.
type span time.Duration

func (s *span) UnmarshalText(text []byte) error {
	d, err := quantity.ParseSpan(string(text))
	*s = span(d)
	return err
}

// to sets a length of time where there is another.
func (s *span) to(d *time.Duration) {
	if s != nil {
		*d = time.Duration(*s)
	}
}

// A size is one such as 64KiB or 1GiB, in bytes.
type size int64

func (s *size) UnmarshalText(text []byte) error {
	n, err := quantity.ParseSize(string(text))
	*s = size(n)
	return err
}

// A zone is a time zone by its name, such as Europe/Berlin.
type zone struct{ *time.Location }

func (z *zone) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		return fmt.Errorf("empty; want a time zone such as Europe/Berlin, UTC or Local")
	}
	z.Location, err = time.LoadLocation(string(text))
	return err
}
