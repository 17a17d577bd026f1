// Package lvm2 reads what LVM keeps at the start of its physical volumes: which
// volumes there are, and where. It believes nothing of it beyond what fits.
package lvm2

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"platter/block"
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
	Sector     = 512 // bytes: what sizes in LVM's text are counted in
	areaHeader = 512 // of an area of metadata
	areaMagic  = " LVM2 x[5A%r0N*>"
	maxText    = 4 << 20
	maxArea    = 16 // areas of a physical volume
)

// Physical returns the identity of a physical volume, and the text that describes
// its group; none where that is on others alone.
func Physical(r io.ReaderAt, size int64) (id string, text []byte, err error) {
	head := make([]byte, 4*Sector)
	if _, err := r.ReadAt(head, 0); err != nil {
		return "", nil, err
	}
	at := -1
	for n := range 4 {
		if bytes.HasPrefix(head[n*Sector:], []byte("LABELONE")) {
			at = n * Sector
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
			if len(rest) < 16 || n > maxArea {
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
			if off > uint64(size) || length > uint64(size)-off || length < 2*areaHeader {
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
func metadata(r io.ReaderAt, at, length int64) ([]byte, error) {
	head := make([]byte, areaHeader)
	if _, err := r.ReadAt(head, at); err != nil {
		return nil, err
	}
	if string(head[4:20]) != areaMagic {
		return nil, fmt.Errorf("its metadata has no signature")
	}
	off, size := int64(binary.LittleEndian.Uint64(head[40:])), int64(binary.LittleEndian.Uint64(head[48:]))
	if off == 0 {
		return nil, nil
	}
	if off < areaHeader || off >= length || size < 1 || size > maxText || size > length-areaHeader {
		return nil, fmt.Errorf("its text is at %d+%d of %d bytes", off, size, length)
	}
	text := make([]byte, size)
	first := min(size, length-off)
	if _, err := r.ReadAt(text[:first], at+off); err != nil {
		return nil, err
	}
	if first < size {
		if _, err := r.ReadAt(text[first:], at+areaHeader); err != nil {
			return nil, err
		}
	}
	return bytes.TrimRight(text, "\x00\n"), nil
}

// A Section is what stands between two braces: numbers (int64), strings, lists
// ([]any) and sections by name.
type Section map[string]any

// Parse reads the text of a group.
func Parse(text []byte) (Section, error) {
	p := &parser{text: text}
	s, err := p.section(0)
	if err == nil && p.at < len(p.text) {
		err = fmt.Errorf("its text has a brace too many at byte %d", p.at)
	}
	return s, err
}

type parser struct {
	text []byte
	at   int
}

// token returns the next word, string (with its first quote) or sign; "" at the
// end.
func (p *parser) token() string {
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

func (p *parser) section(depth int) (Section, error) {
	s := Section{}
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

func (p *parser) value() (any, error) {
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

// A Piece is a part of a physical volume that a logical volume is in.
type Piece struct {
	Volume string // GROUP/NAME; of what only LVM sees, of the volume that it is part of
	block.Extent
}

// Pieces returns the parts of a physical volume that are in use, in order and apart
// from each other: r reads it, and it has size bytes.
func Pieces(r io.ReaderAt, size int64) ([]Piece, error) {
	id, text, err := Physical(r, size)
	if err != nil || text == nil {
		return nil, err
	}
	top, err := Parse(text)
	if err != nil {
		return nil, err
	}
	var list []Piece
	for name, g := range top {
		if g, ok := g.(Section); ok && g["id"] != nil {
			list = append(list, g.pieces(name, id, size)...)
		}
	}
	return apart(list), nil
}

// apart sorts pieces, and leaves out those that lie across one before.
func apart(list []Piece) []Piece {
	slices.SortFunc(list, func(a, b Piece) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Volume, b.Volume))
	})
	kept, end := list[:0], int64(0)
	for _, p := range list {
		if p.Offset >= end {
			kept, end = append(kept, p), p.End()
		}
	}
	return kept
}

// pieces are those of one group's volumes on the physical volume with an identity.
// What makes no sense is left out.
func (g Section) pieces(group, id string, size int64) (list []Piece) {
	devices, _ := g["physical_volumes"].(Section)
	on, from := "", int64(0)
	for name, d := range devices {
		d, _ := d.(Section)
		if text, _ := d["id"].(string); strings.ReplaceAll(text, "-", "") == id {
			on = name
			from, _ = d["pe_start"].(int64)
		}
	}
	unit, _ := g["extent_size"].(int64)
	unit *= Sector
	if on == "" || unit < Sector || unit > 1<<40 || from < 0 || from > size/Sector {
		return nil
	}
	most := size / unit
	volumes, _ := g["logical_volumes"].(Section)
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		lv, _ := volumes[name].(Section)
		count, _ := lv["segment_count"].(int64)
		for i := range min(max(count, 0), 4096) {
			s, _ := lv["segment"+strconv.FormatInt(i+1, 10)].(Section)
			stripes, _ := s["stripes"].([]any)
			length, _ := s["extent_count"].(int64)
			if kind, _ := s["type"].(string); kind != "striped" || len(stripes) < 2 {
				continue
			}
			length /= int64(len(stripes) / 2)
			for n := 0; n+1 < len(stripes); n += 2 {
				first, _ := stripes[n+1].(int64)
				if stripes[n] != on || first < 0 || length < 1 || first > most || length > most {
					continue
				}
				e := block.Extent{Offset: from*Sector + first*unit, Length: length * unit}
				if e.End() <= size {
					list = append(list, Piece{group + "/" + shown(name), e})
				}
			}
		}
	}
	return list
}

// shown is the volume that one which only LVM sees is a part of: lv of lv_tdata,
// lv_tmeta, lv_rimage_0 and their like.
func shown(name string) string {
	for _, part := range []string{"_tdata", "_tmeta", "_cdata", "_cmeta", "_cvol", "_corig", "_wcorig", "_vdata", "_vorigin", "_rimage_", "_rmeta_", "_mimage_", "_mlog"} {
		if i := strings.LastIndex(name, part); i > 0 {
			return name[:i]
		}
	}
	return name
}
