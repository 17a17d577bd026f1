package freespace

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode/utf16"
)

// Records of NTFS that are always where they are, and attributes.
const (
	ntfsLog    = 2
	ntfsVolume = 3
	ntfsRoot   = 5
	ntfsBitmap = 6

	ntfsAttributeList = 0x20
	ntfsVolumeInfo    = 0x70
	ntfsData          = 0x80
	ntfsIndexRoot     = 0x90
	ntfsIndexBlocks   = 0xa0

	ntfsMaxRuns  = 1 << 20
	ntfsMaxIndex = 64 << 20 // bytes of the root folder
)

// An ntfsfs is a filesystem of NTFS.
type ntfsfs struct {
	*volume
	sector, cluster, record int64 // bytes
	clusters                int64
	mft                     []ntfsRun
}

// An ntfsRun is clusters of a file that lie together; lcn is -1 for a hole.
type ntfsRun struct{ lcn, count int64 }

// ntfs reads the bitmap of clusters. It has no checksum. Windows that sleeps,
// or starts fast the next time, keeps what it knows for itself.
func ntfs(v *volume) error {
	x := &ntfsfs{volume: v}
	if err := x.open(); err != nil {
		return err
	}
	for _, check := range []func() error{x.unmounted, x.replayed, x.awake} {
		if err := check(); err != nil {
			return err
		}
	}
	return x.walk()
}

func (x *ntfsfs) open() error {
	boot, err := x.bytes(0, 512)
	if err != nil {
		return err
	}
	x.sector = int64(binary.LittleEndian.Uint16(boot[11:]))
	per := int64(boot[13])
	if per > 128 {
		per = 1 << min(256-per, 16)
	}
	total, at := le64(boot, 40), le64(boot, 48)
	if string(boot[3:11]) != "NTFS    " || !powerOfTwo(uint64(x.sector), 256, 4096) || !powerOfTwo(uint64(per), 1, 1<<16) {
		return unsure("no boot sector of NTFS")
	}
	x.cluster = per * x.sector
	x.record = int64(int8(boot[64])) * x.cluster
	if n := int8(boot[64]); n < 0 {
		x.record = 1 << min(-int(n), 16)
	}
	x.clusters = int64(total) / per
	switch {
	case total > uint64(x.size()/x.sector) || x.clusters < 1 || at >= uint64(x.clusters):
		return unsure("%d sectors of %d bytes in %d bytes", total, x.sector, x.size())
	case !powerOfTwo(uint64(x.record), 512, 65536):
		return unsure("records of %d bytes", x.record)
	}
	x.mft = []ntfsRun{{int64(at), (16*x.record + x.cluster - 1) / x.cluster}}
	first, err := x.file(0)
	if err != nil {
		return err
	}
	data, err := first.attribute(ntfsData, "")
	if err != nil {
		return err
	}
	x.mft = data.runs
	if len(x.mft) == 0 || x.mft[0].lcn != int64(at) {
		return unsure("the table of files begins elsewhere")
	}
	return nil
}

// An ntfsFile is a record of the table of files.
type ntfsFile struct {
	fs *ntfsfs
	n  int64
	b  []byte
}

// An ntfsAttr is an attribute of a file: a value, or runs of clusters.
type ntfsAttr struct {
	value []byte
	runs  []ntfsRun
	size  int64
}

// mend puts back what the last two bytes of each 512 were before they were
// marked, and checks the marks.
func mend(b []byte, magic string) error {
	at, count := int(binary.LittleEndian.Uint16(b[4:])), int(binary.LittleEndian.Uint16(b[6:]))
	if string(b[:4]) != magic || count != len(b)/512+1 || at < 8 || at+2*count > len(b) {
		return unsure("a record that should be %s", magic)
	}
	mark := bytes.Clone(b[at : at+2])
	for i := 1; i < count; i++ {
		end := b[i*512-2 : i*512]
		if !bytes.Equal(end, mark) {
			return unsure("a record was written in part")
		}
		copy(end, b[at+2*i:])
	}
	return nil
}

func (x *ntfsfs) file(n int64) (ntfsFile, error) {
	b := make([]byte, x.record)
	if err := x.content(x.mft, n*x.record, b); err != nil {
		return ntfsFile{}, err
	}
	if err := mend(b, "FILE"); err != nil {
		return ntfsFile{}, err
	}
	if binary.LittleEndian.Uint16(b[22:])&1 == 0 || le64(b, 32) != 0 {
		return ntfsFile{}, unsure("record %d is not in use", n)
	}
	return ntfsFile{x, n, b}, nil
}

// content reads from runs of clusters.
func (x *ntfsfs) content(runs []ntfsRun, off int64, p []byte) error {
	for _, r := range runs {
		length := r.count * x.cluster
		if off >= length {
			off -= length
			continue
		}
		n := min(length-off, int64(len(p)))
		if r.lcn < 0 {
			clear(p[:n])
		} else if err := x.at(r.lcn*x.cluster+off, p[:n]); err != nil {
			return err
		}
		if p, off = p[n:], 0; len(p) == 0 {
			return nil
		}
	}
	return unsure("a file ends before its records do")
}

// attribute finds one in a file's only record.
func (f ntfsFile) attribute(kind uint32, name string) (a ntfsAttr, err error) {
	for at := int(binary.LittleEndian.Uint16(f.b[20:])); ; {
		if at > len(f.b)-8 {
			return a, unsure("the attributes of file %d do not end", f.n)
		}
		have := binary.LittleEndian.Uint32(f.b[at:])
		if have == 0xffffffff {
			return a, unsure("file %d has no attribute %#x", f.n, kind)
		}
		size := int(le32(f.b, at+4))
		if size < 24 || size > len(f.b)-at {
			return a, unsure("an attribute of file %d has %d bytes", f.n, size)
		}
		b := f.b[at : at+size]
		switch {
		case have == ntfsAttributeList:
			return a, unsure("file %d is in many pieces", f.n)
		case have == kind && attrName(b) == name:
			return f.decode(b)
		}
		at += size
	}
}

func attrName(b []byte) string {
	n, at := int(b[9]), int(binary.LittleEndian.Uint16(b[10:]))
	if n == 0 || at+2*n > len(b) {
		return ""
	}
	return utf16Text(b[at : at+2*n])
}

func utf16Text(b []byte) string {
	words := make([]uint16, len(b)/2)
	for i := range words {
		words[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(words))
}

func (f ntfsFile) decode(b []byte) (a ntfsAttr, err error) {
	if b[8] == 0 {
		n, at := le32(b, 16), int64(binary.LittleEndian.Uint16(b[20:]))
		if n > int64(len(b)) || at > int64(len(b))-n {
			return a, unsure("an attribute of file %d", f.n)
		}
		return ntfsAttr{value: b[at : at+n], size: n}, nil
	}
	if len(b) < 64 || le64(b, 16) != 0 || binary.LittleEndian.Uint16(b[12:])&0xff != 0 {
		return a, unsure("an attribute of file %d is compressed, or goes on elsewhere", f.n)
	}
	a.size = int64(le64(b, 48))
	at := int(binary.LittleEndian.Uint16(b[32:]))
	if at > len(b) || a.size < 0 {
		return a, unsure("an attribute of file %d", f.n)
	}
	a.runs, err = f.fs.runs(b[at:])
	return a, err
}

// runs decodes mapping pairs: a byte with the lengths of two numbers, a count
// and how far the run begins from the one before.
func (x *ntfsfs) runs(b []byte) (runs []ntfsRun, err error) {
	lcn := int64(0)
	for len(b) > 0 && b[0] != 0 {
		n, m := int(b[0]&15), int(b[0]>>4)
		if n == 0 || n > 8 || m > 8 || 1+n+m > len(b) || len(runs) >= ntfsMaxRuns {
			return nil, unsure("runs of clusters that make no sense")
		}
		r := ntfsRun{-1, signed(b[1 : 1+n])}
		if m > 0 {
			lcn += signed(b[1+n : 1+n+m])
			r.lcn = lcn
		}
		if r.count <= 0 || r.count > x.clusters || m > 0 && (lcn < 0 || lcn > x.clusters-r.count) {
			return nil, unsure("%d clusters at %d, of %d", r.count, lcn, x.clusters)
		}
		runs, b = append(runs, r), b[1+n+m:]
	}
	return runs, nil
}

func signed(b []byte) (n int64) {
	for i := len(b) - 1; i >= 0; i-- {
		n = n<<8 | int64(b[i])
	}
	shift := 64 - 8*len(b)
	return n << shift >> shift
}

// unmounted looks at the mark of a volume that is mounted, or wants to be
// checked.
func (x *ntfsfs) unmounted() error {
	f, err := x.file(ntfsVolume)
	if err != nil {
		return err
	}
	a, err := f.attribute(ntfsVolumeInfo, "")
	if err != nil {
		return err
	}
	if len(a.value) < 12 || binary.LittleEndian.Uint16(a.value[10:]) != 0 {
		return unsure("it is mounted, was not unmounted, or wants to be checked")
	}
	return nil
}

// replayed looks whether the log is empty, or was ended in order.
func (x *ntfsfs) replayed() error {
	f, err := x.file(ntfsLog)
	if err != nil {
		return err
	}
	a, err := f.attribute(ntfsData, "")
	if err != nil {
		return err
	}
	page := make([]byte, 4096)
	for n := range int64(2) {
		if err := x.content(a.runs, n*4096, page); err != nil {
			return err
		}
		if len(bytes.Trim(page, "\xff")) == 0 {
			continue
		}
		if err := mend(page, "RSTR"); err != nil {
			return err
		}
		at := int(binary.LittleEndian.Uint16(page[24:]))
		if at > len(page)-16 || le32(page, 16) != 4096 {
			return unsure("its log")
		}
		const clean, nobody = 2, 0xffff
		if binary.LittleEndian.Uint16(page[at+14:])&clean == 0 && binary.LittleEndian.Uint16(page[at+12:]) != nobody {
			return unsure("its log is not empty: it is mounted, or was not unmounted")
		}
	}
	return nil
}

// awake looks for what Windows writes when it goes to sleep, or shuts down to
// start fast the next time.
func (x *ntfsfs) awake() error {
	root, err := x.file(ntfsRoot)
	if err != nil {
		return err
	}
	index, err := root.attribute(ntfsIndexRoot, "$I30")
	if err != nil {
		return err
	}
	if len(index.value) < 32 {
		return unsure("the root folder")
	}
	if err := x.entries(index.value[16:]); err != nil || index.value[28]&1 == 0 {
		return err
	}
	size := le32(index.value, 8)
	blocks, err := root.attribute(ntfsIndexBlocks, "$I30")
	if err != nil {
		return err
	}
	if !powerOfTwo(uint64(size), 512, 65536) || blocks.size > ntfsMaxIndex {
		return unsure("a root folder of %d bytes in blocks of %d", blocks.size, size)
	}
	b := make([]byte, size)
	for off := int64(0); off+size <= blocks.size; off += size {
		if err := x.content(blocks.runs, off, b); err != nil {
			return err
		}
		if string(b[:4]) != "INDX" {
			continue // was never in use
		}
		if err := mend(b, "INDX"); err != nil {
			return err
		}
		if err := x.entries(b[24:]); err != nil {
			return err
		}
	}
	return nil
}

// entries looks through names; b begins with where they begin and end.
func (x *ntfsfs) entries(b []byte) error {
	at, end := le32(b, 0), le32(b, 4)
	if end > int64(len(b)) {
		return unsure("the root folder")
	}
	for at <= end-16 {
		e := b[at:end]
		size, key := int64(binary.LittleEndian.Uint16(e[8:])), int64(binary.LittleEndian.Uint16(e[10:]))
		if size < 16 || size > int64(len(e)) || key > size-16 {
			return unsure("a name in the root folder")
		}
		if e[12]&2 != 0 { // the last
			return nil
		}
		if key >= 66 && int64(e[16+64])*2 <= key-66 {
			name := utf16Text(e[16+66 : 16+66+int(e[16+64])*2])
			if strings.EqualFold(name, "hiberfil.sys") {
				if err := x.slept(int64(le64(e, 0) & (1<<48 - 1))); err != nil {
					return err
				}
			}
		}
		at += size
	}
	return nil
}

// slept looks at what is in the file for sleeping: zeros, or that it woke up.
func (x *ntfsfs) slept(n int64) error {
	f, err := x.file(n)
	if err != nil {
		return err
	}
	a, err := f.attribute(ntfsData, "")
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	if a.value != nil {
		copy(b, a.value)
	} else if a.size >= int64(len(b)) {
		err = x.content(a.runs, 0, b)
	}
	if err == nil && !strings.EqualFold(string(b[:4]), "wake") && len(bytes.Trim(b, "\x00")) > 0 {
		err = unsure("Windows sleeps, or is to start fast: shut it down with shutdown /s /f /t 0")
	}
	return err
}

// walk goes through the bitmap.
func (x *ntfsfs) walk() error {
	f, err := x.file(ntfsBitmap)
	if err != nil {
		return err
	}
	a, err := f.attribute(ntfsData, "")
	if err != nil {
		return err
	}
	if a.value != nil || a.size < (x.clusters+7)/8 {
		return unsure("a bitmap of %d bytes for %d clusters", a.size, x.clusters)
	}
	own := append([]ntfsRun{{0, 1}}, x.mft...)
	own = append(own, a.runs...)
	b := make([]byte, 32<<10)
	for first := int64(0); first < x.clusters; first += int64(len(b)) * 8 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		n := min(int64(len(b))*8, x.clusters-first)
		if err := x.content(a.runs, first/8, b[:(n+7)/8]); err != nil {
			return err
		}
		for i := range n {
			if b[i/8]>>(i%8)&1 != 0 {
				continue
			}
			for _, r := range own {
				if c := first + i; r.lcn >= 0 && c >= r.lcn && c < r.lcn+r.count {
					return unsure("it calls its own records free, at cluster %d", c)
				}
			}
			if err := x.vacant((first+i)*x.cluster, x.cluster); err != nil {
				return err
			}
		}
	}
	return nil
}
