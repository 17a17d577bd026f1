package main

import (
	"context"
	"fmt"
	"strings"

	"platter/block"
	"platter/block/snapshot"
	"platter/block/snapshot/reflink"
	"platter/block/snapshot/zfs"
	"platter/internal/job"
)

func runDevices(ctx context.Context, c *call, args []string) error {
	devices, err := look(ctx, args)
	if err != nil {
		return err
	}
	t := table{}
	t.row("DEVICE", "SIZE", "KIND", "NAME", "HOLDS", "VIEW", "TRACKER", "WHY")
	for _, d := range devices {
		w := ways().Look(ctx, d)
		if c.term.json {
			c.term.object("device", w)
			continue
		}
		t.row(d.Path, bytesText(d.Size), d.Kind, d.Name, contentText(d.Info), orElse(w.View, "none"), orElse(w.Tracker, "-"), wayText(w, c.term.verbose))
	}
	if !c.term.json {
		c.term.table(t)
	}
	return ctx.Err()
}

// look returns the devices named, or all of the machine.
func look(ctx context.Context, args []string) (devices []block.Device, err error) {
	if len(args) == 0 {
		if devices, err = block.Devices(); err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
	}
	for _, path := range args {
		d, err := ways().Find(ctx, path)
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	return devices, nil
}

// wayText says why a device is imaged as it is, and why not better: of ways
// that are for devices of another kind only where all is asked for.
func wayText(w job.DeviceWay, all bool) string {
	text := w.Because
	if len(w.Usage) > 0 && w.View != "" && w.View != snapshot.Direct {
		text = w.Usage[0].String() + "; " + text
	}
	if w.Cost != "" {
		text += " (" + w.Cost + ")"
	}
	for _, p := range w.NotBy {
		if all || p.Way != snapshot.Direct && concerns(p.Way, w.Kind) {
			text += "; not by " + p.Way + ": " + p.Why
		}
	}
	return text
}

// concerns reports whether a way is for devices of a kind.
func concerns(way, kind string) bool {
	logical, zvol, file := strings.HasPrefix(way, "lvm"), way == zfs.Method, way == reflink.Name
	return logical == (kind == block.KindLVM) && zvol == (kind == block.KindZvol) && file == (kind == block.KindFile)
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
