package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"platter/image"
	"platter/image/repo"
	"platter/internal/job"
	"platter/internal/quantity"
)

// An imageLine is one image of `images --json`. Its keys are a promise to
// scripts: more may be added, and none of them is called id.
type imageLine struct {
	ID         string    `json:"id"`
	Volume     string    `json:"volume"`
	Seq        uint64    `json:"seq"`
	Time       time.Time `json:"time"`
	Finished   time.Time `json:"finished"`
	Size       int64     `json:"size"` // bytes of the device
	Host       string    `json:"host"`
	Set        string    `json:"set,omitempty"`
	Tags       []string  `json:"tags,omitempty"`
	Device     string    `json:"device"`
	BlockSize  int       `json:"block_size"`
	Parent     string    `json:"parent,omitempty"`
	Tracker    string    `json:"tracker"`
	Fuzzy      bool      `json:"fuzzy"`
	Unreadable int64     `json:"unreadable_bytes"`
	Warnings   int       `json:"warnings"`
	Read       int64     `json:"read_bytes"`
	Unchanged  int64     `json:"unchanged_bytes"`
	New        int64     `json:"new_bytes"`
	Stored     int64     `json:"stored_bytes"` // with its share of maps and footers

	Pins     []repo.Pin  `json:"pins,omitempty"`
	Verified *repo.Check `json:"verified,omitempty"` // what verifications found, and when
}

func lineOf(m *image.Manifest) imageLine {
	l := imageLine{
		ID: m.ID.String(), Volume: m.Volume, Seq: m.Seq, Time: m.Time, Finished: m.Done, Size: m.Size, Host: m.Host,
		Set: m.Set, Tags: m.Tags, Device: m.Device.Path, BlockSize: m.BlockSize, Tracker: m.Tracker.Name,
		Fuzzy: m.Fuzzy, Unreadable: unreadable(m), Warnings: len(m.Warnings),
		Read: m.Stats.Read, Unchanged: m.Stats.Unchanged, New: m.Stats.New, Stored: m.Stats.Stored + m.Stats.Overhead,
	}
	if m.Tracker.Parent != (image.ImageID{}) {
		l.Parent = m.Tracker.Parent.String()
	}
	return l
}

// imageNotes are the pins and verifications of images, as far as they can be
// read: to show them.
func (c *call) imageNotes(ctx context.Context, env *job.Env) *job.Notes {
	n, err := job.ReadNotes(ctx, env)
	if err != nil {
		c.term.notef("platter: pins and verifications are shown only in part: %s", oneLine(ctx, err))
	}
	return n
}

func runImages(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	if c.opts.deleted {
		return c.listDeleted(ctx, env, strings.Join(args, ""))
	}
	list, leftOut, err := job.Images(ctx, env, strings.Join(args, ""))
	if err != nil {
		return err
	}
	switch {
	case c.term.json:
		known := c.imageNotes(ctx, env)
		for _, m := range list {
			c.term.object("image", lineOf(m).with(known.Of(m)))
		}
	case len(list) == 0:
		c.term.notef("no images")
	default:
		c.term.table(imageTable(list, c.imageNotes(ctx, env)))
	}
	absent, err := job.Withheld(ctx, env)
	if err == nil {
		for _, a := range absent {
			if c.term.json {
				c.term.object("absent_image", a)
			}
		}
		err = withheld("images", absent)
	}
	if leftOut > 0 {
		err = errors.Join(err, advise(incompletef("images: %s could not be read and are not listed", plural(leftOut, "manifest")), "see what that means with: platter verify"))
	}
	return err
}

func imageTable(list []*image.Manifest, known *job.Notes) (t table) {
	t.row("ID", "TIME", "VOLUME", "SIZE", "READ", "STORED", "NOTES")
	several := severalLines(list)
	for _, m := range list {
		notes := append(notes(m), standing(known.Of(m))...)
		if several[m.Volume] {
			notes = append(notes, "by "+writerText(m))
		}
		t.row(m.ID.String()[:shortID], timeText(m.Time), m.Volume, bytesText(m.Size), bytesText(m.Stats.Read),
			bytesText(m.Stats.Stored+m.Stats.Overhead), strings.Join(notes, ", "))
	}
	return t
}

// severalLines returns the volumes of which several writers made images: one of
// them may not be who it seems to be.
func severalLines(list []*image.Manifest) map[string]bool {
	first, several := map[string]string{}, map[string]bool{}
	for _, m := range list {
		if line, ok := first[m.Volume]; ok && line != m.Line() {
			several[m.Volume] = true
		}
		first[m.Volume] = m.Line()
	}
	return several
}

// writerText names who made an image, as after VOLUME%.
func writerText(m *image.Manifest) string {
	if m.WriteOnly {
		return fmt.Sprintf("writer %.8s, who cannot read", m.Writer)
	}
	return fmt.Sprintf("writer %.8s", m.Writer)
}

func (l imageLine) with(known *job.ImageNotes) imageLine {
	l.Pins, l.Verified = known.Pins, known.Check
	return l
}

// standing says at a glance how well an image is kept.
func standing(known *job.ImageNotes) (list []string) {
	pinned := ""
	for _, p := range known.Pins {
		if p.Hold {
			pinned = "legal hold"
		} else if pinned == "" {
			pinned = "pinned"
		}
	}
	if pinned != "" {
		list = append(list, pinned)
	}
	switch c := known.Check; {
	case c == nil:
	case c.Verified():
		list = append(list, "verified "+c.Data.Local().Format(time.DateOnly))
	case c.Damaged.After(c.Structure):
		list = append(list, "damaged")
	}
	if c := known.Check; c != nil && c.Boot != nil {
		list = append(list, badge(c.Boot))
	}
	return list
}

// listDeleted lists images that were pruned, those that may come back.
func (c *call) listDeleted(ctx context.Context, env *job.Env, volume string) error {
	list, err := job.ListDeleted(ctx, env, volume)
	if err != nil {
		return err
	}
	var t table
	t.row("ID", "TIME", "VOLUME", "SIZE", "DELETED", "REASON")
	gone := 0
	for _, d := range list {
		switch {
		case c.term.json:
			c.term.object("deleted_image", struct {
				imageLine
				Deleted    time.Time `json:"deleted"`
				Reason     string    `json:"reason"`
				Restorable bool      `json:"restorable"`
			}{lineOf(d.Image), d.Time, d.Reason, d.Restorable})
		case d.Restorable:
			t.row(d.Image.ID.String()[:shortID], timeText(d.Image.Time), d.Image.Volume, bytesText(d.Image.Size), timeText(d.Time), d.Reason)
		default:
			gone++
		}
	}
	if c.term.json {
		return nil
	}
	if gone < len(list) {
		c.term.table(t)
		c.term.summaryf("bring one back, while gc has not deleted what it needs, with: platter undelete ID\n")
	}
	c.term.summaryf("%s may come back, %d are gone for good\n", plural(len(list)-gone, "deleted image"), gone)
	return nil
}

func runShow(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	m, err := job.Find(ctx, env, args[0])
	if err != nil {
		if set, e := job.FindSet(ctx, env, args[0]); e == nil {
			return c.showSet(ctx, env, set)
		}
		return err
	}
	if c.opts.picture != "" {
		png, err := job.Screen(ctx, env, m)
		if err == nil {
			err = os.WriteFile(c.opts.picture, png, 0o644)
		}
		if err != nil {
			return err
		}
	}
	known := c.imageNotes(ctx, env).Of(m)
	if c.term.json {
		l := imageLine{}.with(known)
		c.term.object("image", struct {
			*image.Manifest
			Pins     []repo.Pin  `json:"pins,omitempty"`
			Verified *repo.Check `json:"verified,omitempty"`
		}{m, l.Pins, l.Verified})
		return nil
	}
	t := describe(m)
	describeNotes(&t, known)
	c.term.table(t)
	return nil
}

// showSet lists what one run made of several devices.
func (c *call) showSet(ctx context.Context, env *job.Env, set []*image.Manifest) error {
	known := c.imageNotes(ctx, env)
	if c.term.json {
		for _, m := range set {
			c.term.object("image", lineOf(m).with(known.Of(m)))
		}
		return nil
	}
	c.term.printf("set %s: %s, see each with: platter show ID\n", set[0].Set, plural(len(set), "image"))
	c.term.table(imageTable(set, known))
	return nil
}

func describeNotes(t *table, known *job.ImageNotes) {
	for _, p := range known.Pins {
		t.row("pinned", fmt.Sprintf("%s (by %s, %s)", p.String(), p.By, timeText(p.Time)))
	}
	for _, p := range known.Ended {
		t.row("was pinned", p.String())
	}
	c := known.Check
	if c == nil {
		t.row("verified", "never")
		return
	}
	if b := c.Boot; b != nil {
		t.row("started", bootText(b))
	}
	if c.Damaged.After(c.Data) {
		t.row("verified", "damage was found on "+timeText(c.Damaged))
	}
	if !c.Data.IsZero() {
		t.row("verified", "every byte, on "+timeText(c.Data))
	}
	if c.Structure.After(c.Data) {
		t.row("verified", "structure, on "+timeText(c.Structure))
	}
}

// badge says at a glance what came of starting an image.
func badge(b *repo.Boot) string {
	text := map[string]string{"booted": "booted", "failed": "boot failed"}[b.Verdict]
	if text == "" {
		text = "boot unproven"
	}
	return text + " " + b.Time.Local().Format(time.DateOnly)
}

// bootText is all about the start of an image.
func bootText(b *repo.Boot) string {
	processor := "with KVM"
	if !b.KVM {
		processor = "emulated"
	}
	return fmt.Sprintf("%s after %s on %s, by %s from %s, %s: %s", clean(b.Verdict), tookText(b.Elapsed), timeText(b.Time),
		clean(b.Firmware), clean(b.Bus), processor, clean(b.Reason))
}

// describe is all about an image, a fact to a row.
func describe(m *image.Manifest) table {
	var t table
	t.row("image", m.ID)
	t.row("volume", fmt.Sprintf("%s, number %d", m.Volume, m.Seq))
	if m.Set != "" {
		t.row("set", m.Set)
	}
	t.row("taken", fmt.Sprintf("%s on %s, in %s, by platter %s", timeText(m.Time), m.Host, tookText(m.Done.Sub(m.Time)), m.Tool))
	if strings.Trim(m.Writer, "0") != "" {
		t.row("made by", writerText(m))
	}
	if len(m.Tags) > 0 {
		t.row("tags", strings.Join(m.Tags, ", "))
	}
	t.row("size", fmt.Sprintf("%s (%d bytes), %s of %s", bytesText(m.Size), m.Size, plural(m.Blocks(), "block"), quantity.FormatSize(int64(m.BlockSize))))
	t.row("compared", trackingText(m))
	for _, p := range m.Tracker.Passed {
		t.row("not by "+p.Way, p.Why)
	}
	s := m.Stats
	t.row("read", fmt.Sprintf("%s; zero %s, free %s, unchanged %s, known %s, new %s", bytesText(s.Read), bytesText(s.Zero), bytesText(s.Free), bytesText(s.Unchanged), bytesText(s.Known), bytesText(s.New)))
	for _, text := range freeTexts(m) {
		t.row("free in", text)
	}
	if text := auditText(m); text != "" {
		t.row("and to prove", text)
	}
	if text := changesText(m); text != "" {
		t.row("differs in", text)
	}
	t.row("stored", fmt.Sprintf("%s, and %s for maps and footers", bytesText(s.Stored), bytesText(s.Overhead)))
	if m.Fuzzy {
		t.row("fuzzy", "the device was written to while it was read")
	}
	for _, e := range m.Unreadable {
		t.row("unreadable", fmt.Sprintf("%s at %d; the image holds zeros there", bytesText(e.Length), e.Offset))
	}
	for _, w := range m.Warnings {
		t.row("warning", w)
	}
	describeDevice(&t, m.Device)
	return t
}

func runDiff(ctx context.Context, c *call, args []string) error {
	env, done, err := c.reading(ctx)
	if err != nil {
		return err
	}
	defer done()
	d, err := job.Diff(ctx, env, args[0], args[1])
	if err != nil {
		return err
	}
	if c.term.json {
		for _, e := range d.Extents {
			c.term.object("extent", e)
		}
		c.term.object("summary", struct {
			Extents int   `json:"extents"`
			Bytes   int64 `json:"bytes"`
		}{len(d.Extents), d.Bytes})
		return nil
	}
	var t table
	if len(d.Extents) > 0 {
		t.row("OFFSET", "LENGTH")
	}
	for _, e := range d.Extents {
		t.row(e.Offset, e.Length)
	}
	c.term.table(t)
	c.term.summaryf("%s in %s differ\n", bytesText(d.Bytes), plural(len(d.Extents), "extent"))
	return nil
}
