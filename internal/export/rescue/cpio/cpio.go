// Package cpio writes archives in the form that Linux takes as its initial
// file system ("newc").
package cpio

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// An Entry is one file of an archive. Its name has no leading slash; its
// directories come before it.
type Entry struct {
	Name string
	Mode uint32 // permissions and one of Dir, File, Link
	Body []byte // of a file; of a link its target
}

// Kinds of entry, as in a file's mode.
const (
	Dir  = 0o040000
	File = 0o100000
	Link = 0o120000
)

// Write writes a whole archive of entries that belong to root.
func Write(w io.Writer, entries []Entry) error {
	for i, e := range append(entries[:len(entries):len(entries)], Entry{Name: "TRAILER!!!"}) {
		if _, err := w.Write(record(e, i+1)); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
	return nil
}

// record encodes an entry: 13 fields of 8 hex digits after the magic number,
// then name and body, each padded to a multiple of 4 bytes.
func record(e Entry, inode int) []byte {
	links := 1
	if e.Mode&Dir != 0 {
		links = 2
	}
	var b bytes.Buffer
	b.WriteString("070701")
	for _, field := range []int{
		inode, int(e.Mode), 0, 0, links, 0, len(e.Body),
		0, 0, 0, 0, len(e.Name) + 1, 0,
	} {
		fmt.Fprintf(&b, "%08X", field)
	}
	b.WriteString(e.Name)
	b.WriteByte(0)
	pad(&b)
	b.Write(e.Body)
	pad(&b)
	return b.Bytes()
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}

// FromFile returns a file's entry under another name.
func FromFile(name, path string, perm uint32) (Entry, error) {
	body, err := os.ReadFile(path)
	return Entry{Name: filepath.Clean(name), Mode: File | perm, Body: body}, err
}
