package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"platter/internal/bench/workload"
)

// A report is what a whole run found.
type report struct {
	tools   []tool
	samples map[string]map[string][]sample
	huge    *hugeFigures // nil if not measured
	many    *manyFigures // the same
	rounds  int
	facts   []string // machine and versions, one line each
	when    time.Time
}

func sorted(all []sample, of func(sample) time.Duration) []time.Duration {
	var d []time.Duration
	for _, s := range all {
		d = append(d, of(s))
	}
	slices.Sort(d)
	return d
}

func wall(s sample) time.Duration { return s.Wall }
func cpu(s sample) time.Duration  { return s.CPU }

// wallOf returns the median wall time of a step; 0 if it was not measured.
func (r *report) wallOf(tool, step string) time.Duration {
	all := r.samples[tool][step]
	if len(all) == 0 {
		return 0
	}
	return median(sorted(all, wall))
}

// storedAfter returns what the repository held after a step: the median.
func (r *report) storedAfter(tool, step string) int64 {
	var all []int64
	for _, s := range r.samples[tool][step] {
		all = append(all, s.Stored)
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}

func (r *report) peak(tool string) (n int64) {
	for _, all := range r.samples[tool] {
		for _, s := range all {
			n = max(n, s.Peak)
		}
	}
	return n
}

// A target is a figure to be reached.
type target struct {
	what    string
	got     string
	want    string
	reached bool
}

// targets compares what was measured with what is wanted.
func (r *report) targets() []target {
	var all []target
	ratio := func(what string, got, base time.Duration, limit float64, of string) {
		if got == 0 || base == 0 {
			return
		}
		q := got.Seconds() / base.Seconds()
		all = append(all, target{what, fmt.Sprintf("%.2f × %s", q, of), fmt.Sprintf("≤ %.2f", limit), q <= limit})
	}
	size := func(what string, got, limit int64) {
		if got == 0 || limit == 0 {
			return
		}
		all = append(all, target{what, fmt.Sprintf("%d MiB", got/mib), fmt.Sprintf("≤ %d MiB", limit/mib), got <= limit})
	}
	const p, b = "platter", "borg"
	ratio("full backup, wall", r.wallOf(p, full), r.wallOf(b, full), 0.65, b)
	ratio("unchanged disk, compared in full, wall", r.wallOf(p, unchanged), r.wallOf(b, unchanged), 0.4, b)
	ratio("second night, compared in full, wall", r.wallOf(p, second), r.wallOf(b, second), 0.5, b)
	const remote, sealed = "platter s3", "platter encrypted"
	ratio("full backup into an encrypted repository, wall", r.wallOf(sealed, full), r.wallOf(p, full), 1/0.9, "the plain one")
	ratio("restore from an encrypted repository and reading back, wall", r.wallOf(sealed, restoreRB), r.wallOf(p, restoreRB), 1/0.9, "the plain one")
	ratio("full backup into a bucket, wall", r.wallOf(remote, full), r.wallOf(p, full), 1.25, "the folder")
	ratio("restore from a bucket and reading back, wall", r.wallOf(remote, restoreRB), r.wallOf(p, restoreRB), 1.25, "the folder")
	ratio("full backup into a bucket, wall", r.wallOf(remote, full), r.wallOf("restic s3", full), 1, "restic")
	ratio("restore from a bucket, wall", r.wallOf(remote, restore), r.wallOf("restic s3", restore), 1, "restic")
	peer, fastest := r.fastestRestore()
	ratio("restore to a sparse file, wall", r.wallOf(p, restore), fastest, 0.3, peer)
	size("stored for the first image", r.storedAfter(p, full), r.storedAfter(b, full))
	size("stored by the second night, all metadata included", r.storedAfter(p, second)-r.storedAfter(p, unchanged), 110*mib)
	if n := r.storedAfter(b, second) - r.storedAfter(b, unchanged); n > 0 && len(all) > 0 {
		all[len(all)-1].got += fmt.Sprintf(" (%s %d)", b, n/mib)
	}
	size("peak memory, all steps", r.peak(p), 256*mib)
	if h := r.huge; h != nil {
		size("peak memory, 8 TiB disk with 4 GiB of data", max(h.Full.Peak, h.Second.Peak), 256*mib)
		size("read of it on its second night, in whole blocks of 64 KiB", h.Second.Device, workload.HugeBlocks(64<<10))
	}
	if m := r.many; m != nil {
		limit := 2 * time.Minute
		all = append(all, target{"catalog rebuild, ten million blocks", fmt.Sprintf("%.1f s", m.Rebuild.Wall.Seconds()), "≤ 120 s", m.Rebuild.Wall <= limit})
		size("its peak memory", m.Rebuild.Peak, 256*mib)
		size("peak memory, 1 GiB restored of it without a catalog", m.Cold.Peak, 256*mib)
	}
	return all
}

// fastestRestore names the deduplicating peer that restores fastest.
func (r *report) fastestRestore() (name string, best time.Duration) {
	for _, t := range r.tools {
		for _, step := range []string{restore, restoreSp} {
			d := r.wallOf(t.name, step)
			if t.dedupes && !strings.HasPrefix(t.name, "platter") && !t.server && d > 0 && (best == 0 || d < best) {
				name, best = t.name, d
			}
		}
	}
	return name, best
}

// markdown writes the report.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s, %d rounds, the tools in turn.\n\n", r.when.Format("2006-01-02 15:04 MST"), r.rounds)
	for _, f := range r.facts {
		fmt.Fprintf(&b, "- %s\n", f)
	}
	b.WriteString("\n### Reached\n\n| figure | measured | wanted | reached |\n|---|---|---|---|\n")
	for _, t := range r.targets() {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t.what, t.got, t.want, map[bool]string{true: "yes", false: "**no**"}[t.reached])
	}
	b.WriteString("\n### Times and sizes\n\n" +
		"Wall seconds are medians; CPU is user and system seconds of the process; × is platter's wall time as a share of the tool's at the same step.\n" +
		"\"Others\" is CPU that was used by anything else meanwhile, the kernel's write-back among it: rows with much of it are less sure.\n\n" +
		"| step | tool | wall s | min … max | CPU s | peak MiB | repository MiB | × | others s |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, step := range []string{full, unchanged, second, restore, restoreSp, restoreRB} {
		for _, t := range r.tools {
			r.row(&b, t.name, step)
		}
	}
	if h := r.huge; h != nil {
		b.WriteString("\n### A huge, nearly empty disk\n\n8 TiB, sparse, with 4 GiB of data in 4096 places; one place in a hundred is rewritten for the second night.\n\n" +
			"| night | wall s | CPU s | peak MiB | read of the disk MiB | repository MiB |\n|---|---|---|---|---|---|\n")
		for i, s := range []sample{h.Full, h.Second} {
			fmt.Fprintf(&b, "| %s | %.1f | %.1f | %d | %d | %d |\n", []string{"first", fmt.Sprintf("second (%d MiB changed)", h.Changed/mib)}[i],
				s.Wall.Seconds(), s.CPU.Seconds(), s.Peak/mib, s.Device/mib, s.Stored/mib)
		}
	}
	if m := r.many; m != nil {
		fmt.Fprintf(&b, "\n### A repository of %.1f million blocks\n\n| run | wall s | CPU s | peak MiB | read MiB |\n|---|---|---|---|---|\n", float64(workload.ManyBlocks)/1e6)
		for i, s := range []sample{m.Rebuild, m.Cold} {
			fmt.Fprintf(&b, "| %s | %.1f | %.1f | %d | %d |\n", []string{"catalog rebuild", "restore of 1 GiB without a catalog"}[i],
				s.Wall.Seconds(), s.CPU.Seconds(), s.Peak/mib, s.Read/mib)
		}
	}
	b.WriteString("\n### Commands\n\n| tool | step | command |\n|---|---|---|\n")
	p := places{first: "NIGHT1", second: "NIGHT2", repo: "DIR/repo", out: "DIR/restored", url: "http://127.0.0.1:PORT/" + bucket}
	for _, t := range r.tools {
		for _, c := range t.start(p) {
			if c.args[0] != "rm" && c.args[0] != "mkdir" {
				fmt.Fprintf(&b, "| %s | start | `%s` |\n", t.name, c.line())
			}
		}
		for _, s := range t.steps {
			fmt.Fprintf(&b, "| %s | %s | `%s` |\n", t.name, s.name, s.command(p).line())
		}
	}
	return b.String()
}

func (r *report) row(b *strings.Builder, tool, step string) {
	all := r.samples[tool][step]
	if len(all) == 0 {
		return
	}
	w, c := sorted(all, wall), sorted(all, cpu)
	foreign := sorted(all, func(s sample) time.Duration { return s.Foreign })
	var peak int64
	for _, s := range all {
		peak = max(peak, s.Peak)
	}
	mine := step
	if step == restoreSp || step == restoreRB {
		mine = restore
	}
	share := ""
	if base := r.wallOf("platter", mine); tool != "platter" && base > 0 {
		share = fmt.Sprintf("%.2f", base.Seconds()/median(w).Seconds())
	}
	fmt.Fprintf(b, "| %s | %s | %.2f | %.2f … %.2f | %.2f | %d | %d | %s | %.1f |\n", step, tool, median(w).Seconds(), w[0].Seconds(), w[len(w)-1].Seconds(),
		median(c).Seconds(), peak/mib, r.storedAfter(tool, step)/mib, share, median(foreign).Seconds())
}

// machineFacts describes where the figures were taken.
func machineFacts(ctx context.Context, dir string) []string {
	said := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(out))
	}
	memory := "unknown"
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kb int64
		fmt.Sscanf(string(b), "MemTotal: %d", &kb)
		memory = fmt.Sprintf("%d MiB", kb>>10)
	}
	model := "processor unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(b), "model name")
		line, _, _ := strings.Cut(rest, "\n")
		model = strings.TrimSpace(strings.TrimLeft(line, "\t :"))
	}
	return []string{
		fmt.Sprintf("machine: %d × %s, %s of memory, kernel %s", runtime.NumCPU(), model, memory, said("uname", "-r")),
		"repository, disks and output on " + said("stat", "-f", "-c", "%T", dir),
		"disks: Debian server, 8 GiB, 46 % full (`internal/bench/workload`), read from the page cache; free memory was filled with clean pages before each run, files were written back first",
	}
}

// Markers between which a page holds the last report.
const (
	beginMark = "<!-- figures: written by make bench -->"
	endMark   = "<!-- end of figures -->"
)

// replaceSection puts text between the markers of a page, which is made if it
// is not there.
func replaceSection(path, text string) error {
	page, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		page, err = []byte("# Benchmarks\n\n"+beginMark+"\n"+endMark+"\n"), nil
	}
	if err != nil {
		return err
	}
	from, to := bytes.Index(page, []byte(beginMark)), bytes.Index(page, []byte(endMark))
	if from < 0 || to < from {
		return fmt.Errorf("write figures to %s: the page lacks the lines %q and %q", path, beginMark, endMark)
	}
	out := string(page[:from]) + beginMark + "\n\n" + strings.TrimSpace(text) + "\n\n" + string(page[to:])
	return os.WriteFile(path, []byte(out), 0o644)
}
