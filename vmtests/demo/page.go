package main

import (
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"strings"
	"time"

	"platter/vmtests/disk"
	"platter/vmtests/qemu"
)

//go:embed page.html
var pageText string

// A figure is one of the large numbers at the head of the page.
type figure struct {
	Value, Unit, Name string
}

// writePage writes the story as one file that needs nothing else.
func writePage(path string, s *story) (err error) {
	page, err := template.New("page").Funcs(template.FuncMap{
		"size":    size,
		"seconds": func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) },
		"share":   func(p disk.Part) float64 { return 100 * float64(p.Size) / float64(s.disk.Size) },
		"add":     func(a, b int) int { return a + b },
	}).Parse(pageText)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return page.Execute(f, map[string]any{
		"When":    s.tell.start.Format("2 January 2006, 15:04"),
		"Took":    time.Since(s.tell.start),
		"Steps":   s.tell.steps,
		"Disk":    s.disk,
		"Figures": s.figures(),
		"Serial":  serialText(s.boots[qemu.UEFI].Serial),
		"NoLoop":  s.noLoop,
	})
}

func (s *story) figures() []figure {
	first, second := s.first.Image.Stats, s.second.Image.Stats
	of := func(n int64, name string) figure {
		value, unit, _ := strings.Cut(size(n), " ")
		return figure{value, unit, name}
	}
	return []figure{
		of(first.Stored+first.Overhead, "stored for the first image of "+size(s.disk.Size)),
		of(second.Stored+second.Overhead, "stored for the second"),
		of(s.clone.Image.Stats.Stored, "of data stored for a copy of the disk"),
		{fmt.Sprintf("%.1f", s.restored[1].Elapsed.Seconds()), "s", "to restore it, every byte read back"},
		{fmt.Sprintf("%.0f", s.boots[qemu.UEFI].Elapsed.Seconds()), "s", "to its login prompt, in an emulator"},
	}
}

// serialText is what the machine said, without the empty lines.
func serialText(serial string) string {
	var lines []string
	for line := range strings.Lines(serial) {
		if line = strings.TrimRight(line, " \n"); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}
