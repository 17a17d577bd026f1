package adapt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"platter/block"
	"platter/image/reader"
	"platter/internal/export"
	"platter/internal/export/files"
)

// What LVM has at the start of a physical volume, numbers little-endian. A
// label, in one of the first four sectors:
//
//	 0:8   "LABELONE"
//	20:24  offset of what follows, from the label
//	24:32  "LVM2 001"
//
// Behind it the identity (32 bytes) and the size of the physical volume, and two
// lists of areas, of data and of metadata: offsets and lengths of 8 bytes each, up
// to one that is zero. An area of metadata:
//
//	 4:20  " LVM2 x[5A%r0N*>"
//	40:    the text that counts: offset in the area, length, CRC, flags
//
// The text goes on behind the area's header when it reaches the area's end.
const (
	lvmSector  = 512
	lvmHeader  = 512 // of an area of metadata
	lvmMagic   = " LVM2 x[5A%r0N*>"
	maxLVMText = 4 << 20
	maxLVMArea = 16 // areas of a physical volume
	maxVolumes = 256
)

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

// logical finds the logical volumes whose parts are all on this disk.
func (a *adapter) logical() {
	parts := map[string]*volume{} // by the identities of physical volumes
	groups := map[string]section{}
	for _, v := range a.volumes {
		if v.content != "LVM2_member" {
			continue
		}
		id, text, err := physical(&files.Section{Context: a.ctx, Device: a.device, Extent: v.extent}, v.extent.Length)
		if err != nil {
			a.left("%s is not looked into: LVM: %v", v.name, err)
			continue
		}
		parts[id] = v
		if text == nil {
			continue
		}
		top, err := parseLVM(text)
		if err != nil {
			a.left("%s is not looked into: LVM: %v", v.name, err)
			continue
		}
		for name, g := range top {
			if g, ok := g.(section); ok && g["id"] != nil {
				groups[name] = g
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		g := groups[name]
		unit, _ := g["extent_size"].(int64)
		volumes, _ := g["logical_volumes"].(section)
		for _, lv := range slices.Sorted(maps.Keys(volumes)) {
			s, ok := volumes[lv].(section)
			if !ok || !visible(s) || len(a.volumes) >= maxVolumes {
				continue
			}
			list, err := g.place(s, unit*lvmSector, parts)
			if err != nil {
				a.left("volume %s/%s is not looked into: %v", name, lv, err)
				continue
			}
			d := &segments{disk: a.device, list: list}
			for _, e := range list {
				d.size += e.Length
			}
			v := &volume{name: "volume " + name + "/" + lv, lv: name + "/" + lv, device: d, extent: block.Extent{Length: d.size}}
			_, v.content = block.Probe(v.raw(a.ctx), d.size, lvmSector)
			a.volumes = append(a.volumes, v)
		}
	}
}

// visible reports whether a volume is for use, not a part of another.
func visible(lv section) bool {
	status, _ := lv["status"].([]any)
	for _, s := range status {
		if s == "VISIBLE" {
			return true
		}
	}
	return false
}

// place finds the parts of the disk that a volume is.
func (g section) place(lv section, unit int64, parts map[string]*volume) (list []block.Extent, err error) {
	count, _ := lv["segment_count"].(int64)
	if count < 1 || count > 4096 || unit < lvmSector || unit > 1<<40 {
		return nil, fmt.Errorf("it has %d segments of extents of %d bytes", count, unit)
	}
	devices, _ := g["physical_volumes"].(section)
	next := int64(0)
	for i := range count {
		s, _ := lv["segment"+strconv.FormatInt(i+1, 10)].(section)
		kind, _ := s["type"].(string)
		stripes, _ := s["stripes"].([]any)
		if kind != "striped" || len(stripes) != 2 {
			return nil, fmt.Errorf("it is of type %q, and only plain volumes are", kind)
		}
		name, _ := stripes[0].(string)
		first, _ := stripes[1].(int64)
		length, _ := s["extent_count"].(int64)
		start, _ := s["start_extent"].(int64)
		pv, _ := devices[name].(section)
		id, _ := pv["id"].(string)
		from, _ := pv["pe_start"].(int64)
		v := parts[strings.ReplaceAll(id, "-", "")]
		if v == nil {
			return nil, fmt.Errorf("a part of it is on another disk")
		}
		most := v.extent.Length / unit
		if start != next || first < 0 || length < 1 || first > most || length > most || from < 0 || from > v.extent.Length/lvmSector {
			return nil, fmt.Errorf("segment %d is of extents %d+%d at %d", i+1, first, length, start)
		}
		e := block.Extent{Offset: v.extent.Offset + from*lvmSector + first*unit, Length: length * unit}
		if e.End() > v.extent.End() {
			return nil, fmt.Errorf("segment %d reaches beyond %s", i+1, v.name)
		}
		list = append(list, e)
		next += length
	}
	return list, nil
}

// physical returns the identity of a physical volume, and the text that describes
// its group; none where that is on others alone.
func physical(r *files.Section, size int64) (id string, text []byte, err error) {
	head := make([]byte, 4*lvmSector)
	if _, err := r.ReadAt(head, 0); err != nil {
		return "", nil, err
	}
	at := -1
	for n := range 4 {
		if bytes.HasPrefix(head[n*lvmSector:], []byte("LABELONE")) {
			at = n * lvmSector
		}
	}
	if at < 0 {
		return "", nil, fmt.Errorf("it has no label")
	}
	to := int64(binary.LittleEndian.Uint32(head[at+20:]))
	if to < 32 || int64(at)+to+40 > int64(len(head)) {
		return "", nil, fmt.Errorf("its label leads to byte %d", to)
	}
	rest := head[int64(at)+to:]
	id, rest = string(rest[:32]), rest[40:]
	for list := 0; list < 2; list++ {
		for n := 0; ; n++ {
			if len(rest) < 16 || n > maxLVMArea {
				return "", nil, fmt.Errorf("its list of areas does not end")
			}
			off, length := binary.LittleEndian.Uint64(rest), binary.LittleEndian.Uint64(rest[8:])
			rest = rest[16:]
			if off == 0 {
				break
			}
			if list == 0 || text != nil {
				continue
			}
			if off > uint64(size) || length > uint64(size)-off || length < 2*lvmHeader {
				return "", nil, fmt.Errorf("its metadata is at %d+%d", off, length)
			}
			if text, err = metadata(r, int64(off), int64(length)); err != nil {
				return "", nil, err
			}
		}
	}
	return id, text, nil
}

// metadata returns the text of an area.
func metadata(r *files.Section, at, length int64) ([]byte, error) {
	head := make([]byte, lvmHeader)
	if _, err := r.ReadAt(head, at); err != nil {
		return nil, err
	}
	if string(head[4:20]) != lvmMagic {
		return nil, fmt.Errorf("its metadata has no signature")
	}
	off, size := int64(binary.LittleEndian.Uint64(head[40:])), int64(binary.LittleEndian.Uint64(head[48:]))
	if off == 0 {
		return nil, nil
	}
	if off < lvmHeader || off >= length || size < 1 || size > maxLVMText || size > length-lvmHeader {
		return nil, fmt.Errorf("its text is at %d+%d of %d bytes", off, size, length)
	}
	text := make([]byte, size)
	first := min(size, length-off)
	if _, err := r.ReadAt(text[:first], at+off); err != nil {
		return nil, err
	}
	if first < size {
		if _, err := r.ReadAt(text[first:], at+lvmHeader); err != nil {
			return nil, err
		}
	}
	return bytes.TrimRight(text, "\x00\n"), nil
}

// A section is what stands between two braces: numbers (int64), strings, lists
// ([]any) and sections by name.
type section map[string]any

// parseLVM reads the text of a group.
func parseLVM(text []byte) (section, error) {
	p := &lvmParser{text: text}
	s, err := p.section(0)
	if err == nil && p.at < len(p.text) {
		err = fmt.Errorf("its text has a brace too many at byte %d", p.at)
	}
	return s, err
}

type lvmParser struct {
	text []byte
	at   int
}

// token returns the next word, string (with its first quote) or sign; "" at the
// end.
func (p *lvmParser) token() string {
	for p.at < len(p.text) {
		c := p.text[p.at]
		switch {
		case c == '#':
			for p.at < len(p.text) && p.text[p.at] != '\n' {
				p.at++
			}
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			p.at++
		case c == '"':
			var b strings.Builder
			b.WriteByte('"')
			for p.at++; p.at < len(p.text) && p.text[p.at] != '"'; p.at++ {
				if p.text[p.at] == '\\' && p.at+1 < len(p.text) {
					p.at++
				}
				b.WriteByte(p.text[p.at])
			}
			p.at++
			return b.String()
		case strings.IndexByte("{}[]=,", c) >= 0:
			p.at++
			return string(c)
		default:
			from := p.at
			for p.at < len(p.text) && strings.IndexByte("{}[]=,#\" \t\r\n", p.text[p.at]) < 0 {
				p.at++
			}
			return string(p.text[from:p.at])
		}
	}
	return ""
}

func (p *lvmParser) section(depth int) (section, error) {
	s := section{}
	for {
		name := p.token()
		if name == "" && depth == 0 || name == "}" && depth > 0 {
			return s, nil
		}
		sign := p.token()
		var err error
		switch {
		case name == "" || depth > 8:
			err = fmt.Errorf("its text ends too early, or is too deep")
		case sign == "{":
			s[name], err = p.section(depth + 1)
		case sign == "=":
			s[name], err = p.value()
		default:
			err = fmt.Errorf("its text has %.20q behind %.20q", sign, name)
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *lvmParser) value() (any, error) {
	t := p.token()
	if t != "[" {
		return scalar(t)
	}
	list := []any{}
	for {
		t := p.token()
		switch t {
		case "]":
			return list, nil
		case ",":
			continue
		}
		v, err := scalar(t)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
}

func scalar(t string) (any, error) {
	if s, ok := strings.CutPrefix(t, `"`); ok {
		return s, nil
	}
	if n, err := strconv.ParseInt(t, 10, 64); err == nil {
		return n, nil
	}
	if _, err := strconv.ParseFloat(t, 64); err == nil {
		return t, nil
	}
	return nil, fmt.Errorf("its text has %.20q in place of a value", t)
}
