package alert

import (
	"fmt"
	"time"

	"platter/internal/agent/config"
	"platter/internal/agent/history"
)

// What makes an image odd. All are measured against the volume's own past.
const (
	floor      = 256 << 20 // bytes: less than this is never odd
	enoughPast = 3         // images, before shares of the usual mean anything
	pastImages = 10        // of those at most, the newest

	packs, packsNot = 0.75, 0.97 // of plain bytes, that were stored; and now are
	knew, knowsNot  = 0.40, 0.05 // of what was not unchanged, that was known
	clockBack       = time.Minute
	clockAhead      = 24 * time.Hour
	shrunkTo        = 0.5
)

// a past is what the images of a volume were like, before the one at hand.
type past struct {
	images       int
	last         history.Volume
	used         int64 // bytes that were not zero, when all was last compared
	plain, coded int64
	known, fresh int64
}

func pastOf(volume string, runs []history.Run) (p past) {
	var list []history.Volume
	for _, r := range runs {
		for _, v := range r.Volumes {
			if r.Kind == history.Backup && v.Name == volume && v.Image != "" {
				list = append(list, v)
			}
		}
	}
	for _, v := range list[max(0, len(list)-pastImages):] {
		p.images++
		p.last = v
		p.plain += v.New
		p.coded += v.Encoded
		p.known += v.Known
		p.fresh += v.New
	}
	for _, v := range list {
		if full(v) {
			p.used = v.Size - v.Zero
		}
	}
	return p
}

// full reports whether every block was compared, so that zeros were counted.
func full(v history.Volume) bool { return v.Tracker == "full" }

// image says what is odd about an image.
func (u *Update) image(v history.Volume, runs []history.Run, rule config.Alert) {
	if v.Image == "" {
		return
	}
	odd := func(kind Kind, format string, args ...any) {
		text := fmt.Sprintf("image %.8s of %s: ", v.Image, v.Name) + fmt.Sprintf(format, args...)
		u.Raise(Condition{kind, v.Name, text, remedies[kind]}, rule.Repeat)
	}
	if v.Missed {
		odd(Tracker, "tracker %s had missed a write; this image was compared in full and is right", v.Tracker)
	}
	p := pastOf(v.Name, runs)
	if p.images == 0 || rule.Off {
		return
	}
	if back := p.last.Time.Sub(v.Time); back > clockBack {
		odd(Clock, "it is dated %s before the one before it", back.Round(time.Second))
	}
	if ahead := v.Time.Sub(u.now); ahead > clockAhead {
		odd(Clock, "it is dated %s ahead", ahead.Round(time.Second))
	}
	if v.Parent && v.Changed >= floor && float64(v.Changed) > rule.Changed*float64(p.base(v)) {
		odd(Changed, "%s of about %s in use changed", size(v.Changed), size(p.base(v)))
	}
	if now := p.now(v); p.used-now >= floor && float64(now) < shrunkTo*float64(p.used) {
		odd(Shrunk, "%s is in use, and was %s", size(now), size(p.used))
	} else if v.Size < p.last.Size {
		odd(Shrunk, "the device has %s, and had %s", size(v.Size), size(p.last.Size))
	}
	if p.images < enoughPast || v.New < floor {
		return
	}
	if share(p.coded, p.plain) < packs && share(v.Encoded, v.New) > packsNot {
		odd(Entropy, "the %s that are new cannot be compressed; before, such took %.0f %% of their size", size(v.New), 100*share(p.coded, p.plain))
	}
	if share(p.known, p.known+p.fresh) > knew && share(v.Known, v.Known+v.New) < knowsNot {
		odd(Dedupe, "hardly anything of the %s that changed was known; before, %.0f %% were", size(v.Known+v.New), 100*share(p.known, p.known+p.fresh))
	}
}

// remedies say what to do. All end with the acknowledgement.
var remedies = map[Kind]string{
	Tracker: "images since the last full compare may lack a write: report this, with `platter show --json` of the image",
	Changed: "an upgrade or a restore does that; so does what encrypts files for ransom. Look at the machine before you acknowledge this",
	Entropy: "encryption looks like this. Look at the machine before you acknowledge this",
	Dedupe:  "encryption, or moved data, looks like this. Look at the machine before you acknowledge this",
	Shrunk:  "a disk that was emptied looks like this. See that older images have what is wanted",
	Clock:   "set the clock, by NTP; what is kept for days and weeks goes by these dates",
}

// base is how much of the device is in use, as far as it is known.
func (p *past) base(v history.Volume) int64 {
	if p.used > 0 {
		return p.used
	}
	return v.Size
}

// now is how much is in use after an image. Where not all was read, it is what
// was in use less what became zero, at most.
func (p *past) now(v history.Volume) int64 {
	if full(v) {
		return v.Size - v.Zero
	}
	return p.used - min(v.Zero, v.Changed)
}

func share(a, b int64) float64 {
	if b <= 0 {
		return 0
	}
	return float64(a) / float64(b)
}
