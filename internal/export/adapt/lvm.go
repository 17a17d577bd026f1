package adapt

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"platter/block"
	"platter/block/lvm2"
	"platter/image/reader"
	"platter/internal/export"
	"platter/internal/export/files"
)

const (
	maxVolumes = 256
	maxGroup   = 100 // bytes of a name
)

var lvmName = regexp.MustCompile(`^[A-Za-z0-9+_.][A-Za-z0-9+_.-]*$`)

// mapperName is a volume's name below /dev/mapper.
func mapperName(group, lv string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(group) + "-" + double(lv)
}

// A segments is a logical volume as a device: stretches of a disk, one behind the
// other.
type segments struct {
	disk export.Writer
	list []block.Extent
	size int64
}

func (s *segments) Size() int64 { return s.size }

// each calls f for the parts of the disk that a range is.
func (s *segments) each(off, length int64, f func(from, at, length int64) error) error {
	begin := int64(0)
	for _, e := range s.list {
		from, end := max(off, begin), min(off+length, begin+e.Length)
		if from < end {
			if err := f(from-off, e.Offset+from-begin, end-from); err != nil {
				return err
			}
		}
		begin += e.Length
	}
	return nil
}

func (s *segments) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	err = s.each(off, int64(len(p)), func(from, at, length int64) error {
		m, err := s.disk.ReadAt(ctx, p[from:from+length], at)
		n += m
		return err
	})
	return n, err
}

func (s *segments) WriteAt(ctx context.Context, p []byte, off int64) error {
	return s.each(off, int64(len(p)), func(from, at, length int64) error {
		return s.disk.WriteAt(ctx, p[from:from+length], at)
	})
}

func (s *segments) Zero(ctx context.Context, off, length int64) error {
	return s.each(off, length, func(_, at, length int64) error { return s.disk.Zero(ctx, at, length) })
}

func (s *segments) Flush(ctx context.Context) error { return s.disk.Flush(ctx) }

// Stretches calls all of it data: nobody copies a volume here.
func (s *segments) Stretches(_ context.Context, off, length int64, _ int) ([]reader.Stretch, error) {
	return []reader.Stretch{{Extent: block.Extent{Offset: off, Length: length}}}, nil
}

// lvm returns the physical volumes of the disk, by their identities, and what
// they say of groups, by name.
func (a *adapter) lvm() (parts map[string]*volume, groups map[string]lvm2.Section) {
	parts, groups = map[string]*volume{}, map[string]lvm2.Section{}
	for _, v := range a.volumes {
		if v.content != "LVM2_member" {
			continue
		}
		id, text, err := lvm2.Physical(&files.Section{Context: a.ctx, Device: a.device, Extent: v.extent}, v.extent.Length)
		if err != nil {
			a.left("%s is not looked into: LVM: %v", v.name, err)
			continue
		}
		parts[id] = v
		if text == nil {
			continue
		}
		top, err := lvm2.Parse(text)
		if err != nil {
			a.left("%s is not looked into: LVM: %v", v.name, err)
			continue
		}
		for name, g := range top {
			if g, ok := g.(lvm2.Section); ok && g["id"] != nil {
				groups[name] = g
			}
		}
	}
	return parts, groups
}

// logical finds the logical volumes whose parts are all on this disk.
func (a *adapter) logical() {
	parts, groups := a.lvm()
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		g := groups[name]
		unit, _ := g["extent_size"].(int64)
		volumes, _ := g["logical_volumes"].(lvm2.Section)
		for _, lv := range slices.Sorted(maps.Keys(volumes)) {
			s, ok := volumes[lv].(lvm2.Section)
			if !ok || !visible(s) || len(a.volumes) >= maxVolumes {
				continue
			}
			list, err := lay(g, s, unit*lvm2.Sector, parts)
			if err != nil {
				a.left("volume %s/%s is not looked into: %v", name, lv, err)
				continue
			}
			d := &segments{disk: a.device, list: list}
			for _, e := range list {
				d.size += e.Length
			}
			v := &volume{name: "volume " + name + "/" + lv, lv: name + "/" + lv, device: d, extent: block.Extent{Length: d.size}}
			_, v.content = block.Probe(v.raw(a.ctx), d.size, lvm2.Sector)
			a.volumes = append(a.volumes, v)
		}
	}
}

// visible reports whether a volume is for use, not a part of another.
func visible(lv lvm2.Section) bool {
	status, _ := lv["status"].([]any)
	for _, s := range status {
		if s == "VISIBLE" {
			return true
		}
	}
	return false
}

// lay finds the parts of the disk that a volume is.
func lay(g, lv lvm2.Section, unit int64, parts map[string]*volume) (list []block.Extent, err error) {
	count, _ := lv["segment_count"].(int64)
	if count < 1 || count > 4096 || unit < lvm2.Sector || unit > 1<<40 {
		return nil, fmt.Errorf("it has %d segments of extents of %d bytes", count, unit)
	}
	devices, _ := g["physical_volumes"].(lvm2.Section)
	next := int64(0)
	for i := range count {
		s, _ := lv["segment"+strconv.FormatInt(i+1, 10)].(lvm2.Section)
		kind, _ := s["type"].(string)
		stripes, _ := s["stripes"].([]any)
		if kind != "striped" || len(stripes) != 2 {
			return nil, fmt.Errorf("it is of type %q, and only plain volumes are", kind)
		}
		name, _ := stripes[0].(string)
		first, _ := stripes[1].(int64)
		length, _ := s["extent_count"].(int64)
		start, _ := s["start_extent"].(int64)
		pv, _ := devices[name].(lvm2.Section)
		id, _ := pv["id"].(string)
		from, _ := pv["pe_start"].(int64)
		v := parts[strings.ReplaceAll(id, "-", "")]
		if v == nil {
			return nil, fmt.Errorf("a part of it is on another disk")
		}
		most := v.extent.Length / unit
		if start != next || first < 0 || length < 1 || first > most || length > most || from < 0 || from > v.extent.Length/lvm2.Sector {
			return nil, fmt.Errorf("segment %d is of extents %d+%d at %d", i+1, first, length, start)
		}
		e := block.Extent{Offset: v.extent.Offset + from*lvm2.Sector + first*unit, Length: length * unit}
		if e.End() > v.extent.End() {
			return nil, fmt.Errorf("segment %d reaches beyond %s", i+1, v.name)
		}
		list = append(list, e)
		next += length
	}
	return list, nil
}
