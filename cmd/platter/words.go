package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"platter/block/snapshot"
	"platter/image"
	"platter/internal/quantity"
)

// shortID is how many digits of an image's ID people are shown.
const shortID = 8

// bytesText is a size as people read it, rounded, in powers of 1024.
func bytesText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// unreadable is how many bytes of an image could not be read.
func unreadable(m *image.Manifest) (n int64) {
	for _, e := range m.Unreadable {
		n += e.Length
	}
	return n
}

// timeText is a time as it may be typed again after VOLUME@.
func timeText(t time.Time) string { return t.Local().Format(time.RFC3339) }

// notes are what a person should know of an image at a glance.
func notes(m *image.Manifest) []string {
	var list []string
	if m.Fuzzy {
		list = append(list, "fuzzy")
	}
	if m.Set != "" {
		list = append(list, fmt.Sprintf("set %.*s", shortID, m.Set))
	}
	if n := unreadable(m); n > 0 {
		list = append(list, bytesText(n)+" unreadable")
	}
	if n := len(m.Warnings); n > 0 {
		list = append(list, plural(n, "warning"))
	}
	return append(list, m.Tags...)
}

// plural counts things.
func plural[N int | int64](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// trackingText says what a backup compared, with which image and why.
func trackingText(m *image.Manifest) string {
	text := "every block"
	if m.Tracker.Name != "full" {
		text = "what " + m.Tracker.Name + " says has changed"
	}
	if m.Tracker.Parent == (image.ImageID{}) {
		text += ", with no image before it"
	} else {
		text += " with " + m.Tracker.Parent.String()[:shortID]
	}
	if m.Tracker.Why != "" {
		text += " (" + m.Tracker.Why + ")"
	}
	if v := m.Tracker.View; v != "" && v != snapshot.Direct {
		text += ", in a still view by " + v
	}
	return text
}

// freeTexts say how much filesystems call free, and which were not believed.
func freeTexts(m *image.Manifest) (list []string) {
	for _, f := range m.Free {
		text := f.Content
		if f.Partition > 0 {
			text = fmt.Sprintf("partition %d (%s)", f.Partition, f.Content)
		}
		if f.Why != "" {
			text += ": read all the same: " + f.Why
		} else {
			text += ": " + bytesText(f.Bytes)
		}
		list = append(list, text)
	}
	return list
}

// auditText says what was read that a tracker had called unchanged.
func auditText(m *image.Manifest) string {
	a := m.Audit
	if a == nil || a.Canaries == 0 && a.Read == 0 {
		return ""
	}
	text := "canaries " + bytesText(a.Canaries)
	if a.Read > 0 {
		text += fmt.Sprintf(", audit %s in %s", bytesText(a.Read), tookText(a.Took))
	}
	if a.Done > 0 {
		text += fmt.Sprintf(" (%s of %s since %s)", bytesText(a.Done), bytesText(m.Size), a.Since.Format(time.DateOnly))
	}
	return text
}

// changesText says which parts of the device differ from the image before.
func changesText(m *image.Manifest) string {
	var parts []string
	for _, c := range m.Changes {
		where := "the device"
		switch {
		case c.Partition > 0:
			where = fmt.Sprintf("partition %d", c.Partition)
		case m.Device.Table != nil:
			where = "what is outside of partitions"
		}
		if what := strings.TrimSpace(c.Content + " " + c.Name); what != "" {
			where += " (" + what + ")"
		}
		if c.Volume != "" {
			where = c.Volume + " on " + where
		}
		parts = append(parts, fmt.Sprintf("%s: %s", where, bytesText(c.Bytes)))
	}
	return strings.Join(parts, ", ")
}

// tookText is a time that something took.
func tookText(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return quantity.FormatSpan(d.Round(time.Second))
	}
}

// perSecond is a rate.
func perSecond(n int64, d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64(float64(n) / d.Seconds())
}

// orElse is s, or something in place of nothing.
func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
