// Package retention decides which images of a volume are kept.
//
// It is pure: the clock and the zone are arguments, nothing is read or
// written, and the same question always has the same answer. Every verdict
// says why, in words for people.
//
// A rule keeps an image; nothing drops one that any rule keeps. Raising a
// count or adding a rule keeps what was kept, and so does asking again after
// the dropped images are gone.
//
// Images are ordered by their number, never by their clock. An image dated in
// the future is kept, and one dated before an older image of its volume is out
// of order: neither takes a place from an image whose date can be believed, so
// that a wrong clock, or a writer who lies about the time, pushes nothing out.
package retention

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrNoRule means that a policy keeps nothing.
var ErrNoRule = errors.New("no rule says what to keep")

// skew is how far the clocks of two machines may be apart without either of
// them being called wrong: the one that made an image and the one that prunes.
const skew = 5 * time.Minute

// A Policy says which images of a volume to keep. Zero means no such rule.
//
// Hourly to Yearly keep the newest image of each of the last so many hours,
// days, weeks (ISO, from Monday), months or years of the local calendar that
// have an image at all. An image takes the place of an older one only if it is
// as complete and as much in order; else both are kept, for the same place.
type Policy struct {
	Last    int
	Hourly  int
	Daily   int
	Weekly  int
	Monthly int
	Yearly  int
	// Within keeps all images so far back from the volume's latest image. It
	// does not count from now: when backups stop, or a prune comes late, what
	// is there stays.
	Within time.Duration
}

// An Item is what a policy needs to know of an image. All items of one call
// belong to one volume.
type Item struct {
	ID       string // shown by its first 8 characters
	Seq      uint64 // number in the volume; the highest is the newest
	Time     time.Time
	Complete bool   // neither fuzzy nor with unreadable ranges
	Verified bool   // every byte was read back since it was made, and was right
	Pinned   string // why a person pinned it; empty if nobody did
	Tags     []string
}

// A Verdict says whether an image is kept, and why.
type Verdict struct {
	Item
	Keep    bool
	Reasons []string // at least one
}

// Apply returns a verdict on each image, in the order of images. The newest
// complete image and the newest verified one are always kept, and so is at
// least one image. Calendar rules count in zone.
//
// It returns ErrNoRule for a policy without a rule, and an error for a
// negative count or when two images have the same number; then nothing may be
// dropped.
func Apply(policy Policy, images []Item, now time.Time, zone *time.Location) ([]Verdict, error) {
	if err := policy.check(); err != nil {
		return nil, err
	}
	verdicts := make([]Verdict, len(images))
	h, err := newHistory(verdicts, images, now)
	if err != nil {
		return nil, err
	}
	h.keepAlways()
	if policy.Last > 0 {
		h.keepLast(policy.Last)
	}
	if policy.Within > 0 {
		h.keepWithin(policy.Within)
	}
	for _, rule := range policy.calendars() {
		if rule.places > 0 {
			h.keepCalendar(rule, zone)
		}
	}
	h.keepWitnesses()
	h.explain(zone)
	return verdicts, nil
}

func (p Policy) check() error {
	none := p.Last == 0 && p.Within == 0
	if p.Last < 0 {
		return fmt.Errorf("keep last %d: want 0 or more", p.Last)
	}
	if p.Within < 0 {
		return fmt.Errorf("keep within %v: want 0 or more", p.Within)
	}
	for _, rule := range p.calendars() {
		if rule.places < 0 {
			return fmt.Errorf("keep %s %d: want 0 or more", rule.name, rule.places)
		}
		none = none && rule.places == 0
	}
	if none {
		return ErrNoRule
	}
	return nil
}

// A history is the images of a volume, newest first.
type history []*entry

type entry struct {
	*Verdict
	future bool
	// witness is the latest-dated older image, if it is dated after this one.
	// It proves that one of their clocks was wrong.
	witness *entry
	missed  []string // for each rule, why it does not keep the image
}

func newHistory(verdicts []Verdict, images []Item, now time.Time) (history, error) {
	h := make(history, len(images))
	for i := range images {
		verdicts[i].Item = images[i]
		h[i] = &entry{Verdict: &verdicts[i], future: images[i].Time.After(now.Add(skew))}
	}
	slices.SortFunc(h, func(a, b *entry) int { return cmp.Compare(b.Seq, a.Seq) })
	var latest *entry // of the images before this one
	for i, e := range slices.Backward(h) {
		if i > 0 && h[i-1].Seq == e.Seq {
			return nil, fmt.Errorf("images %s and %s are both number %d of their volume", short(h[i-1].ID), short(e.ID), e.Seq)
		}
		switch {
		case e.future:
		case latest == nil || !e.Time.Before(latest.Time):
			latest = e
		default:
			e.witness = latest
		}
	}
	return h, nil
}

func (e *entry) keep(format string, args ...any) {
	e.Keep = true
	e.Reasons = append(e.Reasons, fmt.Sprintf(format, args...))
}

func (e *entry) miss(format string, args ...any) {
	e.missed = append(e.missed, fmt.Sprintf(format, args...))
}

// keepAlways keeps what no policy may drop.
func (h history) keepAlways() {
	var complete, verified bool
	for _, e := range h {
		if e.Pinned != "" {
			e.keep("pinned: %s", e.Pinned)
		}
		if e.future {
			e.Keep = true // explain says why
			continue
		}
		if e.Complete && !complete {
			e.keep("newest complete image")
		}
		if e.Verified && !verified {
			e.keep("newest verified image")
		}
		complete, verified = complete || e.Complete, verified || e.Verified
	}
}

func (h history) keepLast(n int) {
	taken := 0
	for _, e := range h {
		switch {
		case e.future:
		case taken < n:
			taken++
			e.keep("last %d of %d", taken, n)
		default:
			e.miss("not one of the last %d", n)
		}
	}
}

// keepWithin keeps every image dated late enough, and whatever was made after
// such an image: it is as young, whatever its clock said.
func (h history) keepWithin(d time.Duration) {
	var latest time.Time
	for _, e := range h {
		if !e.future && (latest.IsZero() || e.Time.After(latest)) {
			latest = e.Time
		}
	}
	young := func(t time.Time) bool { return !t.Add(d).Before(latest) }
	for _, e := range h {
		switch {
		case e.future:
		case young(e.Time):
			e.keep("within %s", FormatWithin(d))
		case e.witness != nil && young(e.witness.Time):
			e.keep("within %s, as it was made after image %s", FormatWithin(d), short(e.witness.ID))
		default:
			e.miss("not within %s", FormatWithin(d))
		}
	}
}

// keepWitnesses keeps the proof that a kept image is out of order. Without it
// the next prune would believe that image's date, and drop another for it.
func (h history) keepWitnesses() {
	for _, e := range h {
		if e.Keep && e.witness != nil && !e.witness.Keep {
			e.witness.keep("shows that the date of image %s is wrong", short(e.ID))
		}
	}
}

// explain gives the reasons for images that no rule keeps, and points out
// dates that cannot be right.
func (h history) explain(zone *time.Location) {
	for _, e := range h {
		if !e.Keep {
			e.Reasons = append(e.Reasons, "no rule keeps it: "+strings.Join(e.missed, "; "))
		}
		date := e.Time.In(zone).Format(time.RFC3339)
		if e.future {
			e.Reasons = append(e.Reasons, fmt.Sprintf("dated in the future, %s: a clock was or is wrong", date))
		}
		if e.witness != nil {
			e.Reasons = append(e.Reasons, fmt.Sprintf("dated %s, before the older image %s: a clock was wrong", date, short(e.witness.ID)))
		}
	}
}

func short(id string) string { return id[:min(len(id), 8)] }
