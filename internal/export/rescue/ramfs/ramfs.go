// Package ramfs gathers the files of an initial file system from a tree of
// unpacked Debian packages: programs, and the libraries that they are linked with.
package ramfs

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"platter/internal/export/rescue/cpio"
)

// A Builder holds what was gathered. A name is placed once: the first counts.
type Builder struct {
	Entries []cpio.Entry
	tree    string
	placed  map[string]bool
}

// New returns a Builder that takes programs from a tree.
func New(tree string) *Builder { return &Builder{tree: tree, placed: map[string]bool{}} }

// Layout adds the folders that programs, which all go to sbin, and their
// libraries are looked for in.
func (b *Builder) Layout() {
	for _, dir := range []string{"lib/x86_64-linux-gnu", "lib64", "sbin", "usr"} {
		b.Dir(dir)
	}
	for _, link := range [][2]string{{"bin", "sbin"}, {"usr/bin", "../sbin"}, {"usr/sbin", "../sbin"}} {
		b.Link(link[0], link[1])
	}
}

// Add adds an entry.
func (b *Builder) Add(e cpio.Entry) {
	if !b.placed[e.Name] {
		b.placed[e.Name] = true
		b.Entries = append(b.Entries, e)
	}
}

// Dir adds a folder, after those that it is in.
func (b *Builder) Dir(name string) {
	if name == "." || b.placed[name] {
		return
	}
	b.Dir(path.Dir(name))
	b.Add(cpio.Entry{Name: name, Mode: cpio.Dir | 0o755})
}

// Link adds a symbolic link.
func (b *Builder) Link(name, target string) {
	b.Add(cpio.Entry{Name: name, Mode: cpio.Link | 0o777, Body: []byte(target)})
}

// Text adds a file of some content, after the folders that it is in.
func (b *Builder) Text(name string, perm uint32, body []byte) {
	b.Dir(path.Dir(name))
	b.Add(cpio.Entry{Name: name, Mode: cpio.File | perm, Body: body})
}

// File adds a copy of a file, after the folders that it is in.
func (b *Builder) File(name, from string, perm uint32) error {
	if b.placed[name] {
		return nil
	}
	body, err := os.ReadFile(from)
	if err == nil {
		b.Text(name, perm, body)
	}
	return err
}

// Program adds a program under all its names, of which those after a colon are
// other names of the first, and the libraries it needs.
func (b *Builder) Program(names string) error {
	name, others, _ := strings.Cut(names, ":")
	path, err := b.find(name, "sbin", "bin", "usr/sbin", "usr/bin")
	if err != nil {
		return err
	}
	if err := b.File("sbin/"+name, path, 0o755); err != nil {
		return err
	}
	for other := range strings.FieldsSeq(others) {
		b.Link("sbin/"+other, name)
	}
	return b.libraries(path)
}

// libraries adds what the dynamic linker will look for.
func (b *Builder) libraries(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil || len(names) == 0 {
		return err
	}
	for _, name := range append(names, linker) {
		if err := b.Library(name); err != nil {
			return fmt.Errorf("%s needs a library: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// linker is where the kernel looks for it.
const linker = "ld-linux-x86-64.so.2"

// Library adds a library and those it needs.
func (b *Builder) Library(name string) error {
	dir := "lib/x86_64-linux-gnu/"
	if name == linker {
		dir = "lib64/"
	}
	if b.placed[dir+name] {
		return nil
	}
	path, err := b.find(name, "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
	if err != nil {
		return err
	}
	if err := b.File(dir+name, path, 0o755); err != nil {
		return err
	}
	return b.libraries(path)
}

// find returns the file of a name in the first of the folders that has it.
func (b *Builder) find(name string, dirs ...string) (string, error) {
	i := slices.IndexFunc(dirs, func(dir string) bool {
		info, err := os.Stat(filepath.Join(b.tree, dir, name))
		return err == nil && info.Mode().IsRegular()
	})
	if i < 0 {
		return "", fmt.Errorf("find %s in the unpacked packages: %w", name, fs.ErrNotExist)
	}
	return filepath.Join(b.tree, dirs[i], name), nil
}
