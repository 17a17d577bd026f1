package files

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"platter/internal/export/files/tree"
)

// A Line tells of one file.
type Line struct {
	Path string `json:"path"` // below what was listed
	// PathHex is the path in hex where it is no UTF-8.
	PathHex string    `json:"path_hex,omitempty"`
	Type    string    `json:"type"` // file, folder, link, block, char, fifo, socket
	Mode    string    `json:"mode"` // octal, without the type
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	Links   uint32    `json:"links"`
	Size    int64     `json:"size"` // bytes
	Time    time.Time `json:"time"` // of the last write
	Target  string    `json:"target,omitempty"`
	Device  string    `json:"device,omitempty"` // MAJOR:MINOR
	// Xattrs are the names of extended attributes.
	Xattrs []string `json:"xattrs,omitempty"`
	// Error is why the rest is not known.
	Error string `json:"error,omitempty"`
}

// List tells of what a folder holds, or of one file; with deep, of all below.
// name is what a file is called.
func List(ctx context.Context, n tree.Node, name string, deep bool, memory int64, f func(Line) error) error {
	l := &lister{top: name, deep: deep, f: f}
	return walk(ctx, newBudget(memory), l, "", n, 0)
}

type lister struct {
	top  string
	deep bool
	f    func(Line) error
}

func (l *lister) enter(ctx context.Context, path string, n tree.Node) error {
	folder := n.Stat().Type() == unix.S_IFDIR
	if path == "" && folder {
		return nil
	}
	if path == "" {
		path = l.top
	}
	if err := l.f(describe(ctx, path, n)); err != nil {
		return err
	}
	if folder && !l.deep {
		return errSkip
	}
	return nil
}

func (l *lister) leave(context.Context, string, tree.Node) error { return nil }

func (l *lister) failed(path string, err error) error {
	return l.f(Line{Path: path, PathHex: notText(path), Error: err.Error()})
}

func notText(path string) string {
	if utf8.ValidString(path) {
		return ""
	}
	return hex.EncodeToString([]byte(path))
}

func describe(ctx context.Context, path string, n tree.Node) Line {
	s := n.Stat()
	l := Line{
		Path: path, PathHex: notText(path), Type: typeName(s.Type()), Mode: fmt.Sprintf("%04o", s.Mode&0o7777),
		UID: s.UID, GID: s.GID, Links: s.Links, Size: s.Size, Time: s.Modify,
	}
	var err error
	switch s.Type() {
	case unix.S_IFLNK:
		l.Target, err = n.Target(ctx)
	case unix.S_IFBLK, unix.S_IFCHR:
		l.Device = fmt.Sprintf("%d:%d", s.Major, s.Minor)
	}
	list, xattrErr := n.Xattrs(ctx)
	if err == nil {
		err = xattrErr
	}
	for _, a := range list {
		l.Xattrs = append(l.Xattrs, a.Name)
	}
	if err != nil {
		l.Error = err.Error()
	}
	return l
}

func typeName(kind uint32) string {
	switch kind {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "folder"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFBLK:
		return "block"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "unknown"
}
