// Package lvm takes still views of logical volumes: snapshots in the pool of a
// thin volume, and classic ones with a room of their own for others.
//
// Snapshots are named platter-ID and carry tags that say for whom and by which
// process they were taken. What LVM knows is asked of LVM's tools each time;
// this package remembers nothing.
package lvm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
	"platter/block/snapshot"
)

// A Volume is a logical volume as LVM describes it.
type Volume struct {
	VG, VGUUID       string
	Name             string // hidden ones without the brackets around it
	UUID             string
	Kind             string // linear, striped, thin, thin-pool, raid1, …
	Size             int64  // bytes
	Pool, PoolUUID   string // of a thin volume
	ThinID           int    // of a thin volume, within its pool
	Origin           string // of a snapshot
	OriginUUID       string
	Metadata         string  // of a pool: its hidden volume's name
	MetadataUUID     string  // and UUID
	Transaction      string  // of a pool
	DataFull         float64 // percent, of a pool or a classic snapshot
	MetadataFull     float64 // percent, of a pool
	Health           byte    // the ninth letter of LVM's attributes; '-' is well
	Tags             []string
	Hidden           bool
	Merging          bool  // into its origin
	Seqno            int64 // of the group: one more with each change to any of its volumes
	free, extentSize int64
}

// Path is VG/NAME, which LVM's tools take.
func (v *Volume) Path() string { return v.VG + "/" + v.Name }

// Device is the path of a device-mapper device of the volume; layer is "" for
// itself, or such as "cow" for a part of it.
func (v *Volume) Device(layer string) string { return "/dev/mapper/" + v.mapped(layer) }

// mapped is the device-mapper's name of the volume: hyphens are doubled.
func (v *Volume) mapped(layer string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	name := double(v.VG) + "-" + double(v.Name)
	if layer != "" {
		name += "-" + layer
	}
	return name
}

// columns are what is asked of lvs, in the names that it gives them.
const columns = "vg_name,vg_uuid,vg_free,vg_extent_size,lv_name,lv_uuid,segtype,lv_size,pool_lv,pool_lv_uuid,thin_id," +
	"origin,origin_uuid,metadata_lv,metadata_lv_uuid,transaction_id,data_percent,metadata_percent,lv_attr,lv_tags,lv_merging,vg_seqno"

// A group is a volume group: all its volumes.
type group []*Volume

// list asks LVM for the volumes of a group.
func list(ctx context.Context, vg string) (group, error) {
	out, err := command.Run(ctx, "lvs", "--all", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns, vg)
	if err != nil {
		return nil, err
	}
	return parse(out)
}

func parse(out []byte) (group, error) {
	var all struct {
		Report []struct {
			LV []map[string]string `json:"lv"`
		} `json:"report"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("read what lvs says: %w", err)
	}
	var g group
	for _, r := range all.Report {
		for _, lv := range r.LV {
			v, err := volume(lv)
			if err != nil {
				return nil, fmt.Errorf("read what lvs says of %s/%s: %w", lv["vg_name"], lv["lv_name"], err)
			}
			// A volume of several segments is listed once for each.
			if g.byUUID(v.UUID) == nil {
				g = append(g, v)
			}
		}
	}
	return g, nil
}

func volume(lv map[string]string) (*Volume, error) {
	hidden := strings.HasPrefix(lv["lv_name"], "[")
	v := &Volume{
		VG: lv["vg_name"], VGUUID: lv["vg_uuid"], Name: strings.Trim(lv["lv_name"], "[]"), UUID: lv["lv_uuid"],
		Kind: lv["segtype"], Pool: lv["pool_lv"], PoolUUID: lv["pool_lv_uuid"], Origin: strings.Trim(lv["origin"], "[]"),
		OriginUUID: lv["origin_uuid"], Metadata: strings.Trim(lv["metadata_lv"], "[]"), MetadataUUID: lv["metadata_lv_uuid"],
		Transaction: lv["transaction_id"], Hidden: hidden, Merging: lv["lv_merging"] != "", Health: '-', ThinID: -1,
	}
	if attr := lv["lv_attr"]; len(attr) > 8 {
		v.Health = attr[8]
	}
	if lv["lv_tags"] != "" {
		v.Tags = strings.Split(lv["lv_tags"], ",")
	}
	var err error
	number := func(name string, set func(string) error) {
		if s := lv[name]; s != "" && err == nil {
			if e := set(s); e != nil {
				err = fmt.Errorf("%s: %w", name, e)
			}
		}
	}
	integer := func(to *int64) func(string) error {
		return func(s string) (e error) { *to, e = strconv.ParseInt(s, 10, 64); return e }
	}
	percent := func(to *float64) func(string) error {
		return func(s string) (e error) { *to, e = strconv.ParseFloat(s, 64); return e }
	}
	number("lv_size", integer(&v.Size))
	number("vg_seqno", integer(&v.Seqno))
	number("vg_free", integer(&v.free))
	number("vg_extent_size", integer(&v.extentSize))
	number("thin_id", func(s string) (e error) { v.ThinID, e = strconv.Atoi(s); return e })
	number("data_percent", percent(&v.DataFull))
	number("metadata_percent", percent(&v.MetadataFull))
	if err == nil && (v.VG == "" || v.Name == "" || v.UUID == "") {
		err = fmt.Errorf("no name or UUID")
	}
	return v, err
}

func (g group) byName(name string) *Volume {
	return g.find(func(v *Volume) bool { return v.Name == name })
}

func (g group) byUUID(uuid string) *Volume {
	return g.find(func(v *Volume) bool { return v.UUID == uuid })
}

func (g group) find(is func(*Volume) bool) *Volume {
	if i := slices.IndexFunc(g, is); i >= 0 {
		return g[i]
	}
	return nil
}

// open returns the volume that a device is, and its group.
func open(ctx context.Context, d block.Device) (*Volume, group, error) {
	name, uuid, err := mapping(d.Path)
	if err != nil {
		return nil, nil, err
	}
	// LVM-, the group's UUID and the volume's, of 32 characters each, and
	// for a part of a volume its layer.
	if !strings.HasPrefix(uuid, "LVM-") || len(uuid) != 4+32+32 {
		return nil, nil, fmt.Errorf("%s is no logical volume: %w", d.Path, snapshot.ErrUnfit)
	}
	vg, _ := split(name)
	g, err := list(ctx, vg)
	if err != nil {
		return nil, nil, err
	}
	v := g.find(func(v *Volume) bool { return strings.ReplaceAll(v.UUID, "-", "") == uuid[36:] })
	if v == nil {
		return nil, nil, fmt.Errorf("%s is no volume that LVM knows: %w", d.Path, snapshot.ErrUnfit)
	}
	return v, g, nil
}

// mapping returns the device-mapper's name and UUID of a device, both empty if
// it is none of the device-mapper's.
func mapping(path string) (name, uuid string, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", "", fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", "", nil
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d/dm", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	read := func(attr string) string {
		b, _ := os.ReadFile(filepath.Join(dir, attr))
		return strings.TrimSpace(string(b))
	}
	return read("name"), read("uuid"), nil
}

// split takes the device-mapper's name of a volume apart: a hyphen within a
// name is doubled there.
func split(name string) (vg, lv string) {
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			i++
			continue
		}
		single := func(s string) string { return strings.ReplaceAll(s, "--", "-") }
		return single(name[:i]), single(name[i+1:])
	}
	return "", name
}
