package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"platter/block"
	"platter/block/qmp"
	"platter/block/snapshot"
)

// scheme begins the names of drives: qemu:SOCKET or qemu:SOCKET:DRIVE.
const scheme = "qemu:"

// A drive is a disk of a machine as QEMU describes it.
type drive struct {
	name   string // that people know it by
	node   string // of QEMU's block layer
	format string // such as qcow2
	file   string
	size   int64 // bytes
	sector int
	// bitmaps are those of the node.
	bitmaps []bitmap
}

type bitmap struct {
	Name         string
	Granularity  int64
	Recording    bool
	Persistent   bool
	Inconsistent bool
}

// place takes a name apart. The socket is a path without colons.
func place(name string) (socket, drive string, ok bool) {
	rest, ok := strings.CutPrefix(name, scheme)
	if !ok {
		return "", "", false
	}
	socket, drive, _ = strings.Cut(rest, ":")
	return socket, drive, true
}

// blockInfo is an element of what query-block returns.
type blockInfo struct {
	Device    string
	Qdev      string
	Removable bool
	Inserted  *struct {
		NodeName     string `json:"node-name"`
		RO           bool
		Drv          string
		File         string
		DirtyBitmaps []bitmap `json:"dirty-bitmaps"`
		Image        struct {
			VirtualSize int64 `json:"virtual-size"`
		}
	}
}

// drives lists the disks of a machine, without media that come and go.
func drives(ctx context.Context, m *qmp.Client) ([]drive, error) {
	var all []blockInfo
	if err := m.Do(ctx, "query-block", nil, &all); err != nil {
		return nil, err
	}
	var list []drive
	for _, b := range all {
		if b.Inserted == nil || b.Removable || strings.HasPrefix(b.Device, "pflash") {
			continue
		}
		in := b.Inserted
		// A device without an ID is named by where it is in the machine, the
		// last part of which may be that of its backend.
		qdev := strings.TrimSuffix(b.Qdev, "/virtio-backend")
		d := drive{
			name: first(b.Device, usable(filepath.Base(qdev)), in.NodeName), node: in.NodeName, format: in.Drv, file: in.File,
			size: in.Image.VirtualSize, sector: 512, bitmaps: in.DirtyBitmaps,
		}
		list = append(list, d)
	}
	return list, nil
}

// usable is a name of a device that someone has given it.
func usable(name string) string {
	if name == "." || strings.HasPrefix(name, "device[") {
		return ""
	}
	return name
}

func first(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

// choose returns the drive of a name, or the only one there is.
func choose(list []drive, name string) (*drive, error) {
	var names []string
	var found *drive
	for i := range list {
		d := &list[i]
		names = append(names, d.name)
		if name != "" && (name == d.name || name == d.node) {
			return d, nil
		}
		found = d
	}
	switch {
	case len(list) == 0:
		return nil, errors.New("the machine has no disk")
	case name != "":
		return nil, fmt.Errorf("the machine has no disk %q, only %s", name, strings.Join(names, ", "))
	case len(list) > 1:
		return nil, fmt.Errorf("the machine has several disks: name one of %s after another colon", strings.Join(names, ", "))
	}
	return found, nil
}

// look connects to a machine and finds a drive of it.
func look(ctx context.Context, name string) (*qmp.Client, *drive, error) {
	socket, wanted, ok := place(name)
	if !ok || socket == "" {
		return nil, nil, fmt.Errorf("%s: want qemu:SOCKET or qemu:SOCKET:DRIVE", name)
	}
	m, err := qmp.Dial(ctx, socket)
	if err != nil {
		return nil, nil, err
	}
	list, err := drives(ctx, m)
	if err == nil {
		var d *drive
		if d, err = choose(list, wanted); err == nil {
			return m, d, nil
		}
	}
	return nil, nil, errors.Join(fmt.Errorf("%s: %w", name, err), m.Close())
}

// unfitRunes are not for the names of volumes.
var unfitRunes = regexp.MustCompile(`[^A-Za-z0-9._+-]+`)

func plain(s string) string { return strings.Trim(unfitRunes.ReplaceAllString(s, "-"), "-") }

// describe returns what is known of a drive before it is read.
func describe(ctx context.Context, m *qmp.Client, name string, d *drive) (block.Device, error) {
	var machine struct{ Name string }
	var id struct{ UUID string }
	if err := errors.Join(m.Do(ctx, "query-name", nil, &machine), m.Do(ctx, "query-uuid", nil, &id)); err != nil {
		return block.Device{}, err
	}
	socket, _, _ := place(name)
	called := first(plain(machine.Name), plain(strings.TrimSuffix(filepath.Base(socket), filepath.Ext(socket))))
	info := block.Info{
		Path: name, Kind: block.KindVM, Size: d.size, LogicalSector: d.sector, PhysicalSector: d.sector,
		Name: "qemu/" + called + "/" + plain(d.name), Model: "QEMU " + d.format,
	}
	if none := "00000000-0000-0000-0000-000000000000"; id.UUID != none && id.UUID != "" {
		info.Identity = "qemu:" + id.UUID + "/" + d.name
	}
	return block.Device{Info: info, How: block.Live, Why: "a virtual machine writes to it"}, nil
}

// Look describes a drive of a running machine. Other names are not its business.
func (Provider) Look(ctx context.Context, name string) (d block.Device, mine bool, err error) {
	if _, _, mine = place(name); !mine {
		return d, false, nil
	}
	m, found, err := look(ctx, name)
	if err != nil {
		return d, true, err
	}
	defer m.Close()
	d, err = describe(ctx, m, name, found)
	return d, true, err
}

var _ snapshot.Looker = Provider{}
