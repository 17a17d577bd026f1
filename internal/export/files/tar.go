package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/internal/export/files/tree"
)

// Tar writes what n is under a name, or what is in it if the name is empty, as
// a tar archive in the pax format: extended attributes as GNU tar and
// bsdtar read them (SCHILY.xattr), holes as GNU tar does (GNU.sparse 1.0).
// What cannot be read is left out and told of, but a file that fails half way
// ends it: the archive has said by then how long it is.
func Tar(ctx context.Context, n tree.Node, name string, w io.Writer, memory int64) (*Report, error) {
	b := newBudget(memory)
	a := &archiver{top: name, w: w, budget: b, linked: map[tree.ID]string{}, buf: make([]byte, copyBuffer), report: &Report{}}
	if err := walk(ctx, b, a, "", n, 0); err != nil {
		return a.report, err
	}
	_, err := w.Write(make([]byte, 2*tarBlock))
	return a.report, err
}

const (
	tarBlock  = 512
	maxPieces = 1 << 16 // of a sparse file that is kept so
)

type archiver struct {
	top    string
	w      io.Writer
	budget *budget
	linked map[tree.ID]string
	buf    []byte
	report *Report
}

func (a *archiver) leave(context.Context, string, tree.Node) error { return nil }

func (a *archiver) failed(p string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	a.report.fail(a.target(p), err)
	return nil
}

func (a *archiver) target(p string) string {
	switch {
	case a.top == "" && p == "":
		return "."
	case a.top == "":
		return p
	}
	return path.Join(a.top, p)
}

// A member is what a header says.
type member struct {
	kind    byte
	name    string
	size    int64 // of what follows in the archive
	link    string
	records records
}

// records are those of a pax header.
type records []byte

// add appends LENGTH KEY=VALUE, where the length counts itself.
func (r *records) add(key, value string) {
	rest := len(key) + len(value) + 3
	n := rest + len(strconv.Itoa(rest))
	if len(strconv.Itoa(n)) > len(strconv.Itoa(rest)) {
		n = rest + len(strconv.Itoa(n))
	}
	*r = fmt.Appendf(*r, "%d %s=%s\n", n, key, value)
}

func (a *archiver) enter(ctx context.Context, p string, n tree.Node) error {
	s := n.Stat()
	m := member{name: a.target(p)}
	list, err := n.Xattrs(ctx)
	if err != nil {
		if err := a.failed(p, err); err != nil {
			return err
		}
	}
	if first, ok := a.linked[s.ID]; ok && s.Type() != unix.S_IFDIR && s.Links > 1 {
		m.kind, m.link = '1', first
		a.report.Others++
		return a.header(s, m)
	}
	for _, x := range list {
		m.records.add("SCHILY.xattr."+x.Name, string(x.Value))
	}
	if s.Links > 1 && s.Type() != unix.S_IFDIR {
		a.linked[s.ID] = m.name
		if err := a.budget.take(perEntry + len(m.name)); err != nil {
			return err
		}
	}
	switch s.Type() {
	case unix.S_IFREG:
		if err := a.file(ctx, n, m); errors.Is(err, errUnread) {
			delete(a.linked, s.ID)
			return a.failed(p, err)
		} else if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		return nil
	case unix.S_IFDIR:
		m.kind, m.name = '5', m.name+"/"
		a.report.Folders++
	case unix.S_IFLNK:
		m.kind = '2'
		if m.link, err = n.Target(ctx); err != nil {
			return a.failed(p, err)
		}
	case unix.S_IFCHR:
		m.kind = '3'
	case unix.S_IFBLK:
		m.kind = '4'
	case unix.S_IFIFO:
		m.kind = '6'
	default:
		return a.failed(p, errors.New("tar has no sockets"))
	}
	if m.kind != '5' {
		a.report.Others++
	}
	return a.header(s, m)
}

// errUnread means that nothing of a file is in the archive.
var errUnread = errors.New("the file cannot be read")

func (a *archiver) file(ctx context.Context, n tree.Node, m member) error {
	s := n.Stat()
	in, err := n.Open(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnread, err)
	}
	defer in.Close()
	pieces, err := dataOf(in, s.Size)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnread, err)
	}
	m.kind, m.size = '0', s.Size
	var plan []byte
	if pieces != nil {
		plan = sparseMap(pieces, s.Size)
		m.size = int64(len(plan))
		for _, e := range pieces {
			m.size += e.Length
		}
		m.records.add("GNU.sparse.major", "1")
		m.records.add("GNU.sparse.minor", "0")
		m.records.add("GNU.sparse.name", m.name)
		m.records.add("GNU.sparse.realsize", strconv.FormatInt(s.Size, 10))
		m.name = path.Join(path.Dir(m.name), "GNUSparseFile.0", path.Base(m.name))
	} else {
		pieces = []block.Extent{{Length: s.Size}}
	}
	if err := a.header(s, m); err != nil {
		return err
	}
	if _, err := a.w.Write(plan); err != nil {
		return err
	}
	for _, e := range pieces {
		done, err := copyN(ctx, a.w, in, e.Offset, e.Length, a.buf)
		a.report.Bytes += done
		if err != nil {
			return err
		}
	}
	a.report.Files++
	return a.pad(m.size)
}

// dataOf returns the pieces of a file that has holes, nil for one without or
// one that has too many.
func dataOf(in tree.File, size int64) (list []block.Extent, err error) {
	for off := int64(0); off < size; {
		e, err := in.Data(off)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if n := len(list); n > 0 && list[n-1].End() == e.Offset {
			list[n-1].Length += e.Length
		} else if n == maxPieces {
			return nil, nil
		} else {
			list = append(list, e)
		}
		off = e.End()
	}
	if len(list) == 1 && list[0] == (block.Extent{Length: size}) || size == 0 {
		return nil, nil
	}
	return append([]block.Extent{}, list...), nil
}

// sparseMap is how many pieces there are, and where, in decimal lines; the last
// ends at the end of the file.
func sparseMap(pieces []block.Extent, size int64) []byte {
	list := pieces
	if n := len(pieces); n == 0 || pieces[n-1].End() < size {
		list = append(pieces[:n:n], block.Extent{Offset: size})
	}
	b := fmt.Appendf(nil, "%d\n", len(list))
	for _, e := range list {
		b = fmt.Appendf(b, "%d\n%d\n", e.Offset, e.Length)
	}
	return append(b, make([]byte, -len(b)&(tarBlock-1))...)
}

func (a *archiver) pad(size int64) error {
	_, err := a.w.Write(make([]byte, -size&(tarBlock-1)))
	return err
}

// Limits of the fields of the old header.
const (
	maxOctal7  = 1<<21 - 1
	maxOctal11 = 1<<33 - 1
)

// header writes a member's header, and before it a pax header of what does not
// fit there.
func (a *archiver) header(s tree.Stat, m member) error {
	number := func(key string, v, most int64) int64 {
		if v >= 0 && v <= most {
			return v
		}
		m.records.add(key, strconv.FormatInt(v, 10))
		return 0
	}
	uid, gid := number("uid", int64(s.UID), maxOctal7), number("gid", int64(s.GID), maxOctal7)
	size := number("size", m.size, maxOctal11)
	mtime := s.Modify.Unix()
	if s.Modify.Nanosecond() != 0 || mtime < 0 || mtime > maxOctal11 {
		m.records.add("mtime", paxTime(mtime, int64(s.Modify.Nanosecond())))
		mtime = min(max(mtime, 0), maxOctal11)
	}
	if len(m.name) > 100 {
		m.records.add("path", m.name)
	}
	if len(m.link) > 100 {
		m.records.add("linkpath", m.link)
	}
	if len(m.records) > 0 {
		b := ustar('x', "PaxHeaders/"+path.Base(m.name), 0o644, 0, 0, int64(len(m.records)), mtime, "", 0, 0)
		if _, err := a.w.Write(append(b, m.records...)); err != nil {
			return err
		}
		if err := a.pad(int64(len(m.records))); err != nil {
			return err
		}
	}
	_, err := a.w.Write(ustar(m.kind, m.name, s.Mode&0o7777, uid, gid, size, mtime, m.link, s.Major, s.Minor))
	return err
}

// paxTime is a time in seconds with a fraction.
func paxTime(sec, nsec int64) string {
	if sec < 0 && nsec > 0 {
		return fmt.Sprintf("-%d.%09d", -sec-1, 1e9-nsec)
	}
	return fmt.Sprintf("%d.%09d", sec, nsec)
}

// ustar is a header of POSIX:
//
//	  0:100  name           156      kind
//	100:108  mode, octal    157:257  link
//	108:116  uid            257:265  "ustar" 00 "00"
//	116:124  gid            329:337  device, major
//	124:136  size           337:345  minor
//	136:148  time
//	148:156  sum of all bytes, these as spaces
func ustar(kind byte, name string, mode uint32, uid, gid, size, mtime int64, link string, major, minor uint32) []byte {
	b := make([]byte, tarBlock)
	copy(b[0:100], name)
	copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", mode, uid, gid, size, mtime))
	copy(b[148:], bytes.Repeat([]byte(" "), 8))
	b[156] = kind
	copy(b[157:257], link)
	copy(b[257:], "ustar\x0000")
	copy(b[329:], fmt.Sprintf("%07o\x00%07o\x00", major&maxOctal7, minor&maxOctal7))
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}
