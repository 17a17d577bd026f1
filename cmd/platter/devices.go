package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"platter/block"
)

// sysBlock is where the kernel lists block devices.
const sysBlock = "/sys/class/block"

// A deviceLine is one device of `devices --json`.
type deviceLine struct {
	block.Info
	Usage   []block.Usage `json:"usage,omitempty"`
	Problem string        `json:"problem,omitempty"` // why it cannot be read; then little else is known
}

func runDevices(ctx context.Context, c *call, _ []string) error {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	t := table{}
	t.row("DEVICE", "SIZE", "KIND", "NAME", "HOLDS", "IN USE")
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d := describeBlock(e.Name())
		switch {
		case d.Size == 0: // an empty drive, or a loop device with nothing attached
		case c.term.json:
			c.term.object("device", d)
		case d.Problem != "":
			t.row(d.Path, bytesText(d.Size), "", "", "", d.Problem)
		default:
			t.row(d.Path, bytesText(d.Size), d.Kind, d.Name, contentText(d.Info), usageText(d.Usage))
		}
	}
	if !c.term.json {
		c.term.table(t)
	}
	return nil
}

// describeBlock reads what a device says of itself. To be looked at, it may be
// in use.
func describeBlock(name string) deviceLine {
	path := filepath.Join("/dev", strings.ReplaceAll(name, "!", "/"))
	d := deviceLine{Info: block.Info{Path: path, Size: sysSize(name)}}
	if d.Size == 0 {
		return d
	}
	src, err := block.Open(path, block.OpenOptions{Live: true})
	if err == nil {
		d.Info = src.Info()
		d.Usage, err = block.InUse(path)
		err = errors.Join(err, src.Close())
	}
	if err != nil {
		d.Problem = err.Error()
	}
	return d
}

// sysSize is the size of a device in bytes as the kernel tells anybody.
func sysSize(name string) int64 {
	text, err := os.ReadFile(filepath.Join(sysBlock, name, "size"))
	if err != nil {
		return 0
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return sectors * 512
}

// contentText says in a few words what is on a device.
func contentText(d block.Info) string {
	if d.Table == nil {
		return d.Content
	}
	text := d.Table.Type
	for _, p := range d.Table.Partitions {
		text += fmt.Sprintf(" %d:%s", p.Number, orElse(p.Content, "?"))
	}
	return text
}

func usageText(list []block.Usage) string {
	var words []string
	for _, u := range list {
		words = append(words, u.String())
	}
	return strings.Join(words, ", ")
}

// describeDevice adds all about a device, a fact to a row.
func describeDevice(t *table, d block.Info) {
	t.row("device", strings.Join(strings.Fields(fmt.Sprintf("%s, %s %s", d.Path, d.Kind, d.Model)), " "))
	if d.Serial != "" || d.WWN != "" {
		t.row("", strings.TrimSpace("serial "+orElse(d.Serial, "unknown")+" "+d.WWN))
	}
	t.row("sectors", fmt.Sprintf("%d bytes logical, %d physical", d.LogicalSector, d.PhysicalSector))
	if d.Content != "" {
		t.row("holds", d.Content)
	}
	if d.Firmware != "" {
		t.row("boots by", d.Firmware)
	}
	if d.Table == nil {
		return
	}
	t.row("table", d.Table.Type+" "+d.Table.ID)
	for _, p := range d.Table.Partitions {
		words := fmt.Sprintf("%s at %d, %s %s", bytesText(p.Length), p.Offset, orElse(p.Content, "unknown content"), p.Name)
		t.row(fmt.Sprintf("partition %d", p.Number), strings.TrimSpace(words))
	}
}
