package main

import (
	"context"
	"fmt"
	"strings"

	"platter/block"
)

func runDevices(_ context.Context, c *call, _ []string) error {
	devices, err := block.Devices()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	if c.term.json {
		for _, d := range devices {
			c.term.object("device", d)
		}
		return nil
	}
	t := table{}
	t.row("DEVICE", "SIZE", "KIND", "NAME", "HOLDS", "IMAGE", "WHY")
	for _, d := range devices {
		t.row(d.Path, bytesText(d.Size), d.Kind, d.Name, contentText(d.Info), d.How, d.Why)
	}
	c.term.table(t)
	return nil
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
