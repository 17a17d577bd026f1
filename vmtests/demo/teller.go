package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"
)

// A teller writes the story to a terminal and remembers it for the page.
type teller struct {
	out    io.Writer
	colour bool
	start  time.Time
	steps  []*told
}

// told is one step of the story.
type told struct {
	Title string
	Lines []said
	Start time.Time
	Took  time.Duration
}

// said is a line of a step; a check is one that was proven.
type said struct {
	Head  string // what it is about, in a column of its own; may be empty
	Text  string
	Check bool
	Bar   *bar
}

func newTeller(out *os.File) *teller {
	return &teller{out: out, start: time.Now(), colour: term.IsTerminal(int(out.Fd())) && os.Getenv("NO_COLOR") == ""}
}

const width = 78

// Colours of the terminal.
const (
	bold, dim, green, red = "1", "2", "32", "31"
)

func (t *teller) paint(colour, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (t *teller) open() {
	fmt.Fprintf(t.out, "\n  %s\n  %s\n", t.paint(bold, "Platter: a disk imaged, changed, restored and started"), t.paint(dim, strings.Repeat("─", width-2)))
}

func (t *teller) begin(title string) {
	t.steps = append(t.steps, &told{Title: title, Start: time.Now()})
	fmt.Fprintf(t.out, "\n  %s", t.paint(bold, fmt.Sprintf("%2d  %s", len(t.steps), title)))
}

func (t *teller) step() *told { return t.steps[len(t.steps)-1] }

func (t *teller) say(s said) { t.step().Lines = append(t.step().Lines, s) }

func (t *teller) line(format string, args ...any) {
	t.say(said{Text: fmt.Sprintf(format, args...)})
}

// row says something about a thing.
func (t *teller) row(head, format string, args ...any) {
	t.say(said{Head: head, Text: fmt.Sprintf(format, args...)})
}

// check says what a tool has proven.
func (t *teller) check(tool, format string, args ...any) {
	t.say(said{Head: tool, Text: fmt.Sprintf(format, args...), Check: true})
}

// end finishes the title, which stood alone while the step ran, with the time
// it took, and prints what there is to say.
func (t *teller) end() {
	s := t.step()
	s.Took = time.Since(s.Start)
	took := fmt.Sprintf("%.1f s", s.Took.Seconds())
	dots := strings.Repeat("·", max(3, width-8-len(s.Title)-len(took)))
	fmt.Fprintf(t.out, " %s %s\n", t.paint(dim, dots), took)
	t.print(s)
}

func (t *teller) print(s *told) {
	for _, l := range s.Lines {
		mark := " "
		if l.Check {
			mark = t.paint(green, "✓")
		}
		text := l.Text
		if l.Head != "" {
			text = fmt.Sprintf("%-14s %s", l.Head, l.Text)
		}
		fmt.Fprintf(t.out, "    %s %s\n", mark, text)
	}
}

// failed ends a step that went wrong.
func (t *teller) failed() {
	fmt.Fprintln(t.out)
	t.print(t.step())
	fmt.Fprintf(t.out, "    %s this step failed\n", t.paint(red, "✗"))
}

func (t *teller) close(page string) {
	fmt.Fprintf(t.out, "\n  %s\n  %s\n  The same as a page: %s\n\n", t.paint(dim, strings.Repeat("─", width-2)),
		t.paint(bold, fmt.Sprintf("Done in %.0f s. All that was set up for it is gone again.", time.Since(t.start).Seconds())), page)
}

// A bar is a whole made of parts.
type bar struct {
	Parts []barPart
}

type barPart struct {
	Name  string
	Bytes int64
	Share float64 // percent
	glyph string
}

// barOf tells what an image's bytes were found to be.
func barOf(b *backup) *bar {
	s := b.Image.Stats
	parts := []barPart{
		{Name: "zeros", Bytes: s.Zero, glyph: "·"},
		{Name: "unchanged", Bytes: s.Unchanged, glyph: "░"},
		{Name: "known", Bytes: s.Known, glyph: "▒"},
		{Name: "new", Bytes: s.New, glyph: "█"},
	}
	for i := range parts {
		parts[i].Share = 100 * float64(parts[i].Bytes) / float64(max(1, b.Image.Size))
	}
	return &bar{parts}
}

// String draws the bar and its legend. A part that is not empty shows.
func (b *bar) String() string {
	const cells = 40
	var line strings.Builder
	var legend []string
	for _, p := range b.Parts {
		if p.Bytes == 0 {
			continue
		}
		line.WriteString(strings.Repeat(p.glyph, max(1, int(p.Share*cells/100+0.5))))
		legend = append(legend, fmt.Sprintf("%s %s %s", p.glyph, p.Name, size(p.Bytes)))
	}
	return line.String() + "\n      " + strings.Join(legend, "  ")
}

func (t *teller) backup(b *backup) {
	s := b.Image.Stats
	drawn := barOf(b)
	t.say(said{Text: drawn.String(), Bar: drawn})
	t.line("stored %s, and %s of maps and footers, in %.2f s (%s/s)", size(s.Stored), size(s.Overhead), b.Elapsed.Seconds(), rate(b.Image.Size, b.Elapsed))
	t.line("image %s", b.Image.ID)
}

func (t *teller) restore(r *restore, target string) {
	t.line("onto %s", target)
	t.line("wrote %s, made %s zero, read all of it back, in %.2f s (%s/s)", size(r.Written), size(r.Zeroed), r.Elapsed.Seconds(), rate(r.Written+r.Zeroed, r.Elapsed))
}

func size(n int64) string { return humanize.IBytes(uint64(max(0, n))) }

func rate(n int64, d time.Duration) string {
	return size(int64(float64(n) / max(d.Seconds(), 1e-9)))
}
