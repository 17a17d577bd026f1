package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"platter/internal/agent"
	"platter/internal/agent/history"
)

// topEvery is how often the screen is drawn.
const topEvery = time.Second

func runTop(ctx context.Context, c *call, _ []string) error {
	s, err := c.ask().Status(ctx)
	if err != nil {
		return adviseAgent(err)
	}
	v := &volumeList{history: history.In(c.opts.stateDir())}
	if c.term.json {
		c.term.object("agent", s)
		for _, line := range v.of(&s) {
			c.term.object("volume", line)
		}
		return nil
	}
	if !c.term.full {
		fmt.Fprintln(c.term, strings.Join(topText(&s, v.of(&s)), "\n"))
		return nil
	}
	screen, err := openDisplay(c.term.out)
	if err != nil {
		return fmt.Errorf("draw on the terminal: %w", err)
	}
	defer screen.close()
	tick := time.NewTicker(topEvery)
	defer tick.Stop()
	for {
		screen.draw(topText(&s, v.of(&s)))
		select {
		case <-ctx.Done():
			return nil
		case key := <-screen.keys:
			if key == 'q' {
				return nil
			}
		case <-tick.C:
		}
		if s, err = c.ask().Status(ctx); err != nil && ctx.Err() == nil {
			return adviseAgent(err)
		}
	}
}

// topText is the whole picture, line by line and harmless.
func topText(s *agent.Status, volumes []volumeLine) []string {
	running := 0
	var runs table
	runs.row("RUNS", "DOES", "DONE", "RATE", "LEFT", "STORED", "SINCE", "OF")
	for i := range s.Jobs {
		if j := &s.Jobs[i]; j.State == agent.Running {
			running++
			topRun(&runs, s, j)
		}
	}
	head := fmt.Sprintf("platter agent: %d of %s run, since %s, now %s", running, plural(len(s.Jobs), "job"), timeText(s.Begun), timeText(s.Time))
	if s.Paused != nil {
		head += ", PAUSED" + untilText(s.Paused)
	}
	lines := []string{head}
	if s.Trouble != "" {
		lines = append(lines, "cannot save what must be remembered: "+clean(s.Trouble))
	}
	if running > 0 {
		lines = append(append(lines, ""), runs.lines()...)
	}
	jobs := jobTable(s)
	lines = append(append(lines, ""), jobs.lines()...)
	if len(volumes) == 0 {
		return lines
	}
	var list table
	list.row("VOLUME", "LAST IMAGE", "AGE", "SIZE", "READ", "STORED", "TRACKER", "OUTCOME")
	for _, v := range volumes {
		list.row(v.Name, timeText(v.Time), tookText(s.Time.Sub(v.Time)), bytesText(v.Size), bytesText(v.Read), bytesText(v.Stored), v.Tracker, v.Outcome)
	}
	return append(append(lines, ""), list.lines()...)
}

func topRun(t *table, s *agent.Status, j *agent.JobStatus) {
	p := j.Run.Progress
	since := tookText(s.Time.Sub(j.Run.At))
	if p == nil {
		t.row(j.Name, j.Kind, "", "", "", "", since, strings.Join(append(j.Devices, j.Volumes...), " "))
		return
	}
	done, left := bytesText(p.Done), ""
	if p.Total > 0 {
		done = fmt.Sprintf("%5.1f %%", 100*float64(p.Done)/float64(p.Total))
	}
	if p.Left > 0 {
		left = tookText(time.Duration(p.Left) * time.Second)
	}
	t.row(j.Name, strings.TrimSpace(j.Kind+" "+p.Phase), done, bytesText(p.Rate)+"/s", left, bytesText(p.Stored), since, p.Subject)
}

// lines are the table lined up, without ends of lines.
func (b *table) lines() []string {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
	for _, row := range b.rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	_ = w.Flush() // into memory
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return lines
}

// A volumeLine is the last image that this machine made of a volume.
type volumeLine struct {
	history.Volume
	Outcome string `json:"outcome"` // of the run that made it
}

// A volumeList reads the record of runs again when a run has begun or ended.
type volumeList struct {
	history *history.History
	seen    string
	list    []volumeLine
}

func (v *volumeList) of(s *agent.Status) []volumeLine {
	var seen strings.Builder
	for i := range s.Jobs {
		j := &s.Jobs[i]
		fmt.Fprint(&seen, j.Name, j.State)
		if j.Last != nil {
			fmt.Fprint(&seen, j.Last.End.UnixNano())
		}
	}
	if seen.String() != v.seen {
		v.seen, v.list = seen.String(), v.read()
	}
	return v.list
}

// read returns what the record says; nothing where it may not be read.
func (v *volumeList) read() (list []volumeLine) {
	runs, err := v.history.Runs(history.Filter{Kind: history.Backup})
	if err != nil {
		return nil
	}
	at := map[string]int{}
	for i := range runs {
		for _, volume := range runs[i].Volumes {
			if volume.Image == "" {
				continue
			}
			line := volumeLine{volume, string(runs[i].Outcome)}
			if n, known := at[volume.Name]; known {
				list[n] = line
				continue
			}
			at[volume.Name] = len(list)
			list = append(list, line)
		}
	}
	slices.SortFunc(list, func(a, b volumeLine) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// cut shortens a line to a number of columns.
func cut(line string, columns int) string {
	if utf8.RuneCountInString(line) <= columns {
		return line
	}
	return string([]rune(line)[:max(columns, 0)])
}

// fit is what of a text a screen has room for.
func fit(lines []string, columns, rows int) string {
	if len(lines) > rows {
		more := len(lines) - rows + 1
		lines = append(lines[:max(rows-1, 0):max(rows-1, 0)], fmt.Sprintf("and %s", plural(more, "more line")))
	}
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(cut(line, columns) + "\x1b[K")
	}
	return b.String() + "\x1b[J"
}
